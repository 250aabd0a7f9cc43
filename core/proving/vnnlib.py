"""Properties from VNN-LIB files: in which box of inputs which outputs are unsafe.

A file is a list of assertions that together describe a counterexample. Read are bounds of single inputs
X_i, linear comparisons of outputs Y_j, and any nesting of `and` and `or` over them; an `or` becomes a case
for every part. Not read are comparisons that mix inputs and outputs, or several inputs, and strict ones.

Source: VNN-LIB, https://www.vnnlib.org; Demarchi, Guidotti, Pulina and Tacchella, "Supporting
Standardization of Neural Networks Verification with VNN-LIB and CoCoNet", FoMLAS 2023.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from core.errors import UserError
from core.proving.network import ReluNetwork
from core.proving.question import Question

LARGEST_FILE = 64 * 2**20  # bytes
MOST_CASES = 2_000
DEEPEST = 100  # brackets in brackets


class PropertyFileError(UserError, ValueError):
    """A VNN-LIB file cannot be read, or asks for what is not read here."""


@dataclass(frozen=True, eq=False)
class Case:
    """Unsafe are the outputs y with rows @ y <= offsets, all of them, of an input between low and high."""

    low: Tensor  # (I,) float64
    high: Tensor
    rows: Tensor  # (R, K)
    offsets: Tensor  # (R,)


def read_vnnlib(path: Path, inputs: int, outputs: int) -> list[Case]:
    """The cases of a property about networks with so many inputs and outputs.

    It holds if there is no counterexample in any of them. A case whose box is empty is left out.

    Raises:
        PropertyFileError: it cannot be read, or says more than cases can.
    """
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise PropertyFileError(f"{path.name}: must have at most {LARGEST_FILE:,} bytes, got {size:,}")
    try:
        text = path.read_text()
    except UnicodeDecodeError as error:
        raise PropertyFileError(f"{path.name}: must be text, got other bytes") from error
    return _Reader(path.name, inputs, outputs).cases(text)


def questions(network: ReluNetwork, cases: Sequence[Case]) -> list[Question]:
    """Is there no counterexample? One question for every case; all must be proved."""
    return [Question(network.then(case.rows, case.offsets), case.low, case.high) for case in cases]


class _Atom(NamedTuple):
    """numbers @ variables <= bound, over inputs (kind "X") or outputs ("Y")."""

    kind: str
    numbers: tuple[tuple[int, float], ...]  # place of the variable, its factor
    bound: float
    line: int


class _Word(str):
    """A word of the file that knows its line."""

    line: int


class _List(list):
    """What stands between two brackets, and the line of the first."""

    line: int = 0


class _Reader:
    def __init__(self, name: str, inputs: int, outputs: int) -> None:
        self._name = name
        self._sizes = {"X": inputs, "Y": outputs}
        self._declared: set[str] = set()

    def cases(self, text: str) -> list[Case]:
        ways: list[list[_Atom]] = [[]]  # a counterexample goes one of these ways
        for command in self._commands(text):
            match command:
                case ["declare-const", name, "Real"] | ["declare-fun", name, [], "Real"]:
                    self._variable(name)
                    if name in self._declared:
                        raise self._error(name, "a variable declared once", name)
                    self._declared.add(name)
                case ["assert", formula]:
                    ways = self._both(ways, self._ways(formula), command.line)
                case _:
                    head = command[0] if command and isinstance(command[0], str) else "()"
                    raise self._error(command, "declare-const NAME Real, or assert", head)
        for kind, size in self._sizes.items():
            found = sum(name.startswith(kind) for name in self._declared)
            if found != size:
                raise PropertyFileError(
                    f"{self._name}: must declare the {size} {kind} of the network, got {found}"
                )
        return [case for way in ways if (case := self._case(way)) is not None]

    # ------------------------------------------------------------------------------------- brackets

    def _commands(self, text: str) -> Iterator[_List]:
        """The expressions of the file, at the outermost level."""
        open_: list[_List] = []
        for line, content in enumerate(text.splitlines(), start=1):
            for token in re.findall(r"[()]|[^\s()]+", content.partition(";")[0]):
                if token == "(":
                    found = _List()
                    found.line = line
                    if open_:
                        open_[-1].append(found)
                    open_.append(found)
                    if len(open_) > DEEPEST:
                        raise self._error(found, f"at most {DEEPEST} brackets deep", "more")
                    continue
                word = _Word(token)
                word.line = line
                if not open_:
                    raise self._error(word, "an expression in brackets", token)
                if token == ")":
                    done = open_.pop()
                    if not open_:
                        yield done
                else:
                    open_[-1].append(word)
        if open_:
            raise self._error(open_[0], "closed by a bracket", "the end of the file")

    # ------------------------------------------------------------------------------------- formulas

    def _ways(self, formula: _List | _Word) -> list[list[_Atom]]:
        """The formula as a disjunction of conjunctions."""
        match formula:
            case ["and", *parts] if parts:
                ways: list[list[_Atom]] = [[]]
                for part in parts:
                    ways = self._both(ways, self._ways(part), formula.line)
                return ways
            case ["or", *parts] if parts:
                ways = [way for part in parts for way in self._ways(part)]
                return self._both([[]], ways, formula.line)
            case ["<=", left, right]:
                return [[self._atom(left, right, formula)]]
            case [">=", left, right]:
                return [[self._atom(right, left, formula)]]
            case ["=", left, right]:
                return [[self._atom(left, right, formula), self._atom(right, left, formula)]]
        head = formula[0] if isinstance(formula, _List) and formula else formula
        raise self._error(formula, "and, or, <=, >= or =", head if isinstance(head, str) else "()")

    def _both(self, first: list[list[_Atom]], second: list[list[_Atom]], line: int) -> list[list[_Atom]]:
        count = len(first) * len(second)
        if count > MOST_CASES:
            raise PropertyFileError(
                f"{self._name}, line {line}: must come to at most {MOST_CASES:,} cases, got {count:,}"
            )
        if len(second) == 1:  # the usual one: no copies of what may be long
            for way in first:
                way += second[0]
            return first
        return [a + b for a in first for b in second]

    def _atom(self, left: _List | _Word, right: _List | _Word, where: _List) -> _Atom:
        """left <= right."""
        numbers: dict[str, float] = {}
        for side, sign in ((left, 1.0), (right, -1.0)):
            for name, factor in self._linear(side).items():
                numbers[name] = numbers.get(name, 0.0) + sign * factor
        bound = 0.0 - numbers.pop("", 0.0)
        kinds = {name[0] for name in numbers}
        if len(kinds) != 1:
            got = "both" if kinds else "neither"
            raise self._error(where, "a comparison of inputs or of outputs", got)
        (kind,) = kinds
        if kind == "X" and len(numbers) > 1:
            raise self._error(where, "a bound of one input: only boxes are read", f"{len(numbers)} inputs")
        places = tuple((int(name[2:]), factor) for name, factor in numbers.items())
        return _Atom(kind, places, bound, where.line)

    def _linear(self, term: _List | _Word) -> dict[str, float]:
        """Factors of variables; under "" what stands alone."""
        match term:
            case _Word():
                if term[:2] in ("X_", "Y_"):
                    self._variable(term)
                    if term not in self._declared:
                        raise self._error(term, "declared before it is used", term)
                    return {str(term): 1.0}
                return {"": self._number(term)}
            case ["+", *parts] if parts:
                return self._added([self._linear(part) for part in parts])
            case ["-", part]:
                return _times(-1.0, self._linear(part))
            case ["-", first, *rest]:
                return self._added([self._linear(first), *(_times(-1.0, self._linear(p)) for p in rest)])
            case ["*", first, second]:
                a, b = self._linear(first), self._linear(second)
                if a.keys() <= {""}:
                    return _times(a.get("", 0.0), b)
                if b.keys() <= {""}:
                    return _times(b.get("", 0.0), a)
        raise self._error(term, "linear", "another expression")

    def _added(self, parts: list[dict[str, float]]) -> dict[str, float]:
        total: dict[str, float] = {}
        for part in parts:
            for name, factor in part.items():
                total[name] = total.get(name, 0.0) + factor
        return total

    def _number(self, word: _Word) -> float:
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise self._error(word, "a finite number or a variable X_i or Y_j", word)
        return value

    def _variable(self, name: _Word) -> None:
        kind, place = name[:1], name[2:]
        known = isinstance(name, _Word) and re.fullmatch(r"[XY]_(0|[1-9]\d{0,8})", name)
        if not known or int(place) >= self._sizes[kind]:
            sizes = f"X_0 to X_{self._sizes['X'] - 1} or Y_0 to Y_{self._sizes['Y'] - 1}"
            raise self._error(name, f"one of the network's {sizes}", str(name))

    # ---------------------------------------------------------------------------------------- cases

    def _case(self, way: list[_Atom]) -> Case | None:
        low, high = [-math.inf] * self._sizes["X"], [math.inf] * self._sizes["X"]
        unsafe = [atom for atom in way if atom.kind == "Y"]
        for atom in way:
            if atom.kind == "X":
                ((place, factor),) = atom.numbers
                if factor == 0:
                    raise self._error(atom, "a bound of an input", "a factor of 0")
                end = atom.bound / factor
                if factor > 0:
                    high[place] = min(high[place], end)
                else:
                    low[place] = max(low[place], end)
        if free := [
            i for i, ends in enumerate(zip(low, high, strict=True)) if not all(map(math.isfinite, ends))
        ]:
            raise PropertyFileError(
                f"{self._name}: must bound every input from both sides, got X_{free[0]} free"
            )
        if not unsafe:
            raise PropertyFileError(f"{self._name}: must say which outputs are unsafe, got inputs only")
        if any(a > b for a, b in zip(low, high, strict=True)):
            return None
        rows = torch.zeros(len(unsafe), self._sizes["Y"], dtype=torch.float64)
        for row, atom in zip(rows, unsafe, strict=True):
            for place, factor in atom.numbers:
                row[place] = factor
        offsets = torch.tensor([atom.bound for atom in unsafe], dtype=torch.float64)
        ends = (torch.tensor(side, dtype=torch.float64) for side in (low, high))
        return Case(*ends, rows, offsets)

    def _error(self, where: "_List | _Word | _Atom", wanted: str, got: str) -> PropertyFileError:
        line = getattr(where, "line", "?")
        return PropertyFileError(f"{self._name}, line {line}: must be {wanted}, got {got}")


def _times(factor: float, numbers: dict[str, float]) -> dict[str, float]:
    return {name: factor * value for name, value in numbers.items()}
