"""All pictures through the whole network: the engine's form, onnxruntime, what the processor can do."""

from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bench.ceiling import gemm_rate
from bench.sliders import Peer
from bench.subjects import Subject
from bench.timing import timed, turns
from core import workers
from core.cost import cost
from core.precision import race
from core.steps import Steps
from core.whatif import WhatIf

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


def measure(engine: WhatIf, subject: Subject, peer: Peer, rounds: int) -> dict[str, Any]:
    """Images per second of both forms of the network, as a share of the largest rate of matrix products."""
    images, macs = subject.split.images, cost(subject.bundle.module, subject.example).macs
    parts = images.split(engine.engine.chunk)
    (forms,) = workers.each(partial(race, subject.bundle.module), [parts[0]])
    contestants = {
        "fp32": partial(timed, partial(run, forms.exact, parts)),
        "fast": partial(timed, partial(run, forms.fast, parts)),
        "onnxruntime": partial(peer.ask, "onnx"),
        **{f"gemm {name}": partial(timed, partial(gemm_rate, dtype)) for dtype, name in NAMES.items()},
    }
    turns(contestants)
    taken = [turns(contestants, number) for number in range(rounds)]
    took = {name: median(turn[name][0] for turn in taken) for name in ("fp32", "fast", "onnxruntime")}
    rates = {name: median(turn[f"gemm {name}"][1] for turn in taken) for name in NAMES.values()}
    flops = 2 * macs * len(images)
    return {
        "precision": NAMES[forms.fast.dtype],
        "form": forms.fast.words,
        "images_per_second": len(images) / took["fast"],
        "images_per_second_fp32": len(images) / took["fp32"],
        "mflops_per_image": 2 * macs / 1e6,
        **{f"gemm_{name}_gflops": rate / 1e9 for name, rate in rates.items()},
        "ceiling_fraction": flops / took["fast"] / rates[NAMES[forms.fast.dtype]],
        "ceiling_fraction_fp32": flops / took["fp32"] / rates["fp32"],
        "onnxruntime_ms": 1000 * took["onnxruntime"],
        "forward_fp32_ms": 1000 * took["fp32"],
        "onnxruntime_ratio": took["onnxruntime"] / took["fp32"],
    }


def run(form: Steps, parts: tuple[Tensor, ...]) -> Tensor:
    """Logits (N, K), the parts shared among the workers."""

    @torch.inference_mode()
    def logits(part: Tensor) -> Tensor:
        return form.finish(form.enter(part), 0)

    return torch.cat(list(workers.each(logits, parts)))
