"""A recipe carried out: measured before and after, reported, written."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from shell.loading import attributions, choose, make_folder, setting
from shell.looking import look
from shell.output import print_agreement, print_figures, print_json, print_table, run_with_progress, to_json

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
    as_json: bool,
) -> None:
    """Compress, measure before and after on the same pictures, report, and write with `out`."""
    from core.evaluation import change, logits
    from core.evaluation import evaluate as measure
    from core.recipe import compress
    from core.weights import save_model

    bundle, dataset = loaded
    pictures = dataset.split(split)
    methods = attributions(attribution) if attribution else {}
    chosen = choose(indices, count, pictures) if methods else []
    if out is not None:
        make_folder(out)
    progress = run_with_progress()
    started = time.monotonic()
    done = compress(bundle.module, setting(bundle, dataset), recipe, progress, figures=figures)
    compressed = done.model
    seconds = time.monotonic() - started
    networks = (bundle.module, compressed)
    answers = [logits(network, pictures, progress) for network in networks]
    before, after = (
        measure(network, pictures, answers=given) for network, given in zip(networks, answers, strict=True)
    )
    moved = change(*answers, pictures.labels)
    report = {
        "model": bundle.architecture.name,
        "data": dataset.name,
        "split": split,
        "recipe": json.loads(recipe.to_json()),
        "before": before.to_dict(),
        "after": after.to_dict(),
        "difference": moved.difference,
        "interval": moved.interval,
        "gained": len(moved.gained),
        "lost": len(moved.lost),
        "gained_images": moved.gained.tolist(),
        "lost_images": moved.lost.tolist(),
        "history": progress.records,
        "seconds": round(seconds, 2),
    }
    if figures:
        report["figures"] = [[figure.to_dict() for figure in shown] for shown in done.figures]
    if methods:
        looked = look(
            bundle.module, compressed, pictures, chosen, methods, "predicted", recipe.seed, progress
        )
        report["agreement"] = looked.agreement
    if out is not None:
        provenance = bundle.provenance | {"compressed_by": report["recipe"]}
        save_model(compressed, out / "model.safetensors", bundle.architecture, dataset, provenance)
        (out / "recipe.json").write_text(recipe.to_json() + "\n")
        (out / "report.json").write_text(to_json(report) + "\n")
    if as_json:
        return print_json(report)
    print(f"{report['model']} on {report['data']}, {split}: before and after")
    print_table([before, after])
    low, high = (f"{100 * end:+.2f}" for end in moved.interval)
    print(f"  {'Gained, lost':20}{report['gained']:>16,}{report['lost']:>16,}")
    print(
        f"  {'Change of accuracy':20}{100 * moved.difference:>+16.2f} points, 95 % interval [{low}, {high}]"
    )
    print_agreement(report.get("agreement", {}))
    for shown in done.figures:
        print_figures(shown)
    return None
