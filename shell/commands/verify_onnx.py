"""Proofs about networks and properties from files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shell.loading import use_threads
from shell.output import print_json, run_with_progress
from shell.parameters import Json, Threads

if TYPE_CHECKING:
    from core.proving.instance import Settled
    from core.proving.network import ReluNetwork


def verify_onnx(
    network: Annotated[Path, typer.Argument(metavar="NET.onnx", help="Layers that are affine or ReLU")],
    property_: Annotated[
        Path, typer.Argument(metavar="PROP.vnnlib", help="Which inputs and outputs are unsafe")
    ],
    seconds: Annotated[float, typer.Option(min=0.1, help="Time for every verdict")] = 60.0,
    onnx: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also of this compressed network, helped by the proof")
    ] = None,
    bits: Annotated[
        int | None, typer.Option(min=2, max=16, help="Also with weights of so many bits, helped by the proof")
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Also without this share of the weights, helped by the proof"),
    ] = None,
    scratch: Annotated[
        bool, typer.Option("--scratch", help="Prove the second network without it, too, to compare times")
    ] = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Prove a VNN-LIB property of an ONNX network, or show an input that breaks it."""
    from core.errors import ParameterError
    from core.proving.instance import rounded, settle, thinned
    from core.proving.onnx_file import read_onnx
    from core.proving.vnnlib import read_vnnlib

    use_threads(threads)
    if (onnx is not None) + (bits is not None) + (sparsity is not None) > 1:
        raise ParameterError(
            "verify-onnx: the second network must be one of --onnx, --bits, --sparsity, got more"
        )
    first, second = read_onnx(network), None
    cases = read_vnnlib(property_, first.inputs, first.outputs)
    if onnx is not None:
        second = read_onnx(onnx)
        if (second.inputs, second.outputs) != (first.inputs, first.outputs):
            raise ParameterError(
                f"verify-onnx: both networks must have {first.inputs} inputs and {first.outputs} outputs, "
                f"got {second.inputs} and {second.outputs}"
            )
    elif bits is not None:
        second = rounded(first, bits)
    elif sparsity is not None:
        second = thinned(first, sparsity)
    run = run_with_progress()
    found = settle(first, cases, seconds, tell=run.report)
    report = {"network": network.name, "property": property_.name, **_told(found, first)}
    if second is not None:
        helped = settle(second, cases, seconds, found.proofs, run.report)
        report["compressed"] = _told(helped, second)
        if scratch:
            alone = settle(second, cases, seconds, tell=run.report)
            report["scratch"] = _told(alone, second)
            report["speed_up"] = alone.seconds / helped.seconds
    if as_json:
        return print_json(report)
    return _print(report)


def _told(found: "Settled", network: "ReluNetwork") -> dict[str, Any]:
    told: dict[str, Any] = {"status": found.status, "seconds": found.seconds, "work": found.work}
    if found.reason:
        told["reason"] = found.reason
    if (x := found.counterexample) is not None:
        told["counterexample"] = {"inputs": x.tolist(), "outputs": network(x[None])[0].tolist()}
    if (reuse := found.reuse) is not None:
        told["reuse"] = {**vars(reuse), "rate": reuse.rate}
    return told


def _print(report: dict[str, Any]) -> None:
    print(f"{report['network']}, {report['property']}")
    sides = [
        ("original", report),
        *((name, report[name]) for name in ("compressed", "scratch") if name in report),
    ]
    for name, side in sides:
        work = ", ".join(f"{count:,} {what}" for what, count in side["work"].items())
        reason = f"; {side['reason']}" if "reason" in side else ""
        print(f"  {name:10}  {side['status']:8} {side['seconds']:9.3f} s  {work}{reason}")
        if reuse := side.get("reuse"):
            held = reuse["trivial"] + reuse["valid"]
            print(f"  {'':10}  {held:,} of {reuse['parts']:,} parts of the original's proof held")
        if example := side.get("counterexample"):
            for what in ("inputs", "outputs"):
                numbers = example[what]
                shown = ", ".join(f"{value:.6g}" for value in numbers[:8])
                more = f", ... ({len(numbers):,} in all)" if len(numbers) > 8 else ""
                print(f"  {'':10}  {what}: {shown}{more}")
    if "speed_up" in report:
        print(f"  with the old proof {report['speed_up']:.1f} times as fast as without")
