"""A folder is a registry: what is dropped in is found, by shell and engine, with no list to extend."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from tiny import ROOT

from core.criterion import CRITERIA
from core.errors import UnknownNameError, UserError
from core.registry import Registry, unknown

HEADER = '''
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch

from core.{module} import {registry}, {base}
from core.layers import prunable
from core.method import number


@{registry}.register
@dataclass(frozen=True)
class Dropped{base}({base}):
    """Dropped into the folder by a test.

    Source: this test, 2026.
    """

    name: ClassVar[str] = "dropped-{name}"
    grain: ClassVar[str] = "filter"
    strength: float = number(0.5, 0.0, 1.0, 0.1, help="How strong it is")
'''

BODIES = {
    ("criteria", "criterion", "CRITERIA", "Criterion"): """
    def scores(self, model, setting, run):
        return {name: torch.arange(len(layer.weight)).float() for name, layer in prunable(model).items()}
""",
    ("methods", "recipe", "COMPRESSORS", "Compressor"): """
    def apply(self, model, setting, run):
        for layer in prunable(model).values():
            layer.weight.data *= self.strength
        return model
""",
    ("attributions", "attribution", "ATTRIBUTIONS", "AttributionMethod"): """
    def attribute(self, model, images, targets, run):
        return self.strength * images
""",
    ("diagnostics", "diagnosis", "DIAGNOSTICS", "Diagnostic"): """
    def measure(self, before, after, setting, run):
        return pd.DataFrame({"layer": list(prunable(before)), "strength": self.strength})
""",
}  # (folder, module, registry, base) -> what the author of a new file writes below its declaration

USE = """
import sys

import torch

from core.attribution import ATTRIBUTIONS, explain
from core.bundles import MODELS, Setting, Split
from core.criterion import CRITERIA, rank
from core.diagnosis import DIAGNOSTICS
from core.recipe import COMPRESSORS, Recipe, compress
from core.run import Run

folders = ("core.criteria.", "core.methods.", "core.attributions.", "core.diagnostics.")
assert not [module for module in sys.modules if module.startswith(folders)]  # imported on first use

split = Split(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), (0.5,), (0.5,))
model = MODELS["small-cnn"](width=2).build((1, 8, 8), 3).eval()
setting = Setting(split, split, model)
scores = rank(CRITERIA["dropped-criterion"](), model, setting).scores
assert scores["conv1"].tolist() == [0, 1]
recipe = Recipe.from_json('{"format": 1, "steps": [{"method": "dropped-compressor", "strength": 0.25}]}')
smaller = compress(model, setting, recipe).model
assert torch.equal(smaller.linear.weight, model.linear.weight / 4)
method = ATTRIBUTIONS["dropped-attributionmethod"](strength=1.0)
assert torch.equal(explain(model, method, split.images, split.labels), split.images)
table = DIAGNOSTICS["dropped-diagnostic"]().measure(model, smaller, setting, Run())
assert list(table.layer) == list(scores)
print("works")
"""


@pytest.fixture(scope="module")
def copy_with_new_files(tmp_path_factory):
    """A copy of the engine and the shell in which every growth folder has one file more."""
    folder = tmp_path_factory.mktemp("copy")
    for part in ("core", "shell"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    for (where, module, registry, base), body in BODIES.items():
        text = HEADER.format(module=module, registry=registry, base=base, name=base.lower()) + body
        (folder / "core" / where / f"dropped_{base.lower()}.py").write_text(text)
    return folder


def python(folder, *arguments):
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_one_new_file_in_a_folder_is_enough_for_the_engine(copy_with_new_files):
    assert python(copy_with_new_files, "-c", USE) == "works\n"


@pytest.mark.slow
def test_one_new_file_in_a_folder_is_listed_by_the_shell_with_its_hyper_parameters(copy_with_new_files):
    listed = json.loads(python(copy_with_new_files, "cli.py", "list", "--json"))
    assert {where for where, *_ in BODIES} < set(listed)
    for where, _, _, base in BODIES:
        entry = next(e for e in listed[where] if e["name"] == f"dropped-{base.lower()}")
        assert entry["summary"] == "Dropped into the folder by a test."
        assert [parameter["name"] for parameter in entry["parameters"]] == ["strength"]


def test_names_are_sorted_and_wrong_ones_suggest_the_nearest():
    assert list(CRITERIA) == sorted(CRITERIA)
    for wrong, right in {"filter_l1": "filter-l1", "Magnitude": "magnitude", "taylr": "taylor"}.items():
        with pytest.raises(
            UnknownNameError, match=rf"no criterion is called '{wrong}'; did you mean '{right}'\\?"
        ):
            CRITERIA[wrong]
    assert issubclass(UnknownNameError, UserError)


@pytest.mark.parametrize("name", ["", "zzz", None, 3, ["zzz"], "x" * 10_000])
def test_names_that_resemble_nothing_get_the_whole_list(name):
    assert name not in CRITERIA
    with pytest.raises(UnknownNameError, match="known: average-percentage-of-zeros, ") as caught:
        CRITERIA[name]
    assert len(str(caught.value)) < 400


def test_the_list_of_an_empty_folder_says_none():
    assert unknown("property", "x", []) == "no property is called 'x'; known: none"


def test_two_classes_of_one_name_are_a_mistake_and_a_reloaded_one_replaces_itself():
    registry = Registry("core.criteria", "criterion")
    first = type("First", (), {"name": "same"})
    second = type("Second", (), {"name": "same"})
    registry.register(first)
    with pytest.raises(ValueError, match="two criterion classes are called 'same'"):
        registry.register(second)
    reloaded = registry.register(type("First", (), {"name": "same"}))
    registry._loaded = True
    assert registry["same"] is reloaded


def test_a_file_that_fails_to_load_fails_again_with_its_own_error(tmp_path, monkeypatch):
    package = tmp_path / "broken_folder"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "wrong.py").write_text("raise SyntaxError('of the author')")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry("broken_folder", "thing")
    for _ in range(2):
        with pytest.raises(SyntaxError, match="of the author"):
            list(registry)
    assert not registry._loaded
