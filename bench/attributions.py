"""Sixteen pictures, six attribution methods: ours, against Captum called as its documentation shows it.

`python -m bench.attributions` prints what `measure` finds.
"""

import os

if __name__ == "__main__":  # not in the peers, which import this file
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the app does, and before torch is loaded

import contextlib
import copy
import json
import multiprocessing
import pickle
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from bench.process import TUNING
from bench.subjects import resnet20
from bench.timing import Taken, timed, turns
from core.attribution import ATTRIBUTIONS, explain
from core.prepared import Prepared

PICTURES = 16
METHODS = ("saliency", "input-x-gradient", "integrated-gradients", "smooth-grad", "grad-cam", "occlusion")
CLOSE = 1e-4  # relative difference of a map

Maps = dict[str, Tensor]  # method -> (N, C, H, W)


def measure(rounds: int = 5) -> dict[str, Any]:
    """Seconds of all methods on all pictures, medians of interleaved rounds, and how far maps differ.

    Our network is prepared before (`prepare_s`), and forgets its maps before every round. Captum has
    a process of its own in which torch chooses the threads, and another with one thread. Ratios of
    wall time need a quiet machine; that of processor time, against one thread, does not.
    """
    subject = resnet20(PICTURES)
    model, images = subject.bundle.module, subject.split.images
    targets = model(images).argmax(1)
    prepare_s, network = timed(lambda: Prepared.of(copy.deepcopy(model), images[:1]))
    network = Prepared.of(model, images[:1])

    def ours() -> Taken:
        network.forget()
        return _timed(lambda: our_maps(model, images, targets))

    with _peer(None) as peer, _peer(1) as single, _one_thread():
        question = pickle.dumps((model, images, targets))  # else torch would move our tensors
        contestants = {
            "ours": ours,
            "captum": lambda: peer.submit(_timed_there, question).result(),
            "captum_one_thread": lambda: single.submit(_timed_there, question).result(),
        }
        turns(contestants)
        taken = [turns(contestants, number) for number in range(rounds)]
    seconds, work = (
        {name: median(turn[name][at] for turn in taken) for name in contestants} for at in (0, 1)
    )
    return {
        "attribution_ratio": seconds["captum"] / seconds["ours"],
        "attribution_ratio_one_thread": seconds["captum_one_thread"] / seconds["ours"],
        "attribution_s": seconds["ours"],
        "captum_s": seconds["captum"],
        "captum_one_thread_s": seconds["captum_one_thread"],
        "attribution_cpu_ratio": work["captum_one_thread"] / work["ours"],
        "attribution_cpu_s": work["ours"],
        "prepare_s": prepare_s,
        **differences(model, images, targets),
        "pictures": PICTURES,
        "methods": METHODS,
        "network": subject.title,
    }


def our_maps(model: nn.Module, images: Tensor, targets: Tensor) -> Maps:
    return {name: explain(model, ATTRIBUTIONS[name](), images, targets) for name in METHODS}


def captum_maps(model: nn.Module, images: Tensor, targets: Tensor) -> Maps:
    """Every method with the same settings as ours, and else with Captum's own."""
    from captum import attr

    *_, last = (layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
    side, channels = images.shape[-1] // 4, images.shape[1]
    spread = 0.15 * (images.max() - images.min()).item()
    coarse = attr.LayerGradCam(model, last).attribute(images, target=targets)
    return {
        "saliency": attr.Saliency(model).attribute(images, target=targets, abs=False),
        "input-x-gradient": attr.InputXGradient(model).attribute(images, target=targets),
        "integrated-gradients": attr.IntegratedGradients(model).attribute(images, target=targets),
        "smooth-grad": attr.NoiseTunnel(attr.Saliency(model)).attribute(
            images, nt_samples=25, stdevs=spread, target=targets, abs=False
        ),
        "grad-cam": attr.LayerAttribution.interpolate(coarse, images.shape[2:], "bilinear"),
        "occlusion": attr.Occlusion(model).attribute(
            images, (channels, side, side), strides=(channels, side // 2, side // 2), target=targets
        ),
    }


def differences(model: nn.Module, images: Tensor, targets: Tensor) -> dict[str, float]:
    """How far maps of single pictures lie from Captum's, relative to the length of the map.

    `largest_relative_difference` is the largest, over the methods, of the median picture. Gradients
    jump where a rectifier's input is zero but for rounding, so single pictures lie further off; how
    many do is told beside how many of Captum's do from Captum in float64.
    """
    ours = our_maps(model, images, targets)
    plain = _by_picture(model, images, targets)
    exact = _by_picture(copy.deepcopy(model).double(), images.double(), targets)
    off = {name: _off(ours[name], plain[name]) for name in METHODS}
    own = {name: _off(plain[name], exact[name]) for name in METHODS}
    return {
        "largest_relative_difference": max(each.median().item() for each in off.values()),
        "maps_beyond_1e-4": sum(int((each > CLOSE).sum()) for each in off.values()),
        "captum_maps_beyond_1e-4_of_float64": sum(int((each > CLOSE).sum()) for each in own.values()),
        "maps": PICTURES * len(METHODS),
    }


def _by_picture(model: nn.Module, images: Tensor, targets: Tensor) -> Maps:
    """Captum's maps, one picture after the other, each from the seed that ours start from."""
    found = []
    for index in range(len(images)):
        torch.manual_seed(0)
        with _noise_of_float32():
            found.append(captum_maps(model, images[index : index + 1], targets[index : index + 1]))
    return {name: torch.cat([maps[name].detach().float() for maps in found]) for name in METHODS}


@contextlib.contextmanager
def _noise_of_float32() -> Iterator[None]:
    """SmoothGrad's noise is drawn in float32, so that a network in float64 meets the same."""
    draw = torch.normal

    def same(mean: float, deviation: Tensor) -> Tensor:
        return draw(mean, deviation.float()).to(deviation.dtype)

    torch.normal = same
    try:
        yield
    finally:
        torch.normal = draw


def _off(maps: Tensor, others: Tensor) -> Tensor:
    """Length of the difference of two maps of every picture, relative to the other's length, (N,)."""
    return (maps - others).flatten(1).norm(dim=1) / others.expand_as(maps).flatten(1).norm(dim=1)


def _timed_there(question: bytes) -> Taken:
    """Runs in a peer's process; the maps stay there."""
    given = pickle.loads(question)
    return _timed(lambda: captum_maps(*given))


def _timed(work: Callable[[], Maps]) -> Taken:
    """Seconds of wall time, and of processor time on all cores."""
    start = time.process_time()
    seconds, _ = timed(work)
    return seconds, time.process_time() - start


@contextlib.contextmanager
def _peer(threads: int | None) -> Iterator[ProcessPoolExecutor]:
    """A process without settings for torch, or with so many threads."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(TUNING)]:
        del os.environ[name]
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as peer:
        peer.submit(os.getpid).result()  # starts it
        os.environ.clear()
        os.environ.update(before)
        yield peer


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Inside, this process's own thread is no more than one of the workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
