"""A recipe carried out: measured before and after, reported, written."""

from pathlib import Path
from typing import TYPE_CHECKING

from core.as_json import to_json
from shell.loading import attributions, choose, make_folder
from shell.looking import look
from shell.output import print_agreement, print_figures, print_json, print_table, run_with_progress

if TYPE_CHECKING:  # torch takes seconds to load, and `--help` needs none of it
    from core.bundles import DatasetBundle, ModelBundle
    from core.recipe import Recipe


def carry_out(
    loaded: "tuple[ModelBundle, DatasetBundle]",
    recipe: "Recipe",
    split: str,
    out: Path | None,
    attribution: list[str] | None,
    indices: str | None,
    count: int,
    figures: bool,
    device: str,
    as_json: bool,
) -> None:
    """Compress, measure before and after on the same pictures, report, and write with `out`."""
    from core.outcome import carry_out as carry

    bundle, dataset = loaded
    pictures = dataset.split(split)
    methods = attributions(attribution) if attribution else {}
    chosen = choose(indices, count, pictures) if methods else []
    if out is not None:
        make_folder(out)
    progress = run_with_progress(device)
    outcome = carry(bundle, dataset, recipe, split, progress, figures=figures)
    report = outcome.to_dict()
    if figures:
        report["figures"] = outcome.figures_dict()
    if methods:
        networks = bundle.module, outcome.network
        looked = look(*networks, pictures, chosen, methods, "predicted", recipe.seed, progress)
        report["agreement"] = looked.agreement
    if out is not None:
        outcome.save(out, bundle, dataset)
        (out / "report.json").write_text(to_json(report) + "\n")
    if as_json:
        return print_json(report)
    print(f"{report['model']} on {report['data']}, {split}: before and after")
    print_table([outcome.before, outcome.after])
    moved, (low, high) = outcome.change.difference, (f"{100 * end:+.2f}" for end in outcome.change.interval)
    print(f"  {'Gained, lost':20}{report['gained']:>16,}{report['lost']:>16,}")
    print(f"  {'Change of accuracy':20}{100 * moved:>+16.2f} points, 95 % interval [{low}, {high}]")
    print_agreement(report.get("agreement", {}))
    for shown in outcome.figures:
        print_figures(shown)
    return None
