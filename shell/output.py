"""What the shell says: results on stdout, for people or as JSON, and progress on stderr."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from core.as_json import to_json

if TYPE_CHECKING:  # torch takes seconds to load, and `--help` needs none of it
    from core.atlas import Atlas
    from core.evaluation import Evaluation
    from core.figure import Figure
    from core.leaderboard import Leaderboard
    from core.realised import Realised
    from core.run import Run


def print_json(value: Any) -> None:
    print(to_json(value))


def print_report(report: Mapping[str, Any], as_json: bool, hide: Sequence[str] = ()) -> None:
    """`report` as JSON, or one line per entry for people."""
    if as_json:
        return print_json(report)
    for name, value in report.items():
        if name not in hide:
            print(f"  {name.replace('_', ' '):20} {_in_words(value)}")
    return None


def _in_words(value: Any) -> str:
    match value:
        case float():
            return f"{value:.4f}"
        case bool() | str():
            return str(value)
        case int():
            return f"{value:,}"
        case list() | tuple():
            return "[" + ", ".join(_in_words(item) for item in value) + "]"
    return str(value)


def print_table(evaluations: "Sequence[Evaluation]") -> None:
    """One line per metric, one column per network."""

    def show(value: Any, form: str) -> str:
        return "-".join(f"{end:{form}}" for end in value) if isinstance(value, tuple) else f"{value:{form}}"

    for name, metric in evaluations[0].metrics().items():
        columns = (f"{show(getattr(e, name), metric.format):>16}" for e in evaluations)
        print(f"  {metric.label:20}{''.join(columns)} {metric.unit}".rstrip())


def print_agreement(agreement: Mapping[str, Mapping[str, Any]]) -> None:
    """One line per attribution method and measure, with the bounds that it is read between."""
    if not agreement:
        return
    from core.agreement import Agreement

    for name, found in agreement.items():
        print(f"  {name}, agreement on {found['compared']} pictures")
        for measure, metric in Agreement.metrics().items():
            parts = [f"{metric.label:20}{found['mean'][measure]:>14{metric.format}}"]
            for end in ("noise_ceiling", "random_floor"):
                if end in found:
                    parts.append(f"{end.replace('_', ' ')} {found[end][measure]:{metric.format}}")
            print("    " + "   ".join(parts))


def print_latency(found: "Realised") -> None:
    """One line per form of a network: multiply-adds on paper, time in fact."""
    first = found.table.iloc[0]
    print(f"  one batch of {first.batch} pictures, {first.threads} threads; median, fastest and slowest")
    for row in found.table.itertuples():
        spread = f"[{row.low_ms:.2f}, {row.high_ms:.2f}]"
        print(f"  {row.name:12}{row.macs:>16,} MACs{row.median_ms:>10.2f} ms  {spread}")
    if found.why:
        print(f"  {found.why}")


def print_atlas(found: "Atlas") -> None:
    """One line per slider, one column per sparsity: points of accuracy gained or lost."""
    print(
        f"  original {found.original_hits / max(found.n, 1):.1%}; points lost or gained by one slider alone"
    )
    width = max(map(len, found.sliders), default=0)
    print(f"  {'':{width}}" + "".join(f"{sparsity:>8.0%}" for sparsity in found.sparsities))
    for name, row in zip(found.sliders, found.change.tolist(), strict=True):
        print(f"  {name:{width}}" + "".join(f"{100 * change:>+8.1f}" for change in row))


def print_standings(board: "Leaderboard") -> None:
    """One line per contestant and sparsity: means over seeds; best accuracy first within a sparsity."""
    about = board.about
    ends = " to ".join(f"{about[end]['spearman']:.3f}" for end in ("random_floor", "noise_ceiling"))
    print(
        f"  original {about['original']['accuracy']:.1%}, n = {about['n']:,}; agreement of maps from {ends}"
    )
    columns = ["accuracy", "low", "high", "spearman", "overlap", "auc", "mass_inside", "macs", "seconds"]
    table = board.standings()
    for asked, part in table.groupby("asked"):
        print(f"\n  {asked:.0%} asked for, {part.seeds.max()} seeds")
        shown = part.sort_values("accuracy", ascending=False)
        shown = shown[["contestant", *(column for column in columns if column in shown)]]
        lines = shown.to_string(index=False, float_format=lambda value: f"{value:.3f}").splitlines()
        print("\n".join(f"  {line}" for line in lines))
    for label, why in {row["contestant"]: row["refused"] for row in board.rows if row["refused"]}.items():
        print(f"\n  {label}: {why}")


def print_figures(figures: "Sequence[Figure]") -> None:
    """Every figure as its title, its finding and its table."""
    for figure in figures:
        print(f"\n{figure.title}\n  {figure.finding}\n")
        table = figure.table.drop(columns=figure.x) if figure.mark == "pictures" else figure.table
        table = table.to_string(index=False, float_format=lambda value: f"{value:.4g}")
        print("\n".join(f"  {line}" for line in table.splitlines()))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run_with_progress(device: str = "cpu") -> "Run":
    """A run that tells stderr how far it is: a moving line in a terminal, a line at times in a file."""
    from core.run import Run, require_device

    progress = Run(device=require_device(device))
    said = {"rows": 0, "time": time.monotonic(), "message": ""}
    terminal = sys.stderr.isatty()

    def tell(state: Any) -> None:
        for row in progress.records[said["rows"] :]:
            line = "  ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in row.items())
            say(("\r\033[K" if terminal else "") + line)
        said["rows"] = len(progress.records)
        now = time.monotonic()
        if now - said["time"] < (0.1 if terminal else 10) and state.fraction < 1:
            return
        said["time"] = now
        line = f"{state.fraction:4.0%} {state.message}"
        if terminal:
            print(f"\r\033[K{line}", end="\n" if state.fraction == 1 else "", file=sys.stderr, flush=True)
        elif line != said["message"]:
            said["message"] = line
            say(line)

    progress.on_progress = tell
    return progress
