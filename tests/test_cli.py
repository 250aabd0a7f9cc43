"""The shell: what is typed is what is done, JSON alone on stdout, a sentence for every mistake."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import spearmanr
from test_layering import GROWTH

import cli
from core.bundles import DATASETS, MODELS
from core.evaluation import wilson
from core.lab import LABS
from core.method import Choice, Flag, Nested, Number, PerLayer
from core.recipe import COMPRESSORS, Recipe
from core.run import Run
from core.training import Schedule
from core.verification import PROPERTIES
from core.weights import load_dataset, load_model
from shell import options
from shell.commands import compress, train

ROOT = Path(__file__).parents[1]
SHOWING = "low-rank"  # a method with figures


def call(capsys, *words: object) -> dict:
    """The JSON that a command prints, and nothing else, on stdout."""
    assert cli.main([str(word) for word in words] + ["--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def watch_recipes(monkeypatch, done: list[Recipe]) -> None:
    """Let `compress` note its recipes in `done` instead of carrying them out."""
    monkeypatch.setattr(compress, "carry_out", lambda loaded, recipe, *rest: done.append(recipe))
    monkeypatch.setattr(compress, "load", lambda *names: None)


def train_words(out: Path, **settings: object) -> list[str]:
    """A training that takes a second."""
    chosen = {"hidden": 16, "depth": 1, "epochs": 4, "learning-rate": 0.05, "crop": 0, "seed": 3} | settings
    options = [part for name, value in chosen.items() for part in (f"--{name}", str(value))]
    return ["train", "mlp", "--data", "digits", "--no-flip", "--out", str(out), *options]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A small network, trained by the command."""
    out = tmp_path_factory.mktemp("trained")
    assert cli.main(train_words(out)) == 0
    return out / "mlp--digits.safetensors"


def test_a_training_names_its_files_as_asked(tmp_path, capsys):
    call(capsys, *train_words(tmp_path, epochs=1), "--name", "mine")
    assert {path.name for path in tmp_path.iterdir()} == {"mine.safetensors", "mine.json"}


# ------------------------------------------------------------------------------------------- list


def registries() -> list[tuple[str, str]]:
    return [(kind, name) for kind, registry in options.registries().items() for name in registry]


def test_list_shows_every_class_of_every_registry(capsys):
    listed = call(capsys, "list")
    assert set(listed) == set(options.registries())
    shown = [(kind, entry["name"]) for kind, entries in listed.items() for entry in entries]
    assert sorted(shown) == sorted(registries())


def test_list_covers_every_folder_that_grows():
    """A folder of core that holds one class per file is a kind."""
    assert set(options.registries()) == GROWTH


@pytest.mark.parametrize(("kind", "name"), registries())
def test_list_shows_parameters_as_they_are_declared(kind, name, capsys):
    cls = options.registries()[kind][name]
    entry = next(e for e in call(capsys, "list", kind)[kind] if e["name"] == name)
    assert entry["summary"] == cls.summary()
    assert [p["name"] for p in entry["parameters"]] == list(cls.domains())
    for parameter in entry["parameters"]:
        domain = cls.domains()[parameter["name"]]
        assert parameter["help"] == domain.help
        if isinstance(domain, Number):
            assert (parameter["low"], parameter["high"]) == (domain.low, domain.high)
        domain.read(parameter["default"])  # the default lies in its own domain


# ------------------------------------------------------------- options come from the declarations


def another(domain, default):
    """A legal value (typed in the shell, in a recipe) that is not the default, where there is one."""
    match domain:
        case Number(low=low, high=high):
            value = high if default != high else low
            return str(value), value
        case Choice(options=options):
            value = next((o for o in options if o != default), default)
            return value, value
        case Flag():
            return not default, not default
        case Nested(registry=registry):
            value = registry[default]().to_dict()
            return json.dumps(value), value
        case PerLayer(high=high):
            return [f"some.layer={high:g}", f"a={high:g},b={high:g}"], dict.fromkeys(
                ("some.layer", "a", "b"), high
            )


def parameters() -> list[tuple[str, str]]:
    return [(name, field) for name in COMPRESSORS for field in COMPRESSORS[name].domains()]


@pytest.mark.parametrize(("method", "field"), parameters())
def test_what_is_typed_is_what_the_recipe_says(method, field, monkeypatch):
    """Every hyper-parameter of every method, one at a time."""
    done: list[Recipe] = []
    watch_recipes(monkeypatch, done)
    domain, default = options.declarations(COMPRESSORS[method])[field]
    typed, expected = another(domain, default)
    option = options.flag_name(field)
    if isinstance(typed, bool):
        words = [option if typed else "--no-" + option[2:]]
    else:
        words = [word for value in ([typed] if isinstance(typed, str) else typed) for word in (option, value)]
    code = cli.main(["compress", "mlp", method, *words, "--seed", "7"])
    wanted = COMPRESSORS[method].from_dict({field: expected})
    assert code == 0
    assert done == [Recipe((wanted,), 7)]
    assert done[0].steps[0].to_dict()[field] == expected


COMMAND_OPTIONS = {
    *("--data", "--weights", "--split", "--seed", "--out", "--json", "--threads", "--attribution"),
    *(
        "--indices",
        "--count",
        "--target",
        "--bounds",
        "--recipe",
        "--resume",
        "--device",
        "--preset",
        "--help",
    ),
}


@pytest.mark.parametrize(
    "cls", [Schedule, *(COMPRESSORS[n] for n in COMPRESSORS), *(MODELS[n] for n in MODELS)]
)
def test_no_hyper_parameter_is_called_like_an_option_of_the_command(cls):
    assert not {options.flag_name(field) for field in cls.domains()} & COMMAND_OPTIONS


@pytest.mark.parametrize("model", list(MODELS))
def test_schedule_and_architecture_do_not_share_a_name(model):
    assert not Schedule.domains().keys() & MODELS[model].domains().keys()


@pytest.mark.parametrize("name", list(COMPRESSORS))
def test_help_of_a_method_shows_its_options(name, capsys):
    assert cli.main(["compress", "mlp", name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(options.flag_name(field) in shown for field in COMPRESSORS[name].domains())


@pytest.mark.parametrize(
    "typed",
    [
        ["prune-weights", "--sparsity", "0.3", "--scope", "global"],
        ["prune-weights:sparsity=0.3,scope=global"],
        ["prune-weights:sparsity=0.9", "--sparsity", "0.3", "--scope", "global"],
        ['{"method":"prune-weights","sparsity":0.3,"scope":"global"}'],
    ],
    ids=["options", "after a colon", "options win", "JSON"],
)
def test_a_method_can_be_written_in_three_ways(typed, monkeypatch):
    done: list[Recipe] = []
    watch_recipes(monkeypatch, done)
    assert cli.main(["compress", "mlp", *typed]) == 0
    assert done == [Recipe((COMPRESSORS["prune-weights"](sparsity=0.3, scope="global"),), 0)]


def test_options_may_stand_before_the_names(weights, capsys):
    words = ["--sparsity", "0.5", "mlp", "--weights", weights, "prune-weights"]
    early = call(capsys, "compress", *words)
    late = call(capsys, "compress", "mlp", "prune-weights", "--sparsity", "0.5", "--weights", weights)
    assert early["after"] == late["after"]


# ------------------------------------------------------------------------------------- measuring


def test_evaluate_agrees_with_a_plain_loop(weights, capsys):
    shown = call(capsys, "evaluate", "mlp", "--weights", weights)
    test = load_dataset("digits").test
    model = load_model("mlp", None, weights).module
    hits = 0
    for index in range(len(test)):
        image = (test.pixels[index : index + 1].float() / 255 - torch.tensor(test.mean)) / torch.tensor(
            test.std
        )
        hits += int(model(image).argmax() == test.labels[index])
    assert shown["n"] == len(test)
    assert shown["accuracy"] == hits / len(test) > 0.8
    assert shown["interval"][0] < shown["accuracy"] < shown["interval"][1]
    assert shown["parameters"] == 64 * 16 + 16 + 16 * 10 + 10
    assert shown["macs"] == shown["theoretical_macs"] == 64 * 16 + 16 * 10
    promised = {"model", "data", "split", "loss", "sparsity", "nonzero_parameters", "size_bytes"}
    assert promised <= shown.keys()


def test_evaluate_measures_the_split_that_is_asked_for(weights, capsys):
    shown = call(capsys, "evaluate", "mlp", "--weights", weights, "--split", "validation")
    assert (shown["split"], shown["n"]) == ("validation", len(load_dataset("digits").validation))


def test_a_preset_lies_between_what_was_named_and_the_options(monkeypatch):
    done: list[Recipe] = []
    watch_recipes(monkeypatch, done)
    words = ["compress", "mlp", "fine-tuning:batch_size=32", "--preset", "paper", "--epochs", "3"]
    assert cli.main(words) == 0
    (step,) = done[-1].steps
    assert (step.epochs, step.learning_rate, step.schedule, step.batch_size) == (3, 0.001, "constant", 32)


def test_compress_writes_a_network_that_measures_as_reported(weights, tmp_path, capsys):
    words = ("mlp", "--weights", weights)
    report = call(capsys, "compress", *words, "prune-weights", "--sparsity", "0.9", "--out", tmp_path / "new")
    before, after = report["before"], report["after"]
    original = call(capsys, "evaluate", *words)
    assert before.items() <= original.items()
    assert report["gained"] - report["lost"] == round((after["accuracy"] - before["accuracy"]) * before["n"])
    assert (len(report["gained_images"]), len(report["lost_images"])) == (report["gained"], report["lost"])
    assert after["sparsity"] == pytest.approx(0.9, abs=1e-3)
    again = call(capsys, "evaluate", "mlp", "--weights", tmp_path / "new" / "model.safetensors")
    assert after.items() <= again.items()
    assert json.loads((tmp_path / "new" / "report.json").read_text()) == report


def test_run_repeats_what_compress_did(weights, tmp_path, capsys):
    words = ("--weights", weights, "--out")
    first = call(
        capsys,
        "compress",
        "mlp",
        "prune-weights",
        "--criterion",
        "random",
        *words,
        tmp_path / "a",
        "--seed",
        5,
    )
    second = call(capsys, "run", "mlp", tmp_path / "a" / "recipe.json", *words, tmp_path / "b")
    assert second["after"] == first["after"]
    held = [load_file(tmp_path / folder / "model.safetensors") for folder in ("a", "b")]
    assert all(torch.equal(held[0][name], held[1][name]) for name in held[0])


def test_explain_agrees_with_its_own_maps(weights, tmp_path, capsys):
    words = ("mlp", "prune-weights", "--sparsity", "0.8", "--weights", weights, "--attribution", "saliency")
    report = call(capsys, "explain", *words, "--indices", "4,0,9:11", "--out", tmp_path / "maps.npz")
    maps = np.load(tmp_path / "maps.npz")
    before, after = maps["saliency.before"], maps["saliency.after"]
    assert before.shape == after.shape == (4, *load_dataset("digits").shape)
    assert report["images"] == maps["images"].tolist() == [4, 0, 9, 10]
    per_image = report["agreement"]["saliency"]["per_image"]["spearman"]
    strength = (np.abs(maps[f"saliency.{side}"].sum(1)).reshape(4, -1) for side in ("before", "after"))
    expected = [spearmanr(b, a).statistic for b, a in zip(*strength, strict=True)]
    assert per_image == pytest.approx(expected, abs=1e-5)
    assert report["agreement"]["saliency"]["mean"]["spearman"] == pytest.approx(np.mean(expected), abs=1e-5)


# ----------------------------------------------------------------------------------------- verify

RECIPE = ROOT / "docs" / "recipes" / "a-fifth-of-the-weights.json"


def test_verify_says_what_the_property_says(capsys):
    said = call(capsys, "verify", "mlp:hidden=24", "--radius", "0.08", "--images", "3,2")
    data = load_dataset("digits")
    bundle = load_model("mlp:hidden=24", data)
    for row, index in zip(said["pictures"], (3, 2), strict=True):
        expected = PROPERTIES["robustness"](radius=0.08).check(
            bundle.module, data.test.take(slice(index, index + 1)), Run()
        )
        assert row["picture"] == index
        assert row["original"]["status"] == expected.status
        assert [each["other"] for each in row["original"]["findings"]] == list(expected.answers)
    assert [row["original"]["status"] for row in said["pictures"]] == ["proved", "refuted"]
    broken = said["pictures"][1]["original"]["counterexample"]
    assert 0 < broken["distance"] <= 0.08 + 1e-12
    assert np.argmax(broken["logits"]["original"]) != said["pictures"][1]["label"]
    assert said["summary"] == {
        "original": {
            "proved": 1,
            "refuted": 1,
            "unknown": 0,
            "certified": 0.5,
            "interval": list(wilson(1, 2)),
        }
    }


def test_verify_proves_what_a_recipe_makes_with_the_proof_of_the_original(capsys):
    words = ("verify", "mlp:hidden=24", "--recipe", RECIPE, "--radius", "0.08", "--images", "24:26")
    said = call(capsys, *words, "--scratch")
    for row in said["pictures"]:
        assert (
            row["original"]["status"] == row["compressed"]["status"] == row["scratch"]["status"] == "proved"
        )
        assert row["reuse"]["valid"] > 0
        assert row["speed_up"] > 0
    assert 0 < said["summary"]["reuse_rate"] <= 1
    assert said["summary"]["searched"] == 2
    assert [row["reuse"] for row in call(capsys, *words, "--no-reuse")["pictures"]] == [None, None]
    assert cli.main([str(word) for word in words]) == 0
    shown = capsys.readouterr().out
    assert "original: proved 2 of 2 (100%" in shown
    assert "cores hold" in shown


def test_an_unchanged_network_agrees_with_itself(weights, capsys):
    words = ("mlp", "prune-weights", "--sparsity", "0", "--weights", weights)
    report = call(capsys, "compress", *words, "--attribution", "saliency", "--count", "3")
    assert report["before"] == report["after"]
    assert (report["gained"], report["lost"], report["difference"]) == (0, 0, 0.0)
    assert report["agreement"]["saliency"]["mean"]["spearman"] == pytest.approx(1)


def test_diagnose_prints_the_table_of_what_changed(weights, capsys):
    words = ("mlp", "prune-weights", "--sparsity", "0.5", "--weights", weights)
    report = call(capsys, "diagnose", *words)
    assert report["diagnostic"] == {"method": "weight-change"}
    assert [row["sparsity_after"] for row in report["rows"]] == [0.5] * len(report["rows"])
    assert report["recipe"]["steps"][0]["sparsity"] == 0.5


def test_a_step_shows_its_figures_only_when_asked(weights, capsys):
    words = ("compress", "mlp", SHOWING, "--weights", weights)
    assert "figures" not in call(capsys, *words)
    shown = call(capsys, *words, "--figures")["figures"]
    assert all(figure["finding"] and figure["rows"] for figure in shown[0])
    assert shown[0]
    assert cli.main([str(word) for word in words] + ["--figures"]) == 0
    assert shown[0][0]["finding"] in capsys.readouterr().out


@pytest.mark.parametrize("name", list(LABS)[:1])
def test_a_lab_shows_its_figures_and_the_same_again(name, capsys):
    first, again = (call(capsys, "lab", name, "--model", "mlp", "--data", "digits") for _ in range(2))
    assert first == again
    assert first["lab"]["method"] == name
    assert all(figure["finding"] and figure["rows"] for figure in first["figures"])


@pytest.mark.slow
def test_the_published_resnet20_reaches_its_published_accuracy(data_dir, shared_dir, capsys):
    """8.27 % error on all 10,000 test pictures, to the picture."""
    file = shared_dir / "weights" / "resnet20-12fca82f.th"
    shown = call(capsys, "evaluate", "resnet20", "--weights", file, "--data", "cifar10")
    assert (shown["n"], round(shown["accuracy"] * shown["n"])) == (10_000, 9173)
    assert shown["parameters"] == 269_722


# --------------------------------------------------------------------------------------- training


def test_training_writes_how_the_weights_were_made(weights, capsys):
    made = json.loads(weights.with_suffix(".json").read_text())
    measured = call(capsys, "evaluate", "mlp", "--weights", weights)
    for field in ("accuracy", "interval", "n", "parameters"):
        assert made[field] == measured[field]
    assert (made["seed"], made["data"], made["schedule"]["epochs"]) == (3, "digits", 4)
    assert made["model"] == {"method": "mlp", "hidden": 16, "depth": 1}
    assert made["torch"] == torch.__version__
    assert made["threads"] == torch.get_num_threads()


def test_equal_seeds_give_equal_weights(weights, tmp_path):
    assert cli.main(train_words(tmp_path)) == 0
    assert cli.main(train_words(tmp_path / "other", seed=4)) == 0
    first, second, other = (
        load_file(folder / weights.name) for folder in (weights.parent, tmp_path, tmp_path / "other")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_stopped_training_is_resumed_to_the_same_weights(weights, tmp_path, monkeypatch):
    def stop_after_two(run):
        def stop(progress):
            if len(run.records) == 2:
                raise KeyboardInterrupt

        run.on_progress = stop
        return run

    make_run = train.run_with_progress
    monkeypatch.setattr(train, "run_with_progress", lambda device: stop_after_two(make_run()))
    assert cli.main(train_words(tmp_path)) == 130
    assert not (tmp_path / weights.name).exists()
    monkeypatch.setattr(train, "run_with_progress", make_run)
    assert cli.main([*train_words(tmp_path), "--resume"]) == 0
    whole, resumed = load_file(weights), load_file(tmp_path / weights.name)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert {path.name for path in tmp_path.iterdir()} == {weights.name, weights.with_suffix(".json").name}


@pytest.mark.parametrize("settings", [{"seed": 8}, {"epochs": 9}, {"hidden": 8}])
def test_resuming_with_other_settings_is_refused(settings, tmp_path, monkeypatch, capsys):
    def interrupt(*arguments, checkpoint, **rest):
        torch.save({}, checkpoint)
        raise KeyboardInterrupt

    monkeypatch.setattr("core.training.fit", interrupt)
    assert cli.main(train_words(tmp_path)) == 130
    assert cli.main([*train_words(tmp_path, **settings), "--resume"]) == 2
    assert "--resume must have the settings of the stopped run" in capsys.readouterr().err


# --------------------------------------------------------------------------------------- mistakes

MISTAKES = [
    ("compres mlp prune-weights", "Did you mean 'compress'"),
    ("compress mlp prune-weigths --sparsity 0.5", "did you mean 'prune-weights'"),
    ("compress resnet-20 prune-weights", "did you mean 'resnet20'"),
    ("compress mlp prune-weights --sparsity 1.8", "prune-weights: sparsity must lie in [0.0, 1.0], got 1.8"),
    ("compress mlp prune-weights --sparsity half", "prune-weights: sparsity must be a number, got 'half'"),
    ("compress mlp prune-weights --sparsity nan", "prune-weights: sparsity must"),
    ("compress mlp prune-weights --scope everywhere", "scope must be one of layer, global"),
    ("compress mlp prune-weights --criterion magnitud", "did you mean 'magnitude'"),
    ("compress mlp prune-weights --criterion {", "must be a name or JSON"),
    (
        'compress mlp prune-weights --criterion {"method":"magnitude","x":1}',
        "magnitude: no parameter is called 'x'",
    ),
    ("compress mlp prune-weights --layers linear1", "must be LAYER=NUMBER, got 'linear1'"),
    ("compress mlp prune-weights --sparsty 0.5", "No such option: --sparsty"),
    ("compress mlp fine-tuning --preset papr", "no preset is called 'papr'; did you mean 'paper'"),
    ("compress mlp prune-weights --preset paper", "prune-weights: no preset is called 'paper'"),
    ("compress mlp prune-weights --device gpu", "device: must be one of cpu"),
    ("train mlp --data digits --device gpu", "device: must be one of cpu"),
    ("compress mlp prune-weights:sparsty=0.5", "did you mean 'sparsity'"),
    ("compress mlp prune-weights --data cluttered-digits", "was trained on digits"),
    ("compress mlp", "METHOD"),
    ("evaluate mlp --data digit", "did you mean 'digits'"),
    ("verify mlp --radius 0.6", "robustness: radius must lie in [0.0, 0.5], got 0.6"),
    ("verify mlp --property robustnes", "did you mean 'robustness'"),
    ("verify mlp --images 0:999", "indices: must lie in [0, 359], got 0:999"),
    ("verify resnet20 --images 0:1", "proof: "),
    ("evaluate mlp --weights absent.safetensors", "absent.safetensors"),
    ("evaluate mlp --split everything", "everything"),
    ("evaluate mlp --threads 0", "--threads"),
    ("run mlp absent.json", "absent.json"),
    ("explain mlp", "either a METHOD or a --recipe"),
    ("explain mlp prune-weights --attribution saliencies", "did you mean 'saliency'"),
    ("explain mlp prune-weights --indices 1,two", "or ranges a:b with commas between, got '1,two'"),
    ("explain mlp prune-weights --indices 1:2:3:4", "or ranges a:b with commas between, got '1:2:3:4'"),
    ("explain mlp prune-weights --indices 5:5", "indices: must lie in [0, "),
    ("explain mlp prune-weights --indices 0:999999999999", "indices: must lie in [0, "),
    ("explain mlp prune-weights --indices 99999", "indices: must lie in [0, "),
    ("train mlp", "--data"),
    ("train mlp --data digits --epochs 0", "schedule: epochs must lie in [1, 500], got 0"),
    ("train mlp --data digits --hidden 0", "mlp: hidden must lie in [1, 4096], got 0"),
    ("train mlp --data digits --resume --out OUT", "--resume needs the checkpoint of a stopped run"),
    ("download cifar", "did you mean 'cifar10'"),
    ("list method", "did you mean 'methods'"),
]


@pytest.mark.parametrize(("line", "sentence"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_answered_with_one_sentence(line, sentence, weights, tmp_path, capsys):
    words = [str(tmp_path) if word == "OUT" else word for word in line.split(" ")]
    if words[0] in ("compress", "explain", "run") and words[1] == "mlp":
        words += ["--weights", str(weights)]
    assert cli.main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert sentence in shown.err
    assert shown.err.count("\n") == 1


def test_a_layer_that_is_not_there_is_answered_with_the_nearest(weights, capsys):
    words = ["compress", "mlp", "prune-weights", "--layers", "linaer1=0.5", "--weights", str(weights)]
    assert cli.main(words) == 2
    assert "did you mean 'linear1'" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 99}', "\x00\x01", "[" * 100_000])
def test_a_file_that_is_no_recipe_is_answered_with_one_sentence(content, weights, tmp_path, capsys):
    (tmp_path / "recipe.json").write_text(content)
    assert cli.main(["run", "mlp", str(tmp_path / "recipe.json"), "--weights", str(weights)]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: recipe: ")
    assert shown.count("\n") == 1


# -------------------------------------------------------------------------------- as a process


def shell(*words: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "cli.py", *words], cwd=ROOT, capture_output=True, text=True, timeout=300, **options
    )


def test_help_does_not_wait_for_torch():
    code = "import sys, cli; assert cli.main(['--help']) == 0; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert all(command in done.stdout for command in cli.COMMANDS)


def test_idle_threads_sleep_unless_the_user_says_otherwise():
    """OpenMP reads the setting when torch is loaded, so it must be there before."""
    code = "import os, cli; print(os.environ['OMP_WAIT_POLICY'])"
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    for given, expected in (({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active")):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment | given, capture_output=True, text=True
        )
        assert done.stdout.strip() == expected


def test_the_shell_needs_nothing_of_the_app():
    code = (
        "import sys, cli; cli.main(['list']); sys.exit('streamlit' in sys.modules or 'plotly' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0


def test_exit_codes_of_the_process():
    assert shell("list", "methods").returncode == 0
    wrong = shell("list", "nothing")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "Traceback" not in wrong.stderr


def test_a_closed_pipe_is_no_error():
    with subprocess.Popen(
        [sys.executable, "cli.py", "list", "--json"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C reaches a Windows process another way")
def test_ctrl_c_stops_a_training_and_resume_goes_on(tmp_path):
    words = train_words(tmp_path, epochs=500)
    with subprocess.Popen(
        [sys.executable, "cli.py", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job ignores it
    ) as process:
        said = ""
        while "epoch" not in said:  # the first epoch is done, so there is a checkpoint
            said = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, rest = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "--resume" in rest
    assert "Traceback" not in rest
    assert (tmp_path / "mlp--digits.ckpt").exists()


def test_data_can_be_made_before_they_are_needed(tmp_path):
    cache = os.environ | {"PRUNESCOPE_CACHE": str(tmp_path)}
    done = shell("download", "cluttered-digits", "--json", env=cache)
    report = json.loads(done.stdout)
    bundle = DATASETS["cluttered-digits"]().load()
    assert (report["train"], report["test"]) == (len(bundle.train), len(bundle.test))
    assert list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------- atlas


def test_the_atlas_holds_what_compressing_one_layer_alone_gives(capsys, weights, tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNESCOPE_CACHE", str(tmp_path))
    named = ["mlp:hidden=16,depth=1", "--data", "digits", "--weights", weights]
    found = call(capsys, "atlas", *named, "--question", "weights")
    assert found["exact"]
    original = call(capsys, "evaluate", *named)
    assert found["original_accuracy"] == pytest.approx(original["accuracy"])
    assert found["n"] == original["n"]
    layer, accuracies = next(iter(found["accuracy"].items()))
    for level in (2, 8):
        recipe = tmp_path / "recipe.json"
        step = {"method": "prune-weights", "sparsity": 0.0, "layers": {layer: found["sparsities"][level]}}
        recipe.write_text(json.dumps({"format": 1, "seed": 0, "steps": [step]}))
        alone = call(capsys, "run", named[0], recipe, *named[1:])
        assert accuracies[level] == pytest.approx(alone["after"]["accuracy"])


def test_the_atlas_in_words_has_a_line_for_every_slider(capsys, weights, tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNESCOPE_CACHE", str(tmp_path))
    words = ["atlas", "mlp:hidden=16,depth=1", "--data", "digits", "--weights", str(weights)]
    assert cli.main([*words, "--question", "zero"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("mlp on digits, test, n = ")
    assert out[2].split() == [f"{10 * level}%" for level in range(1, 10)]
    assert len(out) == 4
    assert cli.main([*words, "--question", "zeros"]) == 2
    assert "zeros" in capsys.readouterr().err
