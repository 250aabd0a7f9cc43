"""Who may import whom: pages -> view -> core, cli -> core, and inside core the growth folders stand alone."""

import ast
from pathlib import Path

import pytest
from tiny import ROOT

FRONT_END = {"streamlit", "plotly", "view", "pages", "app", "cli", "shell", "typer"}
FORBIDDEN = {
    "core": FRONT_END,
    "view": {"pages", "app", "cli", "shell", "typer"},
    "pages": {"torch", "torchvision", "captum", "torch_pruning", "app", "cli", "shell", "typer"},
    "cli.py": {"streamlit", "plotly", "view", "pages", "app"},
    "shell": {"streamlit", "plotly", "view", "pages", "app", "cli"},
}  # part of the project -> top-level modules that it must not import
FAMILIES = {"datasets", "models"}  # several entries may share a file and a base class
PARTS = {"proving"}  # folders of plain files
GROWTH = {path.parent.name for path in (ROOT / "core").glob("*/__init__.py")} - PARTS


def files(part: str) -> list[Path]:
    path = ROOT / part
    return [path] if path.suffix else sorted(path.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Every module that `path` imports, anywhere in it, with the names taken from it as submodules."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute, so that this test can read them"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def crossings(path: Path, found: set[str]) -> set[str]:
    """Growth-folder modules of another file that `path`, a file of `core`, imports."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    own = ".".join(parts[:2] if parts[1] in FAMILIES else parts)
    inside = {name for name in found if name.split(".")[0] == "core" and len(name.split(".")) > 2}
    return {name for name in inside if name.split(".")[1] in GROWTH and not name.startswith(own)}


@pytest.mark.parametrize("part", FORBIDDEN)
def test_imports_point_from_pages_to_view_to_core(part):
    assert files(part)
    for path in files(part):
        wrong = {name for name in imports(path) if name.split(".")[0] in FORBIDDEN[part]}
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_nothing_in_core_imports_the_inside_of_a_growth_folder():
    """Criteria, methods and the rest are reached through their registries only, even by their siblings."""
    assert {
        "criteria",
        "methods",
        "attributions",
        "diagnostics",
        "properties",
        "labs",
        "objectives",
        "datasets",
        "models",
    } == GROWTH
    for path in files("core"):
        wrong = crossings(path, imports(path))
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_the_rules_would_be_noticed_if_broken():
    found = {"core.methods.prune_weights", "core.methods.prune_weights.PruneWeights", "core.layers.bake"}
    path = ROOT / "core" / "methods" / "prune_filters.py"
    assert len(crossings(path, found)) == 2
    assert "streamlit" in FORBIDDEN["core"]
    assert {"ast", "pathlib", "pathlib.Path", "pytest", "tiny"} <= imports(Path(__file__))
