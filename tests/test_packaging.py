"""What a fresh clone relies on: requirements, make targets, the CI entry, what README promises."""

import ast
import json
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROGRAM = ["app.py", "cli.py", "shell", "core", "view", "pages"]
TESTS = ["tests", "tools"]
BENCH = ["bench"]
FILES = ["requirements.txt", "requirements-test.txt", "requirements-bench.txt"]


def sources(places: list[str]) -> list[Path]:
    return [
        f
        for place in places
        for f in ([ROOT / place] if place.endswith(".py") else (ROOT / place).rglob("*.py"))
    ]


def imported(files: list[Path]) -> set[str]:
    """Top-level names of every module that the files import."""
    found = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    own = {path.stem for path in ROOT.iterdir()} | {path.stem for path in (ROOT / "tests").rglob("*.py")}
    return found - set(sys.stdlib_module_names) - own


def distributions(modules: set[str]) -> set[str]:
    """The packages that provide these modules."""
    providers = metadata.packages_distributions()
    return {
        normal(providers[module][0]) if module in providers else f"(unknown) {module}" for module in modules
    }


def required(*files: str) -> set[str]:
    return {normal(requirement.name) for file in files for requirement in requirements(file)}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(file: str) -> list[Requirement]:
    lines = (line.split("#")[0].strip() for line in (ROOT / file).read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def tracked() -> list[Path]:
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git checkout, so nobody knows which files belong to it")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


def test_the_program_imports_what_it_requires_and_requires_what_it_imports():
    assert distributions(imported(sources(PROGRAM))) == required("requirements.txt")


def test_tests_import_only_what_is_required():
    known = required("requirements.txt", "requirements-test.txt")
    assert distributions(imported(sources(TESTS))) - {"packaging"} <= known  # pytest brings packaging


def test_measurements_import_what_they_require_beside_the_program_and_require_what_they_import():
    pytest.importorskip("onnxruntime", reason="`make bench` installs it")
    brought = {"onnxscript"}  # torch imports it to write the file that onnxruntime reads
    apart = {"auto_LiRPA"}  # asks for an old torch: bench/bounds.py says how to have it all the same
    found = distributions(imported(sources(BENCH)) - apart) - required("requirements.txt")
    assert found | brought == required("requirements-bench.txt")


@pytest.mark.parametrize("file", FILES)
def test_what_is_installed_lies_in_the_required_range(file):
    if file == "requirements-bench.txt":
        pytest.importorskip("onnxruntime", reason="`make bench` installs it")
    for requirement in requirements(file):
        version = metadata.version(requirement.name)
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement} but {version}"
        assert len(requirement.specifier) == 2, f"{requirement} needs a lower and an upper bound"


def test_every_requirement_is_explained():
    text = (ROOT / "docs" / "development.md").read_text()
    for file in FILES:
        for requirement in requirements(file):
            assert f"`{requirement.name}`" in text, requirement.name


def test_no_package_index_is_written_down():
    """Which index packages come from is the business of whoever installs."""
    for file in (*FILES, "Makefile", ".ci/run", "pyproject.toml"):
        text = (ROOT / file).read_text()
        assert not re.search(r"--(extra-)?index-url|--find-links|INDEX_URL|https?://", text), file


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
@pytest.mark.parametrize("target", ["run", "install", "test", "lint", "bench"])
def test_make_knows_the_target_and_the_makefile_says_what_it_does(target):
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"^# make {target} ", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_says_so_when_there_is_no_python(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements.txt").touch()
    done = subprocess.run(["make", "install", "PYTHON="], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "Prunescope needs Python 3.11 or newer" in done.stderr


def test_ci_entry_is_an_executable_script_without_syntax_errors():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True).returncode == 0


def test_the_repository_stays_small():
    """Weights and pictures that ship are small; data sets and environments are never committed."""
    files = tracked()
    assert max(file.stat().st_size for file in files) < 12e6
    assert sum(file.stat().st_size for file in files) < 60e6


def test_files_and_pages_that_the_documents_link_to_exist():
    for document in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        prose = re.sub(r"```.*?```|`[^`\n]*`", "", document.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose):
            if not target.startswith(("http:", "https:", "mailto:")):
                assert (document.parent / target).exists(), f"{document.name} links to {target}"


def shell_lines(document: str) -> list[str]:
    """The `python cli.py ...` commands of a document's code blocks."""
    blocks = re.findall(r"```\w*\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.lstrip("$ ") for line in lines if re.match(r"(\$ )?\.?\S*python cli\.py ", line)]


def test_options_that_readme_types_exist(capsys):
    import cli

    lines = shell_lines("README.md")
    assert len(lines) >= 4
    for line in lines:
        words = line.split(" cli.py ")[1].split("#")[0].split()
        assert cli.main([*words, "--help"]) == 0
        shown = capsys.readouterr().out
        for option in (word.split("=")[0] for word in words if word.startswith("--")):
            assert option in shown, f"{option} of: {line}"


def test_the_table_of_shipped_networks_says_what_was_measured():
    table = (ROOT / "docs" / "models.md").read_text()
    files = sorted((ROOT / "assets" / "weights").glob("*.json"))
    assert files
    for file in files:
        made = json.loads(file.read_text())
        model, _, data = file.stem.partition("--")
        low, high = made["interval"]
        row = f"| {made['accuracy']:.2%} | {low:.1%} - {high:.1%} | {made['n']:,} | {made['epochs']} |"
        assert f"| {model} | {data} | {made['parameters']:,} | {made['macs']:,} {row}" in table
        assert made["command"] in table
