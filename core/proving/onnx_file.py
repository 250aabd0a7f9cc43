"""Networks from ONNX files: affine operators and ReLUs, in double precision. A file is not to be trusted."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from core.errors import CheckpointError
from core.proving.network import ReluNetwork
from core.proving.unrolling import LARGEST, Step, assemble

if TYPE_CHECKING:  # onnx takes a while to load
    from onnx import GraphProto, NodeProto, TensorProto

LARGEST_FILE = 256 * 2**20  # bytes
MOST_NODES = 10_000
OPERATORS = (
    "Add, BatchNormalization, Constant, Conv, Div, Dropout, Flatten, Gemm, Identity, MatMul, Mul, Relu, "
    "Reshape, Sub"
)
ARITHMETIC = {"Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": torch.div}

Shape = tuple[int, ...]
Made = tuple[
    Callable[..., Tensor], Shape, bool
]  # what a node does to a batch, its result's shape, keeps sign


def read_onnx(path: Path) -> ReluNetwork:
    """The network in a file, whose one input is a batch of one; inputs and outputs are laid out in a row.

    Numbers are taken as they are stored and reckoned with in double precision.

    Raises:
        CheckpointError: it is no such file, or too large; the sentence names the node.
    """
    graph = _graph(path)
    if len(graph.node) > MOST_NODES:
        raise _refused(path.name, f"at most {MOST_NODES:,} nodes", f"{len(graph.node):,}")
    constants = {tensor.name: _numbers(tensor.name, tensor) for tensor in graph.initializer}
    given = [value for value in graph.input if value.name not in constants]
    if len(given) != 1 or len(graph.output) != 1 or graph.sparse_initializer:
        raise _refused(path.name, "a network of one input and one output, without sparse tensors", "another")
    shapes = {given[0].name: _input_shape(given[0])}
    steps = []
    for node in graph.node:
        _require_order(node, shapes, constants)
        if node.op_type == "Constant":
            constants[node.output[0]] = _constant(node)
            continue
        reads = tuple(name for name in node.input if name in shapes)
        make, shape, keeps_sign = _made(node, shapes, constants)
        steps.append(Step(node.output[0], reads, make, keeps_sign))
        shapes[node.output[0]] = shape
    result = graph.output[0].name
    if result not in shapes:
        raise _refused(path.name, "a network whose output depends on its input", f"output {result!r}")
    shape = torch.Size(shapes[given[0].name][1:])
    return ReluNetwork.of(assemble(given[0].name, steps, result, shape))


# ------------------------------------------------------------------------------------------- the file


def _graph(path: Path) -> "GraphProto":
    import onnx

    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise _refused(path.name, f"a file of at most {LARGEST_FILE:,} bytes", f"{size:,}")
    try:
        return onnx.load_model_from_string(path.read_bytes()).graph
    except Exception as error:  # of the parser's own kinds, which belong to a package below onnx
        raise _refused(path.name, "a network in ONNX format", "a damaged or other file") from error


def _numbers(name: str, tensor: "TensorProto") -> Tensor:
    """A stored tensor, float64, or int64 where it holds whole numbers."""
    from onnx import TensorProto, numpy_helper

    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        raise _refused(name, "stored in the file itself", "a tensor in another file")
    size = math.prod(tensor.dims)
    if min(tensor.dims, default=0) < 0 or size > LARGEST:
        raise _refused(name, f"a tensor of at most {LARGEST:,} numbers", f"{list(tensor.dims)}")
    try:
        value = numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise _refused(name, f"a tensor of {size:,} numbers", "a damaged one") from error
    if value.dtype.kind not in "fi" or not np.isfinite(value).all():
        raise _refused(name, "a tensor of finite numbers", f"NaN, infinity or {value.dtype}")
    return torch.tensor(value.astype(np.int64 if value.dtype.kind == "i" else np.float64))


def _input_shape(value: Any) -> Shape:
    """Of a batch of one; a dimension that only has a name, or 0, is taken as one where it comes first."""
    sizes = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
    sizes[:1] = [size or 1 for size in sizes[:1]]
    if len(sizes) < 2 or sizes[0] != 1 or min(sizes) < 1 or math.prod(sizes) > LARGEST:
        raise _refused(f"input {value.name!r}", "a batch of one of known size", f"{sizes}")
    return tuple(sizes)


def _require_order(node: "NodeProto", shapes: Mapping[str, Shape], constants: Mapping[str, Tensor]) -> None:
    for name in filter(None, node.input):
        if name not in shapes and name not in constants:
            raise _wrong(node, "made of what was made before it", repr(name))
    if len([name for name in node.output if name]) != 1 or not node.output[0]:
        raise _wrong(node, "a node with one output", f"{len(node.output)}")
    if node.output[0] in shapes or node.output[0] in constants:
        raise _wrong(node, "the only one to make its output", repr(node.output[0]))


def _constant(node: "NodeProto") -> Tensor:
    options = _options(node, {"value": None, "value_float": None, "value_int": None})
    given = [value for value in options.values() if value is not None]
    if len(given) != 1:
        raise _wrong(node, "a number or a tensor", "another kind of constant")
    return _numbers(node.output[0], given[0]) if options["value"] is not None else torch.tensor(given[0])


def _options(node: "NodeProto", allowed: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes with their defaults; others, and those of another kind, might change what is meant."""
    from onnx.helper import get_attribute_value

    found = dict(allowed)
    for attribute in node.attribute:
        try:
            value = get_attribute_value(attribute)
        except ValueError as error:
            raise _wrong(node, "a node with plain attributes", repr(attribute.name)) from error
        default = allowed.get(attribute.name, value)
        listed = isinstance(default, list)
        value = list(value) if listed and hasattr(value, "__iter__") else value
        kinds_fit = default is None or type(value) is type(default)
        if kinds_fit and listed:
            kinds_fit = all(type(number) is int for number in value)
        if attribute.name not in allowed or not kinds_fit:
            raise _wrong(node, f"without such an attribute as {attribute.name!r}", "it")
        found[attribute.name] = value
    return found


# ---------------------------------------------------------------------------------------------- nodes


def _made(node: "NodeProto", shapes: Mapping[str, Shape], constants: Mapping[str, Tensor]) -> Made:
    """What a node does to batches of what it reads, and the shape that comes of a batch of one."""
    kind = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
    read = [name for name in node.input if name in shapes]
    if not read:
        raise _wrong(node, "a node that reads the input", "constants only")
    shape = shapes[read[0]]
    if kind in ARITHMETIC:
        return _arithmetic(node, shapes, constants)
    if read != list(node.input[:1]):
        raise _wrong(node, "of one value and constants behind it", f"inputs {list(node.input)}")
    others = [constants[name] if name else None for name in node.input[1:]]
    match kind:
        case "Relu":
            return "relu", shape, True
        case "Identity" | "Dropout":
            return (lambda x: x), shape, True
        case "Flatten" | "Reshape":
            shape = _shaped(node, shape, others)
            return partial(_reshape, shape=shape[1:]), shape, True
        case "MatMul" | "Gemm":
            return _product(node, shape, others)
        case "Conv":
            return _convolution(node, shape, others)
        case "BatchNormalization":
            return _batch_norm(node, shape, others)
    raise _wrong(node, f"one of {OPERATORS}", kind)


def _arithmetic(node: "NodeProto", shapes: Mapping[str, Shape], constants: Mapping[str, Tensor]) -> Made:
    if len(node.input) != 2:
        raise _wrong(node, "of two inputs", f"{len(node.input)}")
    first, second = node.input
    operation = ARITHMETIC[node.op_type]
    if first in shapes and second in shapes:
        if node.op_type not in ("Add", "Sub") or first == second or shapes[first] != shapes[second]:
            raise _wrong(node, "a sum or difference of two values of one shape", f"{first!r} and {second!r}")
        return operation, shapes[first], node.op_type == "Add"
    value = shapes[first] if first in shapes else shapes[second]
    number = (constants[second] if first in shapes else constants[first]).double()
    if second in shapes and node.op_type == "Div":
        raise _wrong(node, "affine", "a division by what depends on the input")
    if node.op_type == "Div" and (number == 0).any():
        raise _wrong(node, "a division by other numbers than 0", "0")
    if not _fits(number.shape, value):
        raise _wrong(node, f"with numbers that fit the shape {list(value)}", f"{list(number.shape)}")
    if first in shapes:
        return (lambda x: operation(x, number)), value, False
    return (lambda x: operation(number, x)), value, False


def _fits(shape: torch.Size, like: Shape) -> bool:
    """Can numbers of this shape be spread over `like` without making it larger?"""
    ends = zip(reversed(shape), reversed(like), strict=False)
    return len(shape) <= len(like) and all(size in (1, whole) for size, whole in ends)


def _shaped(node: "NodeProto", shape: Shape, others: list[Tensor | None]) -> Shape:
    if node.op_type == "Flatten":
        axis = _options(node, {"axis": 1})["axis"]
        new = (math.prod(shape[:axis]), math.prod(shape[axis:]))
        if axis == 0:
            return new
    else:
        options = _options(node, {"allowzero": 0})
        wanted = others[0].tolist() if len(others) == 1 and others[0].dim() == 1 else None
        if wanted is None or options["allowzero"] or len(wanted) < 2 or len(wanted) > 8:
            raise _wrong(node, "a change to a shape of 2 to 8 given sizes", "another")
        new = tuple(shape[i] if size == 0 and i < len(shape) else size for i, size in enumerate(wanted))
        if new.count(-1) == 1:
            known = -math.prod(new)
            new = tuple(math.prod(shape) // known if size == -1 and known > 0 else size for size in new)
    if new[0] != 1 or min(new) < 1 or math.prod(new) != math.prod(shape):
        raise _wrong(node, f"a change of the shape {list(shape)} within a batch of one", f"{list(new)}")
    return new


def _reshape(x: Tensor, shape: Shape) -> Tensor:
    return x.reshape(len(x), *shape)


def _product(node: "NodeProto", shape: Shape, others: list[Tensor | None]) -> Made:
    options = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0} if node.op_type == "Gemm" else {}
    options = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0} | _options(node, options)
    matrix = options["alpha"] * others[0].double() if others else torch.zeros(0)
    matrix = matrix.T if options["transB"] and matrix.dim() == 2 else matrix
    if matrix.dim() != 2 or options["transA"] or shape[-1] != len(matrix):
        raise _wrong(node, f"a product of {list(shape)} and a matrix that fits", f"{list(matrix.shape)}")
    after = (*shape[:-1], matrix.shape[1])
    bias = torch.zeros(())
    if len(others) > 1 and others[1] is not None:
        bias = options["beta"] * others[1].double()
    if not _fits(bias.shape, after) or math.prod(after) > LARGEST:
        raise _wrong(node, f"with an offset that fits {list(after)}", f"{list(bias.shape)}")
    return (lambda x: x @ matrix + bias), after, False


def _convolution(node: "NodeProto", shape: Shape, others: list[Tensor | None]) -> Made:
    defaults = {"dilations": [1, 1], "group": 1, "kernel_shape": [], "pads": [0] * 4, "strides": [1, 1]}
    options = _options(node, defaults | {"auto_pad": b"NOTSET"})
    kernel = others[0].double() if others else torch.zeros(0)
    bias = others[1].double() if len(others) > 1 and others[1] is not None else None
    top, left, bottom, right = pads = options["pads"] if len(options["pads"]) == 4 else [-1] * 4
    steps, gaps, groups = options["strides"], options["dilations"], options["group"]
    fits = (
        kernel.dim() == 4
        and len(shape) == 4
        and options["auto_pad"] in (b"NOTSET", b"VALID")
        and (options["auto_pad"] == b"NOTSET" or not any(pads))
        and options["kernel_shape"] in ([], list(kernel.shape[2:]))
        and len(steps) == len(gaps) == 2
        and min(*steps, *gaps, groups) >= 1
        and 0 <= min(pads) <= max(pads) < 1000
        and shape[1] == kernel.shape[1] * groups
        and len(kernel) % groups == 0
        and (bias is None or bias.shape == kernel.shape[:1])
    )
    if not fits:
        raise _wrong(node, "a convolution of pictures with a kernel and padding that fit", "another")
    sides = (shape[2] + top + bottom, shape[3] + left + right)
    spans = [gap * (size - 1) + 1 for gap, size in zip(gaps, kernel.shape[2:], strict=True)]
    out = [(side - span) // step + 1 for side, span, step in zip(sides, spans, steps, strict=True)]
    after = (1, len(kernel), *out)
    if min(out) < 1 or max(math.prod(after), shape[1] * math.prod(sides)) > LARGEST // 100:
        raise _wrong(node, f"of {LARGEST // 100:,} numbers at most, and at least one", f"{list(after)}")

    def make(x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (left, right, top, bottom)), kernel, bias, steps, 0, gaps, groups)

    return make, after, False


def _batch_norm(node: "NodeProto", shape: Shape, others: list[Tensor | None]) -> Made:
    options = _options(node, {"epsilon": 1e-5, "momentum": 0.9, "training_mode": 0, "spatial": 1})
    numbers = [other.double() for other in others if other is not None]
    fits = len(numbers) == 4 and all(other.shape == shape[1:2] for other in numbers)
    if not fits or options["training_mode"] or not options["spatial"] or (numbers[3] < 0).any():
        raise _wrong(node, "a batch norm with four numbers for every channel, not in training", "another")
    scale, shift, mean, variance = numbers
    epsilon = options["epsilon"]
    return (lambda x: F.batch_norm(x, mean, variance, scale, shift, eps=epsilon)), shape, False


def _wrong(node: "NodeProto", wanted: str, got: str) -> CheckpointError:
    return _refused(f"node {node.name or node.output[:1] or '?'} ({node.op_type})", wanted, got)


def _refused(who: str, wanted: str, got: str) -> CheckpointError:
    return CheckpointError(f"onnx: {who} must be {wanted}, got {got}")
