"""Files of weights: what is saved loads again anywhere, and what is not right is refused with a sentence."""

import copy
import io
import json
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from core import weights
from core.bundles import MODELS
from core.checkpoint import KEY, open_checkpoint
from core.errors import CheckpointError, UserError
from core.layers import ChannelShortcut, apply_mask
from core.weights import load_dataset, load_model, load_upload, read_model, save_model, shipped

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture
def mlp(digits):
    torch.manual_seed(0)
    return MODELS["mlp"](hidden=8).build(digits.shape, 10).eval()


@pytest.fixture
def resnet(digits):
    torch.manual_seed(0)
    return MODELS["resnet20"]().build(digits.shape, 10).eval()


def logits(model: nn.Module, digits) -> torch.Tensor:
    with torch.inference_mode():
        return model(digits.test.take(slice(0, 20)).images)


def saved(model, path, name, digits, **parameters) -> Path:
    save_model(model, path / f"{name}.safetensors", MODELS[name](**parameters), digits, {"seed": 7})
    return path / f"{name}.safetensors"


# ------------------------------------------------------------------------------ saving and loading


@pytest.mark.parametrize(
    "name", ["mlp", "small-cnn", "resnet20", "vgg11-bn:width=0.0625", "mobilenetv2:width=0.25"]
)
def test_what_is_saved_loads_again(name, digits, tmp_path):
    torch.manual_seed(0)
    architecture = weights.from_text(MODELS, name)
    model = architecture.build(digits.shape, 10).eval()
    save_model(model, tmp_path / "a.safetensors", architecture, "digits", {"seed": 7, "accuracy": 0.5})
    bundle = load_model(architecture.name, None, tmp_path / "a.safetensors")
    assert torch.equal(logits(bundle.module, digits), logits(model, digits))
    assert (bundle.architecture, bundle.dataset) == (architecture, "digits")
    assert bundle.provenance == {"seed": 7, "accuracy": 0.5}
    assert json.loads((tmp_path / "a.json").read_text()) == bundle.provenance
    assert not bundle.module.training
    assert not any(parameter.requires_grad for parameter in bundle.module.parameters())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.safetensors"]


def test_equal_networks_give_equal_bytes(mlp, digits, tmp_path):
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path in files:
        save_model(mlp, path, MODELS["mlp"](hidden=8), digits, {"seed": 7})
    assert files[0].read_bytes() == files[1].read_bytes()


def compressed(resnet: nn.Module) -> nn.Module:
    """Narrower layers, a factorised one, a block gone, a biased one, shortcuts that pick channels."""
    model = copy.deepcopy(resnet)
    first = model.layer1[0]
    first.conv1 = nn.Conv2d(16, 5, 3, padding=1, bias=False)
    first.bn1, first.conv2 = nn.BatchNorm2d(5), nn.Conv2d(5, 16, 3, padding=1, bias=True)
    model.layer1[2] = nn.Identity()
    del model.layer2[2]
    model.layer3[1].conv1 = nn.Sequential(
        OrderedDict(
            down=nn.Conv2d(64, 3, (3, 1), padding=(1, 0), bias=False),
            up=nn.Conv2d(3, 64, (1, 3), padding=(0, 1)),
        )
    )
    model.layer2[0].shortcut = ChannelShortcut(torch.tensor([3, 1, -1, 0] * 8), 2)
    model.linear = nn.Sequential(nn.Linear(64, 2, bias=False), nn.Linear(2, 10))
    return model.eval()


def test_a_compressed_network_loads_in_a_fresh_process(resnet, digits, tmp_path):
    model = compressed(resnet)
    path = saved(model, tmp_path, "resnet20", digits)
    torch.save(logits(model, digits), tmp_path / "expected.pt")
    code = (
        "import sys, torch; from pathlib import Path; from core.weights import load_dataset, read_model;"
        "torch.set_num_threads(1); folder = Path(sys.argv[1]);"
        "images = load_dataset('digits').test.take(slice(0, 20)).images;"
        "found = read_model(folder / 'resnet20.safetensors').module(images);"
        "assert torch.equal(found, torch.load(folder / 'expected.pt')), 'other logits';"
        "assert 'torch_pruning' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    structure = open_checkpoint(path).about["structure"]
    assert structure["layer2.2"] is None
    assert set(structure) == {
        "layer1.0.conv1", "layer1.0.bn1", "layer1.0.conv2", "layer1.2", "layer2.0.shortcut", "layer2.2",
        "layer3.1.conv1", "linear",
    }  # fmt: skip


def test_an_unchanged_network_needs_no_structure(resnet, digits, tmp_path):
    assert open_checkpoint(saved(resnet, tmp_path, "resnet20", digits)).about["structure"] == {}


def test_masks_are_baked_into_the_file_and_not_into_the_network(mlp, digits, tmp_path):
    keep = torch.arange(mlp.linear1.weight.numel()).view_as(mlp.linear1.weight) % 2 == 0
    apply_mask(mlp.linear1, keep)
    state = load_file(saved(mlp, tmp_path, "mlp", digits, hidden=8))
    assert torch.equal(state["linear1.weight"], mlp.linear1.weight)
    assert (state["linear1.weight"][~keep] == 0).all()
    assert torch.nn.utils.parametrize.is_parametrized(mlp.linear1)


def test_what_a_file_cannot_hold_is_refused_when_saving(mlp, digits, tmp_path):
    mlp.relu1 = nn.GRU(3, 3)
    with pytest.raises(CheckpointError, match=r"relu1 was changed to something .* got GRU"):
        saved(mlp, tmp_path, "mlp", digits, hidden=8)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_computes_otherwise_than_its_file_is_not_saved(mlp, digits, tmp_path):
    mlp.register_forward_hook(lambda module, inputs, output: output + 1)
    with pytest.raises(CheckpointError, match="other logits"):
        saved(mlp, tmp_path, "mlp", digits, hidden=8)
    assert list(tmp_path.iterdir()) == []


def test_a_network_may_look_at_other_data_of_the_same_form(tmp_path):
    data = load_dataset("cluttered-digits")
    model = MODELS["small-cnn"](width=2).build(data.shape, 10).eval()
    save_model(model, tmp_path / "a.safetensors", MODELS["small-cnn"](width=2), data)
    bundle = load_model("small-cnn", "cluttered-digits-shortcut", tmp_path / "a.safetensors")
    assert bundle.dataset == "cluttered-digits-shortcut"
    with pytest.raises(
        CheckpointError, match=r"trained on cluttered-digits, pictures of \(3, 32, 32\) in 10 classes"
    ):
        load_model("small-cnn", "digits", tmp_path / "a.safetensors")


# ---------------------------------------------------------------------------------- shipped networks


def test_shipped_networks_load_and_the_default_comes_first():
    if not shipped():
        pytest.skip("no trained weights in assets/weights")
    first = shipped()[0]
    assert (first.model.name, first.dataset) == weights.DEFAULT
    for item in shipped():
        bundle = load_model(item.model, item.dataset)
        assert bundle.architecture == item.model
        assert bundle.provenance == item.provenance
        assert {"seed", "accuracy", "n", "epochs"} <= item.provenance.keys()
        assert json.loads(item.path.with_suffix(".json").read_text()) == item.provenance
        member, _, dataset = item.path.stem.partition("--")
        assert dataset == item.dataset
        assert member == item.model.name or member.startswith(f"{item.model.name}-")
        assert item.path.stat().st_size < 20_000_000


def test_shipped_weights_are_found_by_name_by_data_and_by_parameters(mlp, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SHIPPED", tmp_path)
    assert shipped() == ()
    with pytest.raises(
        CheckpointError, match=r"mlp: no weights are shipped for digits \(there are: none yet\)"
    ):
        load_model("mlp", "digits")
    save_model(mlp, tmp_path / "mlp--digits.safetensors", MODELS["mlp"](hidden=8), digits)
    for model in ("mlp", "mlp:hidden=8", MODELS["mlp"](hidden=8)):
        assert torch.equal(logits(load_model(model).module, digits), logits(mlp, digits))
    with pytest.raises(CheckpointError, match="there are: mlp on digits"):
        load_model("mlp:hidden=9", "digits")
    with pytest.raises(UserError, match="no data set is called 'digit'; did you mean 'digits'"):
        load_model("mlp", "digit")


# ------------------------------------------------------------------------------------ files of others


def wrap_zip(state, path):
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}, path)


def wrap_old(state, path):
    torch.save(OrderedDict(state), path, _use_new_zipfile_serialization=False)


def wrap_arrays(state, path):
    np.savez_compressed(path, **{name: value.numpy() for name, value in state.items()})


FORMS = {
    "plain.pt": torch.save,
    "wrapped.pth": wrap_zip,
    "old.th": wrap_old,
    "compiled.pt": lambda s, p: torch.save({"model": {f"_orig_mod.{n}": v for n, v in s.items()}}, p),
    "parameters.pt": lambda s, p: torch.save({n: nn.Parameter(v, False) for n, v in s.items()}, p),
    "half.safetensors": lambda s, p: save_file({n: v.half() for n, v in s.items()}, p),
    "double.pt": lambda s, p: torch.save({n: v.double() for n, v in s.items()}, p),
    "arrays.npz": wrap_arrays,
}


@pytest.mark.parametrize("form", FORMS)
def test_state_dicts_of_every_form_load(form, mlp, digits, tmp_path):
    FORMS[form](mlp.state_dict(), tmp_path / form)
    bundle = load_model("mlp:hidden=8", "digits", tmp_path / form)
    tolerance = 1e-2 if form.startswith("half") else 0.0
    assert torch.allclose(logits(bundle.module, digits), logits(mlp, digits), atol=tolerance, rtol=0)
    uploaded = load_upload("mlp:hidden=8", "digits", form, (tmp_path / form).read_bytes())
    assert torch.equal(logits(uploaded.module, digits), logits(bundle.module, digits))


def test_the_counters_of_batch_norm_may_be_missing(resnet, digits, tmp_path):
    state = {name: value for name, value in resnet.state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "a.pt")
    assert torch.equal(
        logits(load_model("resnet20", "digits", tmp_path / "a.pt").module, digits), logits(resnet, digits)
    )


def test_views_of_one_storage_load(mlp, digits, tmp_path):
    state = mlp.state_dict()
    flat = torch.cat([value.flatten() for value in state.values()])
    parts = flat.split([value.numel() for value in state.values()])
    views = {name: part.view_as(value) for (name, value), part in zip(state.items(), parts, strict=True)}
    torch.save(views, tmp_path / "a.pt")
    assert torch.equal(
        logits(load_model("mlp:hidden=8", "digits", tmp_path / "a.pt").module, digits), logits(mlp, digits)
    )


# ------------------------------------------------------------------------------------------- refusals


def refusal(path: Path, model="mlp:hidden=8", data="digits") -> str:
    with pytest.raises(CheckpointError) as error:
        load_model(model, data, path)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("write", [torch.save, save_file, wrap_arrays], ids=["pt", "safetensors", "npz"])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"linear.weight": torch.zeros(100, 8)}, "linear.weight must have shape (10, 8), got (100, 8)"),
        (
            {"linear.weight": torch.zeros(10, 8).long()},
            "linear.weight must hold floating-point numbers, got int64",
        ),
        ({"linear.bias": torch.full((10,), torch.nan)}, "linear.bias must hold finite numbers, got 10 of 10"),
        (
            {"linear.bias": torch.tensor([1.0] * 9 + [torch.inf])},
            "linear.bias must hold finite numbers, got 1 of 10",
        ),
        ({"other.weight": torch.zeros(3, 4)}, "has a tensor other.weight of shape (3, 4), which mlp lacks"),
        ({"linear.bias": None}, "mlp needs a tensor linear.bias of shape (10,)"),
    ],
    ids=["shape", "type", "nan", "inf", "extra", "missing"],
)
def test_a_file_that_does_not_fit_says_which_tensor(write, change, sentence, mlp, digits, tmp_path):
    suffix = {torch.save: "pt", save_file: "safetensors", wrap_arrays: "npz"}[write]
    state = {name: value for name, value in (mlp.state_dict() | change).items() if value is not None}
    write(state, tmp_path / f"a.{suffix}")
    assert sentence in refusal(tmp_path / f"a.{suffix}")


class Bomb:
    """Runs a command where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("form", ["zip", "old", "raw"])
def test_code_in_a_file_is_refused_and_not_run(form, mlp, tmp_path):
    proof = tmp_path / "proof"
    content = {"state_dict": mlp.state_dict(), "bomb": Bomb(proof)}
    if form == "raw":
        (tmp_path / "a.pt").write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=form == "zip")
    assert "holds pickled code (" in refusal(tmp_path / "a.pt") or form == "raw"
    assert not proof.exists()
    with pytest.raises(CheckpointError):
        load_upload("mlp", "digits", "a.pt", (tmp_path / "a.pt").read_bytes())
    assert not proof.exists()


def test_whole_models_and_programs_are_refused(mlp, tmp_path):
    torch.save(mlp, tmp_path / "model.pt")
    assert "holds pickled code (torch.nn.modules" in refusal(tmp_path / "model.pt")
    torch.jit.trace(mlp, torch.zeros(1, 1, 8, 8)).save(tmp_path / "script.pt")
    assert "save model.state_dict() instead" in refusal(tmp_path / "script.pt")
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    assert "pickled objects" in refusal(tmp_path / "objects.npz")
    with pytest.raises(CheckpointError, match=r"must end in .*, got '.pt2'"):
        load_upload("mlp", "digits", "program.pt2", b"PK")


def test_files_that_are_no_state_dicts_are_refused(tmp_path):
    for name, content in {
        "list.pt": [torch.zeros(2)],
        "empty.pt": {},
        "number.pt": {"accuracy": 0.5},
    }.items():
        torch.save(content, tmp_path / name)
        assert "must hold a state dict" in refusal(tmp_path / name)
    (tmp_path / "a.bin").write_bytes(b"hello")
    assert "must end in .safetensors" in refusal(tmp_path / "a.bin")
    assert "is not there" in refusal(tmp_path / "absent.pt")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("note.txt", "hello")
    assert "must be a file that torch.save wrote" in refusal(tmp_path / "other.pt")


@pytest.mark.parametrize("form", FORMS)
def test_cut_off_files_are_refused(form, mlp, tmp_path):
    FORMS[form](mlp.state_dict(), tmp_path / form)
    content = (tmp_path / form).read_bytes()
    for length in (0, 1, 7, 100, len(content) // 2, len(content) - 1):
        (tmp_path / form).write_bytes(content[:length])
        refusal(tmp_path / form)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_files_load_or_are_refused_and_nothing_else(data, mlp, digits, tmp_path):
    form = data.draw(st.sampled_from(list(FORMS)))
    FORMS[form](mlp.state_dict(), tmp_path / form)
    content = bytearray((tmp_path / form).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        bundle = load_upload("mlp:hidden=8", "digits", form, bytes(content))
    except CheckpointError:
        return  # one sentence, as the other tests see
    assert logits(bundle.module, digits).shape == (20, 10)


def test_large_uploads_are_refused_before_they_are_looked_at(tmp_path):
    with pytest.raises(CheckpointError, match=r"a.pt: must have at most 64 MB, got 64.0 MB"):
        load_upload("mlp", "digits", "../a.pt", bytes(weights.UPLOAD_BYTES + 1))
    (tmp_path / "a.pt").write_bytes(bytes(2000))
    with pytest.raises(CheckpointError, match="at most 0 MB"):
        open_checkpoint(tmp_path / "a.pt", most_bytes=1000)


def test_tensors_larger_than_their_file_are_refused_before_anything_is_allocated(tmp_path, monkeypatch):
    """A forged file of the old form that claims four terabytes."""
    stream = io.BytesIO()
    torch.save({"linear.weight": torch.zeros(1000)}, stream, _use_new_zipfile_serialization=False)
    forged = stream.getvalue().replace(pickle.dumps(1000, 2)[2:-1], pickle.dumps(10**12, 2)[2:-1])
    assert forged != stream.getvalue()
    (tmp_path / "a.pt").write_bytes(forged)
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("read"))
    assert "names tensors of 4,000,000,000,000" in refusal(tmp_path / "a.pt")


def test_a_view_beyond_its_storage_is_refused(tmp_path, monkeypatch):
    stream = io.BytesIO()
    torch.save({"linear.weight": torch.zeros(1000)[:7]}, stream, _use_new_zipfile_serialization=False)
    forged = stream.getvalue().replace(b"K\x07\x85", b"M\xff\xff\x85")  # the size (7,) becomes (65535,)
    assert forged != stream.getvalue()
    (tmp_path / "a.pt").write_bytes(forged)
    assert "reaches beyond its 1000 stored numbers" in refusal(tmp_path / "a.pt")


def test_an_archive_that_unpacks_to_more_than_itself_is_refused(mlp, tmp_path):
    torch.save(mlp.state_dict(), tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as archive,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in archive.namelist():
            bomb.writestr(entry, archive.read(entry))
        bomb.writestr("a/data/99", bytes(10_000_000))
    assert "got another archive" in refusal(tmp_path / "b.pt")


# ------------------------------------------------------------------------------ forged descriptions


def forge(path: Path, change) -> Path:
    """The file with its description changed by `change`."""
    about = open_checkpoint(path).about
    change(about)
    save_file(
        load_file(path), forged := path.with_name("forged.safetensors"), metadata={KEY: json.dumps(about)}
    )
    return forged


HUGE = {"type": "Linear", "in_features": 10**12, "out_features": 10**6, "bias": True}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda about: about.update(format=9), "format must be 1, got 9"),
        (lambda about: about.update(shape=[1, 10**6, 10**6]), "cannot be read"),
        (lambda about: about.update(shape="abc"), "cannot be read"),
        (lambda about: about.pop("classes"), "cannot be read"),
        (lambda about: about.update(architecture={"method": "nothing"}), "no model is called 'nothing'"),
        (lambda about: about["architecture"].update(hidden=10**9), "must lie in"),
        (
            lambda about: about["architecture"].update(hidden=9),
            "linear1.weight must have shape (9, 64), got (8, 64)",
        ),
        (lambda about: about.update(structure={"linear1": HUGE}), "must have shape (1000000, 1000000000000)"),
        (
            lambda about: about.update(structure={"linear1": {"type": "LSTM"}}),
            "linear1 must be one of Conv1d",
        ),
        (lambda about: about.update(structure={"linear1": {"type": "Linear"}}), "cannot be read"),
        (lambda about: about.update(structure={"absent": None}), "cannot be read"),
        (lambda about: about.update(structure={"linear1.forward": None}), "cannot be read"),
        (lambda about: about.update(structure=[3]), "cannot be read"),
        (
            lambda about: about.update(structure={"relu1": {"type": "ZeroPad2d", "padding": 10**6}}),
            "sane number",
        ),
    ],
)
def test_forged_descriptions_are_refused(change, sentence, mlp, digits, tmp_path):
    path = forge(saved(mlp, tmp_path, "mlp", digits, hidden=8), change)
    with pytest.raises(CheckpointError) as error:
        load_model("mlp", None, path)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_of_another_network_and_an_unnamed_data_set_are_sentences(mlp, digits, tmp_path):
    path = saved(mlp, tmp_path, "mlp", digits, hidden=8)
    assert refusal(path, "small-cnn", None) == "mlp.safetensors: is a mlp, not a small-cnn"
    torch.save(mlp.state_dict(), tmp_path / "a.pt")
    assert "does not say which data set" in refusal(tmp_path / "a.pt", data=None)
    with pytest.raises(CheckpointError, match="does not say which network"):
        read_model(tmp_path / "a.pt")


# ----------------------------------------------------------------------------------- exported programs


@pytest.mark.slow
def test_exported_programs_load_by_path_and_answer_as_before(mlp, digits, tmp_path):
    example = (digits.test.take(slice(0, 3)).images,)
    dynamic = ({0: torch.export.Dim("n", min=1)},)
    torch.export.save(torch.export.export(mlp, example, dynamic_shapes=dynamic), tmp_path / "a.pt2")
    bundle = load_model("mlp", "digits", tmp_path / "a.pt2")
    assert torch.allclose(logits(bundle.module, digits), logits(mlp, digits), atol=1e-6)
    assert torch.allclose(logits(copy.deepcopy(bundle.module).eval(), digits), logits(mlp, digits), atol=1e-6)
    torch.export.save(torch.export.export(mlp, example), tmp_path / "b.pt2")
    assert "export it with a dynamic batch dimension" in refusal(tmp_path / "b.pt2")
    (tmp_path / "c.pt2").write_bytes(b"hello")
    assert "must be a file that torch.export.save wrote" in refusal(tmp_path / "c.pt2")
