"""Make the networks in assets/matched: the shipped ResNet-20 pruned for labels, and for its maps as well.

`python -m tools.matched` takes eight minutes of one processor thread. The files hold numbers at half
precision; what is measured is the network as it is read back.
"""

import argparse
import json
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from bench.matching import measure
from core.as_json import to_json
from core.bundles import DatasetBundle, ModelBundle, Setting
from core.cost import cost
from core.drift import SHIPPED
from core.recipe import COMPRESSORS, Compressor, Recipe, compress
from core.weights import load_dataset, load_model, read_model, save_model

SPARSITIES = (0.5, 0.75, 0.9, 0.97)
OBJECTIVES = {"naive": "labels", "matched": {"method": "attribution-matching", "variant": "SWA"}}
SCHEDULE = {"epochs": 3, "images": 4096, "learning_rate": 0.1, "bfloat16": True}
SEED = 0


def step(sparsity: float, objective: object) -> Compressor:
    return COMPRESSORS["iterative-pruning"](sparsity=sparsity, rounds=1, objective=objective, **SCHEDULE)


def chain(bundle: ModelBundle, data: DatasetBundle, training: str, folder: Path) -> list[dict]:
    """Prune further and further, write every network into `folder`, and measure what was written."""
    setting, network, rows = Setting(data.train, data.validation, bundle.module), bundle.module, []
    steps = [step(sparsity, OBJECTIVES[training]) for sparsity in SPARSITIES]
    for index, sparsity in enumerate(SPARSITIES):
        # equal to one recipe of all steps so far: the step at `index` always has this seed
        network = compress(network, setting, Recipe((steps[index],), SEED + index)).model
        recipe = json.loads(Recipe(tuple(steps[: index + 1]), SEED).to_json())
        path = folder / f"{training}-{sparsity:.2f}.safetensors"
        provenance = bundle.provenance | {"compressed_by": recipe, "numbers": "rounded to half precision"}
        save_model(network, path, bundle.architecture, data, provenance)
        halve(path)
        kept = read_model(path).module
        rows.append(row(training, sparsity, kept, bundle, data) | {"recipe": recipe})
        print(training, sparsity, {k: round(v, 3) for k, v in rows[-1].items() if isinstance(v, float)})
    return rows


def row(training: str, sparsity: float, network: nn.Module, bundle: ModelBundle, data: DatasetBundle) -> dict:
    costs = cost(network, data.test.take(slice(0, 1)).images)
    about = {"training": training, "sparsity": sparsity, "model": bundle.architecture.name, "data": data.name}
    about |= {"nonzero_parameters": costs.nonzero_parameters, "zipped_bytes": costs.zipped_bytes}
    found = measure(network, bundle.module, data.test)
    return about | {name: round(value, 5) for name, value in found.items()}


def halve(path: Path) -> None:
    """Round the numbers of a file to half precision, in place; what the file says of itself stays."""
    with safe_open(path, "pt") as file:
        about = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
    save_file({n: t.half() if t.is_floating_point() else t for n, t in state.items()}, path, about)


def main() -> None:
    top = argparse.ArgumentParser(prog="python -m tools.matched", description=__doc__.splitlines()[0])
    top.add_argument("--out", type=Path, default=SHIPPED)
    out = top.parse_args().out
    torch.set_num_threads(1)
    data, bundle = load_dataset("cluttered-digits"), load_model("resnet20", "cluttered-digits")
    rows = [row("original", 0.0, bundle.module, bundle, data)]
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder, zipfile.ZipFile(out / "networks.zip", "w") as packed:
        for training in OBJECTIVES:
            rows += chain(bundle, data, training, Path(folder))
        for path in sorted(Path(folder).glob("*.safetensors")):
            named = zipfile.ZipInfo(path.name)  # without the time, so that equal networks give equal bytes
            packed.writestr(named, path.read_bytes(), zipfile.ZIP_DEFLATED, 9)
    (out / "records.json").write_text(to_json(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
