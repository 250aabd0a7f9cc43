"""Networks and properties from files: read as others read them, refused in a sentence; verdicts as known."""

import contextlib
import csv
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import cli
from bench import instances
from core.errors import CheckpointError, UserError
from core.proving import onnx_file, vnnlib
from core.proving.instance import settle
from core.proving.onnx_file import read_onnx
from core.proving.vnnlib import PropertyFileError, questions, read_vnnlib

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def published(shared_dir, tmp_path_factory) -> dict[str, Path]:
    """Name -> unpacked file, of all three archives."""
    folder = shared_dir / "verification"
    if not folder.is_dir():
        pytest.skip(f"no verification files in {shared_dir}")
    out = tmp_path_factory.mktemp("published")
    for name in instances.ARCHIVES.values():
        with zipfile.ZipFile(folder / name) as archive:
            archive.extractall(out / name.removesuffix(".zip"))
    return {path.name: path for path in out.rglob("*") if path.suffix in (".onnx", ".vnnlib")}


@pytest.fixture(scope="module")
def verdicts(shared_dir) -> dict[tuple[str, str], str]:
    with open(shared_dir / "verification" / "verdicts_2021.csv", newline="") as file:
        return {(row["network"], row["property"]): row["verdict"] for row in csv.DictReader(file)}


def numbers(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def saved(path: Path, nodes: list, constants: dict[str, np.ndarray], shape: list, opset: int = 15) -> Path:
    """A file with a network from "x" to "y"."""
    graph = helper.make_graph(
        nodes,
        "made here",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def assert_reads(path: Path, shape: tuple[int, ...], count: int = 5) -> None:
    """The judge is the evaluator that comes with the format."""
    network, judge = read_onnx(path), ReferenceEvaluator(str(path))
    for _ in range(count):
        x = numbers(*shape)
        (wanted,) = judge.run(None, {judge.input_names[-1]: x})
        got = network(torch.tensor(x).flatten()[None])[0].numpy()
        assert np.abs(got - wanted.ravel()).max() <= 2e-5 * max(1.0, np.abs(wanted).max())


# ------------------------------------------------------------------------------------------- networks

node = helper.make_node
NETWORKS = {
    "Gemm": (
        [node("Gemm", ["x", "w", "b"], ["y"], alpha=0.5, beta=2.0, transB=1)],
        {"w": (3, 4), "b": (3,)},
        (1, 4),
    ),
    "Gemm without offset": ([node("Gemm", ["x", "w"], ["y"])], {"w": (4, 3)}, (1, 4)),
    "MatMul, Add": (
        [node("MatMul", ["x", "w"], ["a"]), node("Add", ["b", "a"], ["r"]), node("Relu", ["r"], ["y"])],
        {"w": (4, 3), "b": (3,)},
        (1, 4),
    ),
    "arithmetic": (
        [
            node("Sub", ["x", "b"], ["a"]),
            node("Sub", ["b", "a"], ["c"]),
            node("Mul", ["s", "c"], ["d"]),
            node("Div", ["d", "b"], ["e"]),
            node("Add", ["e", "x"], ["f"]),
            node("Sub", ["f", "d"], ["y"]),
        ],
        {"b": (1, 3), "s": ()},
        (1, 3),
    ),
    "shapes": (
        [
            node("Constant", [], ["s"], value=numpy_helper.from_array(np.array([0, -1, 2, 3]), "s")),
            node("Reshape", ["x", "s"], ["a"]),
            node("Conv", ["a", "k"], ["b"], kernel_shape=[2, 2]),
            node("Flatten", ["b"], ["c"], axis=-3),
            node("Identity", ["c"], ["d"]),
            node("Dropout", ["d"], ["y"]),
        ],
        {"k": (2, 2, 2, 2)},
        (1, 12),
    ),
    "Conv": (
        [
            node(
                "Conv", ["x", "k", "b"], ["a"],
                pads=[0, 1, 2, 1], strides=[2, 1], dilations=[1, 2], group=2, kernel_shape=[3, 2],
            ),
            node("Relu", ["a"], ["r"]),
            node("Flatten", ["r"], ["y"]),
        ],
        {"k": (6, 2, 3, 2), "b": (6,)},
        (1, 4, 6, 7),
    ),
    "BatchNormalization": (
        [node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"], epsilon=1e-3)],
        {"s": (3,), "b": (3,), "m": (3,), "v": (3,)},
        (1, 3, 2, 2),
    ),
    "residual": (
        [
            node("Conv", ["x", "k"], ["a"], pads=[1] * 4),
            node("Relu", ["a"], ["r"]),
            node("Conv", ["r", "k"], ["c"], pads=[1] * 4),
            node("Relu", ["c"], ["d"]),
            node("Conv", ["d", "k"], ["e"], pads=[1] * 4),
            node("Add", ["e", "r"], ["f"]),
            node("Relu", ["f"], ["y"]),
        ],
        {"k": (2, 2, 3, 3)},
        (1, 2, 4, 4),
    ),
    "an offset first in the order": (
        [node("Add", ["b", "x"], ["a"]), node("Relu", ["a"], ["y"])], {"b": (1, 2, 3)}, (1, 2, 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_answer_as_the_reference_says(name, tmp_path):
    nodes, sizes, shape = NETWORKS[name]
    constants = {key: np.abs(numbers(*size)) + np.float32(0.5) for key, size in sizes.items()}
    assert_reads(saved(tmp_path / "net.onnx", nodes, constants, list(shape)), shape)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("ACASXU_run2a_3_4_batch_2000.onnx", (1, 1, 1, 5)),
        ("mnist-net_256x4.onnx", (1, 784, 1)),
        ("cifar_base_kw.onnx", (1, 3, 32, 32)),
        ("resnet_2b.onnx", (1, 3, 32, 32)),
    ],
)
def test_published_networks_answer_as_the_reference_says(name, shape, published):
    assert_reads(published[name], shape, count=2)


def test_an_unnamed_batch_is_a_batch_of_one(tmp_path):
    nodes = [node("Gemm", ["x", "w"], ["y"])]
    network = read_onnx(saved(tmp_path / "net.onnx", nodes, {"w": numbers(4, 2)}, ["batch", 4]))
    assert (network.inputs, network.outputs) == (4, 2)


REFUSED = {
    "Sigmoid": (
        [node("Sigmoid", ["x"], ["y"], name="squash")], {}, [1, 4], r"node squash \(Sigmoid\) .* one of Add",
    ),
    "other domain": ([node("Relu", ["x"], ["y"], domain="com.own")], {}, [1, 4], "com.own.Relu"),
    "product of values": ([node("Mul", ["x", "x"], ["y"])], {}, [1, 4], "sum or difference"),
    "sum of one": ([node("Add", ["x"], ["y"])], {}, [1, 4], "of two inputs, got 1"),
    "division by a value": ([node("Div", ["w", "x"], ["y"])], {"w": (4,)}, [1, 4], "affine"),
    "wrong matrix": ([node("MatMul", ["x", "w"], ["y"])], {"w": (3, 4)}, [1, 4], "matrix that fits"),
    "unknown name": ([node("Relu", ["z"], ["y"])], {}, [1, 4], "made before it, got 'z'"),
    "made twice": ([node("Relu", ["x"], ["y"]), node("Relu", ["x"], ["y"])], {}, [1, 4], "only one to make"),
    "cycle": ([node("Relu", ["y"], ["a"]), node("Relu", ["a"], ["y"])], {}, [1, 4], "made before it"),
    "no output": ([node("Relu", ["x"], ["z"])], {}, [1, 4], "depends on its input, got output 'y'"),
    "batch of two": ([node("Relu", ["x"], ["y"])], {}, [2, 4], "a batch of one"),
    "unknown size": ([node("Relu", ["x"], ["y"])], {}, [1, "n"], "a batch of one of known size"),
    "huge input": ([node("Relu", ["x"], ["y"])], {}, [1, 10**12], "a batch of one of known size"),
    "huge padding": (
        [node("Conv", ["x", "w"], ["y"], pads=[10**9] * 4)], {"w": (1, 1, 1, 1)}, [1, 1, 2, 2], "that fit",
    ),
    "large convolution": (
        [node("Conv", ["x", "w"], ["y"], pads=[900] * 4)], {"w": (1, 1, 1, 1)}, [1, 1, 2, 2], "at most",
    ),
    "padding by name": (
        [node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER")], {"w": (1, 1, 1, 1)}, [1, 1, 2, 2], "fit",
    ),
    "spread": ([node("Add", ["x", "w"], ["y"])], {"w": (5, 1, 4)}, [1, 4], "numbers that fit the shape"),
    "across the batch": (
        [node("Reshape", ["x", "s"], ["y"])], {"s": np.array([2, 2])}, [1, 4], "within a batch of one",
    ),
    "other attribute": ([node("Flatten", ["x"], ["y"], way=1)], {}, [1, 4], "such an attribute as 'way'"),
    "attribute of another kind": (
        [node("Conv", ["x", "w"], ["y"], pads=1.5)], {"w": (1, 1, 1, 1)}, [1, 1, 2, 2], "as 'pads'",
    ),
    "NaN": ([node("Add", ["x", "w"], ["y"])], {"w": np.full(4, np.nan, np.float32)}, [1, 4], "finite"),
    "text": ([node("Add", ["x", "w"], ["y"])], {"w": np.array(["a"], object)}, [1, 4], "finite numbers"),
    "zero": ([node("Div", ["x", "w"], ["y"])], {"w": np.zeros(4, np.float32)}, [1, 4], "than 0"),
    "too large": (
        [node("MatMul", ["x", "w"], ["a"]), node("Relu", ["a"], ["r"]), node("Mul", ["r", "v"], ["y"])],
        {"w": np.ones((1, 7000), np.float32), "v": np.ones(7000, np.float32)}, [1, 1], "at most 40,000,000",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_refused_with_a_sentence(name, tmp_path):
    nodes, constants, shape, said = REFUSED[name]
    values = {
        key: value if isinstance(value, np.ndarray) else numbers(*value) for key, value in constants.items()
    }
    path = saved(tmp_path / "net.onnx", nodes, values, shape)
    with pytest.raises(UserError, match=said) as caught:
        read_onnx(path)
    assert " must be " in str(caught.value)


def test_several_inputs_are_refused(tmp_path):
    graph = helper.make_graph(
        [node("Add", ["x", "z"], ["y"])],
        "two",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in "xz"],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    (tmp_path / "net.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(CheckpointError, match="one input and one output"):
        read_onnx(tmp_path / "net.onnx")


def test_tensors_elsewhere_are_not_looked_for(tmp_path):
    """A file may not make the reader open others."""
    path = saved(tmp_path / "net.onnx", [node("Add", ["x", "w"], ["y"])], {"w": numbers(4)}, [1, 4])
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="stored in the file itself"):
        read_onnx(path)


@pytest.mark.parametrize("sizes", [[10**6, 10**6], [5], [-4], [2**40, 2**40]])
def test_tensors_that_are_not_as_large_as_they_say_are_refused(sizes, tmp_path):
    path = saved(tmp_path / "net.onnx", [node("Add", ["x", "w"], ["y"])], {"w": numbers(4)}, [1, 4])
    model = onnx.load(path)
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend(sizes)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=r"w must be a tensor of"):
        read_onnx(path)


@pytest.mark.parametrize("seed", range(40))
def test_damaged_files_are_refused_or_read(seed, tmp_path):
    """Bytes changed at random: a sentence, or a network; never anything else."""
    path = saved(tmp_path / "net.onnx", *NETWORKS["residual"][:1], {"k": numbers(2, 2, 3, 3)}, [1, 2, 4, 4])
    random, data = np.random.default_rng(seed), bytearray(path.read_bytes())
    for place in random.integers(len(data), size=1 + seed % 8):
        data[place] = random.integers(256)
    path.write_bytes(bytes(data[: random.integers(1, len(data) + 1)]) if seed % 3 == 0 else bytes(data))
    with contextlib.suppress(UserError):
        assert torch.isfinite(read_onnx(path).weights[0]).all()


def test_files_too_large_are_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "LARGEST_FILE", 10)
    monkeypatch.setattr(vnnlib, "LARGEST_FILE", 10)
    (tmp_path / "f").write_text("(assert (<= X_0 1))")
    with pytest.raises(CheckpointError, match="at most 10 bytes, got 19"):
        read_onnx(tmp_path / "f")
    with pytest.raises(PropertyFileError, match="at most 10 bytes, got 19"):
        read_vnnlib(tmp_path / "f", 1, 1)


# ----------------------------------------------------------------------------------------- properties

DECLARED = "".join(f"(declare-const {kind}_{i} Real)" for kind in "XY" for i in range(2))
BOX = "(assert (and (>= X_0 -1) (<= X_0 1) (<= 0 X_1) (<= X_1 2.5e-1)))"


def property_file(tmp_path: Path, text: str) -> Path:
    (tmp_path / "prop.vnnlib").write_text(text)
    return tmp_path / "prop.vnnlib"


def cases_of(tmp_path: Path, text: str) -> list[vnnlib.Case]:
    return read_vnnlib(property_file(tmp_path, DECLARED + "\n" + text), 2, 2)


def test_assertions_become_cases(tmp_path):
    (case,) = cases_of(
        tmp_path, BOX + "; a comment (with brackets\n(assert (<= Y_0 Y_1)) (assert (>= Y_1 3))"
    )
    assert (case.low.tolist(), case.high.tolist()) == ([-1.0, 0.0], [1.0, 0.25])
    assert case.rows.tolist() == [[1.0, -1.0], [0.0, -1.0]]
    assert case.offsets.tolist() == [0.0, -3.0]


def test_linear_terms_are_read(tmp_path):
    text = "(assert (<= (+ (* 2 Y_0) (- Y_1) 1) (- 4 (* Y_1 0.5) Y_0))) (assert (= Y_0 1))"
    (case,) = cases_of(tmp_path, BOX + text)
    assert case.rows.tolist() == [[3.0, -0.5], [1.0, 0.0], [-1.0, 0.0]]
    assert case.offsets.tolist() == [3.0, 1.0, -1.0]


def test_every_part_of_an_or_is_a_case_of_its_own(tmp_path):
    text = """(assert (or (and (<= X_0 0) (<= Y_0 1)) (and (>= X_0 0.5) (or (<= Y_1 1) (<= Y_1 Y_0)))))
    (assert (or (<= Y_0 5) (>= X_1 1)))"""
    found = cases_of(tmp_path, BOX + text)  # X_1 >= 1 lies outside the box
    assert [(case.low[0].item(), case.high[0].item(), case.rows.shape[0]) for case in found] == [
        (-1.0, 0.0, 2), (0.5, 1.0, 2), (0.5, 1.0, 2),
    ]  # fmt: skip


def test_cases_describe_the_counterexamples_of_the_formula(tmp_path):
    """Points against a plain evaluation of the same formula, in Python's words."""
    text = (
        "(assert (or (and (<= Y_0 Y_1) (>= Y_0 -1)) (<= (+ Y_0 Y_1) -0.5) (and (>= X_0 0.2) (<= Y_1 0.1))))"
    )
    found = cases_of(tmp_path, BOX + text)
    random = torch.Generator().manual_seed(0)
    for x, y in zip(*(4 * torch.rand(2, 2000, 2, generator=random, dtype=torch.float64) - 2), strict=True):
        boxed = bool(-1 <= x[0] <= 1 and 0 <= x[1] <= 0.25)
        unsafe = -1 <= y[0] <= y[1] or y.sum() <= -0.5 or (x[0] >= 0.2 and y[1] <= 0.1)
        told = any(
            bool((x >= case.low).all() and (x <= case.high).all() and (case.rows @ y <= case.offsets).all())
            for case in found
        )
        assert told == (boxed and bool(unsafe))


def test_questions_ask_for_all_rows_at_once(tmp_path):
    path = saved(tmp_path / "net.onnx", [node("Relu", ["x"], ["y"])], {}, [1, 2])
    cases = cases_of(tmp_path, BOX + "(assert (<= Y_0 0.5)) (assert (>= Y_1 0.2))")
    (question,) = questions(read_onnx(path), cases)
    for x, unsafe in (([0.4, 0.21], True), ([0.6, 0.21], False), ([0.4, 0.1], False), ([0.4, 0.3], False)):
        assert question.violated_by(torch.tensor(x, dtype=torch.float64)) == unsafe


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("(assert (<= X_0 Y_0))", "line 2: must be a comparison of inputs or of outputs, got both"),
        ("(assert (<= 1 2))", "line 2: must be .*, got neither"),
        (
            "\n(assert (<= X_0 X_1))",
            "line 3: must be a bound of one input: only boxes are read, got 2 inputs",
        ),
        ("(assert (< Y_0 1))", "line 2: must be and, or, <=, >= or =, got <"),
        ("(assert (not (<= Y_0 1)))", "got not"),
        ("(assert (<= (* Y_0 Y_1) 1))", "must be linear"),
        ("(assert (<= Y_0 abc))", "finite number or a variable X_i or Y_j, got abc"),
        ("(assert (<= Y_0 nan))", "finite number"),
        ("(assert (<= Y_0 1e999))", "finite number"),
        ("(assert (<= Y_2 1))", "one of the network's X_0 to X_1 or Y_0 to Y_1, got Y_2"),
        ("(assert (<= Y_00 1))", "one of the network's"),
        ("(assert (<= Y_0 1)", "closed by a bracket"),
        (")", "an expression in brackets"),
        ("check-sat", "an expression in brackets"),
        ("(push 1)", "declare-const NAME Real, or assert, got push"),
        ("()", "declare-const NAME Real, or assert"),
        ("(assert)", "got assert"),
        ("(declare-const Y_0 Real)", "declared once"),
        ("(assert (or))", "got or"),
        ("(" * 200 + ")" * 200, "at most 100 brackets deep"),
        ("(assert (<= (* 0 X_0) 1))", "got a factor of 0"),
        ("(assert (<= Y_0 1))", "must bound every input from both sides, got X_0 free"),
        (BOX, "must say which outputs are unsafe"),
        (BOX + 12 * "(assert (or (<= Y_0 1) (<= Y_1 1)))", "at most 2,000 cases"),
    ],
)
def test_what_is_not_read_is_refused_with_its_line(text, said, tmp_path):
    with pytest.raises(PropertyFileError, match=said):
        cases_of(tmp_path, text)


def test_a_property_of_another_network_is_refused(tmp_path):
    path = property_file(tmp_path, DECLARED + BOX + "(assert (<= Y_0 1))")
    with pytest.raises(PropertyFileError, match="declare the 3 Y of the network, got 2"):
        read_vnnlib(path, 2, 3)
    (tmp_path / "prop.vnnlib").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PropertyFileError, match="must be text"):
        read_vnnlib(path, 2, 2)


def test_a_property_without_inputs_holds(tmp_path):
    """A box that is empty has no counterexample."""
    path = saved(tmp_path / "net.onnx", [node("Relu", ["x"], ["y"])], {}, [1, 2])
    cases = cases_of(tmp_path, BOX + "(assert (>= X_0 2)) (assert (<= Y_0 1))")
    assert cases == []
    assert settle(read_onnx(path), cases, 1.0).status == "proved"


def test_without_time_nothing_is_known(tmp_path):
    path = saved(tmp_path / "net.onnx", [node("Relu", ["x"], ["y"])], {}, [1, 2])
    cases = cases_of(tmp_path, BOX + "(assert (or (<= Y_0 -1) (<= Y_1 -1)))")
    found = settle(read_onnx(path), cases, 0.0)
    assert (found.status, found.reason, len(found.answers)) == ("unknown", "time is over", 2)
    assert settle(read_onnx(path), cases, 5.0).status == "proved"


# ------------------------------------------------------------------------------- published instances

FAST = [
    *((f"ACASXU_run2a_{net}_batch_2000.onnx", f"prop_{number}.vnnlib") for net, number in (
        ("1_1", 1), ("1_2", 4), ("1_3", 2), ("1_7", 2), ("1_8", 4), ("1_9", 3), ("2_2", 3), ("2_4", 2),
        ("2_7", 1), ("3_2", 2), ("3_4", 3), ("4_4", 2), ("4_8", 3), ("5_6", 2), ("5_8", 4),
    )),
    ("mnist-net_256x2.onnx", "prop_0_0.03.vnnlib"),
    ("mnist-net_256x2.onnx", "prop_12_0.05.vnnlib"),
    ("mnist-net_256x2.onnx", "prop_13_0.03.vnnlib"),
    ("cifar_base_kw.onnx", "cifar_base_kw-img1598-eps0.0026143790849673205.vnnlib"),
]  # fmt: skip


@pytest.mark.parametrize(("network", "property_"), FAST)
def test_verdicts_are_the_published_ones(network, property_, published, verdicts):
    """Both kinds; a counterexample is one to onnx's own evaluator, too."""
    found_in = read_onnx(published[network])
    cases = read_vnnlib(published[property_], found_in.inputs, found_in.outputs)
    found = settle(found_in, cases, 20.0)
    assert found.status == instances.PUBLISHED[verdicts[network, property_]]
    if found.status == "refuted":
        judge = ReferenceEvaluator(str(published[network]))
        shape = [d.dim_value or 1 for d in judge.input_types[-1].tensor_type.shape.dim]
        x = found.counterexample.numpy()
        y = torch.tensor(
            judge.run(None, {judge.input_names[-1]: x.astype(np.float32).reshape(shape)})[0]
        ).flatten()
        case = cases[next(number for number, answer in found.answers.items() if answer.status == "refuted")]
        assert (case.rows @ y.double() <= case.offsets + 1e-4).all()


def test_the_bench_counts_and_goes_on(published, shared_dir, tmp_path, capsys):
    """A stopped run asks only for what is missing, and contradictions are counted."""
    out = tmp_path / "lines.jsonl"
    words = ["acasxu", "--every", "40", "--seconds", "20", "--bits", "8", "--out", str(out)]
    instances.main(words)
    lines = out.read_text().splitlines()
    assert len(lines) == 5
    out.write_text("\n".join(lines[:3]) + "\n")
    instances.main(words)
    assert len(out.read_text().splitlines()) == 5
    told = instances.table(instances.read(out))
    assert (told["instances"], told["finished"], told["wrong"], told["verdicts that differ"]) == (5, 5, 0, 0)
    first = json.loads(lines[0])
    out.write_text(
        json.dumps(first | {"verdict": "violated" if first["status"] == "proved" else "holds"}) + "\n"
    )
    assert instances.table(instances.read(out))["wrong"] == 1
    instances.main(["--table", str(out)])
    assert "wrong" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------- shell


def call(capsys, *words: object) -> dict:
    assert cli.main([str(word) for word in words] + ["--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path]:
    """max(x0, x1, 0) - 0.6, and the property that it stays below 0.5."""
    nodes = [node("Sub", ["x", "s"], ["a"]), node("Relu", ["x"], ["b"]), node("Gemm", ["b", "w"], ["y"])][1:]
    path = saved(tmp_path / "net.onnx", nodes, {"w": np.array([[1.0], [-1.0]], np.float32)}, [1, 2])
    declared = "".join(f"(declare-const {name} Real)" for name in ("X_0", "X_1", "Y_0"))
    return path, property_file(tmp_path, declared + BOX + "(assert (>= Y_0 1.1))")


def test_a_proof_from_a_shell(files, capsys):
    told = call(capsys, "verify-onnx", *files, "--seconds", 5)
    assert (told["network"], told["property"], told["status"]) == ("net.onnx", "prop.vnnlib", "proved")
    assert "counterexample" not in told
    assert cli.main(["verify-onnx", *map(str, files)]) == 0
    assert "proved" in capsys.readouterr().out


def test_a_counterexample_from_a_shell(files, capsys):
    files[1].write_text(files[1].read_text().replace("1.1", "0.9"))
    told = call(capsys, "verify-onnx", *files, "--seconds", 5)
    assert told["status"] == "refuted"
    (x, unused), (y,) = (told["counterexample"][what] for what in ("inputs", "outputs"))
    assert y >= 0.9
    assert y == pytest.approx(max(x, 0) - max(unused, 0))
    assert cli.main(["verify-onnx", *map(str, files)]) == 0
    assert "inputs: " in capsys.readouterr().out


@pytest.mark.parametrize("second", [("--bits", 8), ("--sparsity", 0.1), ("--onnx", "same")])
def test_a_second_network_is_helped(second, published, capsys):
    network = published["ACASXU_run2a_1_2_batch_2000.onnx"]
    second = [network if word == "same" else word for word in second]
    told = call(capsys, "verify-onnx", network, published["prop_4.vnnlib"], *second, "--scratch")
    assert told["status"] == told["compressed"]["status"] == told["scratch"]["status"] == "proved"
    reuse = told["compressed"]["reuse"]
    assert reuse["parts"] == reuse["valid"] + reuse["broken"] + reuse["unchecked"] > 1
    assert told["compressed"]["work"]["boxes"] >= reuse["valid"] + reuse["broken"]
    assert told["speed_up"] > 0
    if second[0] == "--onnx":
        assert reuse["rate"] == 1.0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["NET", "missing.vnnlib"], "missing.vnnlib"),
        (["PROP", "PROP"], "onnx: prop.vnnlib must be a network in ONNX format"),
        (["NET", "NET"], "net.onnx"),
        (["NET", "PROP", "--bits", "8", "--sparsity", "0.5"], "one of --onnx, --bits, --sparsity"),
        (["NET", "PROP", "--bits", "1"], "bits"),
        (["NET", "PROP", "--onnx", "OTHER"], "both networks must have 2 inputs and 1 outputs, got 2 and 2"),
    ],
)
def test_bad_requests_end_with_a_sentence(words, said, files, tmp_path, capsys):
    other = saved(tmp_path / "other.onnx", [node("Relu", ["x"], ["y"])], {}, [1, 2])
    names = {"NET": files[0], "PROP": files[1], "OTHER": other}
    assert cli.main(["verify-onnx", *(str(names.get(word, word)) for word in words)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert said in shown.err
