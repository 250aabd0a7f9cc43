"""What was measured as one table of ratios, for a terminal and for docs/performance.md."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bench import machine


@dataclass(frozen=True)
class Row:
    """One line: what is measured, ours, what it is held against, and how many times faster ours is."""

    what: str
    ours: str
    against: str = ""
    ratio: str = ""


HEAD = Row("Measured", "Prunescope", "Against", "Ratio")


def rows(results: dict[str, Any]) -> list[Row]:
    """All rows of what `python -m bench` measured."""
    found = [row for network in results["networks"] for row in network_rows(network)]
    if large := results.get("large"):
        found.append(
            Row(
                f"{results['networks'][0]['subject']}: one slider, {large['images']:,} images",
                ms(large["slider_ms"]),
            )
        )
    if maps := results.get("attributions"):
        found.append(
            Row(
                f"Attribution, {maps['pictures']} images x {len(maps['methods'])} methods",
                f"{maps['attribution_s']:.2f} s",
                f"Captum called plainly: {maps['captum_s']:.2f} s",
                times(maps["attribution_ratio"]),
            )
        )
    if memory := results.get("memory"):
        found.append(Row(f"Memory, {memory['moves']} sliders moved", f"{memory['memory_growth_mb']:+.0f} MB"))
    return found


def network_rows(found: dict[str, Any]) -> Iterable[Row]:
    name = f"{found['subject']}, n = {found['images']:,}"
    ours, plain = ms(found["slider_ms"]), f"plain, {found['plain_threads']} threads: {ms(found['plain_ms'])}"
    yield Row(f"{name}: one slider released", ours, plain, times(found["slider_ratio"]))
    yield Row(
        "the same against one thread",
        ours,
        f"plain, 1 thread: {ms(found['plain_one_thread_ms'])}",
        times(found["slider_ratio_one_thread"]),
    )
    yield Row(
        "first slider of a layer",
        ms(found["slider_first_touch_ms"]),
        plain,
        times(found["slider_ratio_first_touch"]),
    )
    if found["first_images"] < found["images"]:
        name = f"first answer, from {found['first_images']} images, with its interval"
        yield Row(name, ms(found["first_answer_ms"]))
    if found["precision"] != "fp32":
        yield Row("of the slider, close calls run again in float32", ms(found["recheck_ms"]))
    if "atlas_s" in found:
        yield Row(
            f"atlas, {found['atlas_cells']} cells",
            f"{found['atlas_s']:.1f} s",
            f"plain, {found['plain_threads']} threads: {found['naive_atlas_s']:.0f} s (scaled)",
            times(found["atlas_ratio"]),
        )
    if "removal_ms" in found:
        yield Row(
            "channels removed",
            ms(found["removal_ms"]),
            f"Torch-Pruning: {ms(found['torch_pruning_ms'])}",
            times(found["removal_ratio"]),
        )
    if "prediction_error" in found:
        yield Row(
            f"prediction, {found['prediction_plans']} random plans",
            f"{found['prediction_error']:.1f} points off",
            f"in its band: {found['prediction_in_band']:.0%}",
        )
        yield Row(
            "prediction, one slider moved since the last measurement",
            f"{found['prediction_error_one_move']:.1f} points off",
            f"in its band: {found['prediction_in_band_one_move']:.0%}",
        )
    yield Row(
        "full forward, fp32",
        ms(found["forward_fp32_ms"]),
        f"onnxruntime fp32: {ms(found['onnxruntime_ms'])}",
        times(found["onnxruntime_ratio"]),
    )
    yield _ceiling("fp32", found, "images_per_second_fp32", "ceiling_fraction_fp32")
    if found["precision"] != "fp32":
        yield _ceiling(found["precision"], found, "images_per_second", "ceiling_fraction")
    yield Row(
        f"same class as the plain way, {found['plans_compared']} plans",
        f"{found['agreement_with_plain']:.2%}",
    )


def _ceiling(precision: str, found: dict[str, Any], rate: str, fraction: str) -> Row:
    gemm = found[f"gemm_{precision}_gflops"]
    ours = f"{found[rate]:,.0f} images/s"
    return Row(
        f"of the {precision} ceiling", ours, f"matrix products: {gemm:,.0f} GFLOP/s", f"{found[fraction]:.0%}"
    )


def markdown(results: dict[str, Any]) -> str:
    lines = [_line(HEAD), "|---|---|---|---|", *map(_line, rows(results))]
    return "\n".join([*lines, "", machine.sentence(results["machine"])])


def plain(results: dict[str, Any]) -> str:
    shown = [HEAD, *rows(results)]
    widths = [max(len(cell) for cell in column) for column in zip(*map(_cells, shown), strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(_cells(row), widths, strict=True)).rstrip()
        for row in shown
    ]
    return "\n".join([*lines, "", machine.sentence(results["machine"])])


def ms(value: float) -> str:
    return f"{value:,.0f} ms" if value >= 20 else f"{value:.1f} ms"


def times(value: float) -> str:
    return f"{value:.0f}x" if value >= 20 else f"{value:.1f}x"


def _cells(row: Row) -> tuple[str, str, str, str]:
    return row.what, row.ours, row.against, row.ratio


def _line(row: Row) -> str:
    return f"| {' | '.join(_cells(row))} |"
