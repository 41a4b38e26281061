"""Properties of VNN-LIB 1.0: boxes of inputs, and what must hold of the outputs there."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from benchmark.errors import UserError
from benchmark.vnnlib.formulas import Constraint, Reader
from benchmark.vnnlib.vnnlib_syntax import Source, shown


class Interval(NamedTuple):
    """The values that an input may have: from `lower` to `upper`, without an end that is open."""

    lower: Fraction
    upper: Fraction
    is_open_below: bool = False
    is_open_above: bool = False

    def holds(self, value: Fraction) -> bool:
        """Whether a value lies in the interval."""
        above = self.lower < value or (self.lower == value and not self.is_open_below)
        return above and (value < self.upper or (value == self.upper and not self.is_open_above))


class Row(NamedTuple):
    """A constraint on outputs: the sum of weight * output is at most `bound`, or below it if
    `is_strict`. The weights are pairs of an output's number and a number."""

    weights: tuple[tuple[int, Fraction], ...]
    bound: Fraction
    is_strict: bool

    def holds(self, outputs: Sequence[Fraction]) -> bool:
        """Whether outputs fulfil the constraint, by exact arithmetic."""
        value = sum((weight * outputs[j] for j, weight in self.weights), Fraction(0))
        return value < self.bound or (value == self.bound and not self.is_strict)


# All rows of it must hold. Without any, each input of the box will do.
Conjunction = tuple[Row, ...]


class Case(NamedTuple):
    """A box of inputs, and the ways in which outputs there make a counterexample: any of them."""

    box: tuple[Interval, ...]
    ways: tuple[Conjunction, ...]

    @property
    def is_trivial(self) -> bool:
        """Whether nothing is asked of the outputs, so that each point is a counterexample."""
        return not all(self.ways)

    def holds(self, outputs: Sequence[Fraction]) -> bool:
        """Whether outputs make a counterexample."""
        return any(all(row.holds(outputs) for row in way) for way in self.ways)


@dataclass(frozen=True, eq=False)
class Property:
    """What a network must not do: a counterexample is a point that fulfils any of the cases.

    name     of its file, without the ending that says how it is packed.
    inputs   how many numbers the network is given.
    outputs  how many it gives.
    """

    name: str
    inputs: int
    outputs: int
    cases: tuple[Case, ...]


def read_property(path: Path) -> Property:
    """Read a file of VNN-LIB 1.0, which may be packed by gzip.

    It declares inputs X_0, X_1, ... and outputs Y_0, Y_1, ... and asserts comparisons (<=, >=, <
    and >) within `and` and `or`. A comparison is of one input with a constant, or of sums of
    outputs, which +, - and * by a constant make. It is brought into disjunctive normal form, and
    ways to violate the property in the same box are one case.

    Raises UserError, in one line that names the file and the line, for all else.
    """
    source = Source(path)
    reader = Reader(source)
    # What always holds, and the ways in which the rest can.
    always: list[Constraint] = []
    ways: list[list[Constraint]] = [[]]
    for form in source.forms():
        if form.head == "declare-const":
            reader.declare(form)
        elif form.head == "assert" and len(form.items) == 2:
            found = reader.normal(form.items[1])
            if len(found) == 1:
                always += found[0]
            else:
                ways = reader.both(ways, found, form)
        elif form.head.startswith(("vnnlib-version", "declare-network")):
            source.fail(form, f"{form.head} is of VNN-LIB 2.0, and only 1.0 can be read")
        else:
            source.fail(form, f"{shown(form)} is neither (declare-const ...) nor (assert ...)")
    inputs, outputs = reader.count("X"), reader.count("Y")
    name = path.name.removesuffix(".gz")
    return Property(name, inputs, outputs, _cases(path, inputs, always, ways))


def _cases(
    path: Path, inputs: int, always: list[Constraint], ways: list[list[Constraint]]
) -> tuple[Case, ...]:
    """The cases of the ways in which a property can be violated, box by box. Boxes without a point
    are left out."""
    sides = _Sides(inputs)
    sides.narrow(always)
    rows = _rows(always)
    # Ways that narrow the inputs alike share a box.
    narrowed: dict[tuple[object, ...], list[list[Constraint]]] = {}
    for way in ways:
        key = tuple((*c.inputs.items(), c.bound, c.is_strict) for c in way if c.inputs)
        narrowed.setdefault(key, []).append(way)
    cases: list[Case] = []
    empty: str | None = None
    for alike in narrowed.values():
        own = sides.copy()
        own.narrow(alike[0])
        own.check(path)
        contradiction = own.contradiction()
        empty = empty or contradiction
        if contradiction is None:
            cases.append(Case(own.box(), tuple(rows + _rows(way) for way in alike)))
    if not cases:
        raise UserError(f"{path}: no input fulfils the bounds: {empty}")
    return tuple(cases)


def _rows(constraints: Iterable[Constraint]) -> Conjunction:
    return tuple(
        Row(tuple(sorted(c.outputs.items())), c.bound, c.is_strict)
        for c in constraints
        if c.outputs
    )


class _Sides:
    """The bounds of inputs as far as they are known, each with whether it is itself excluded."""

    def __init__(self, inputs: int) -> None:
        self.lower: list[tuple[Fraction, bool] | None] = [None] * inputs
        self.upper: list[tuple[Fraction, bool] | None] = [None] * inputs

    def copy(self) -> "_Sides":
        same = _Sides(0)
        same.lower, same.upper = list(self.lower), list(self.upper)
        return same

    def narrow(self, constraints: Iterable[Constraint]) -> None:
        """Take the constraints that are on inputs."""
        for constraint in constraints:
            for place, weight in constraint.inputs.items():
                # Of two equal bounds the one that excludes itself is the narrower.
                side = constraint.bound / weight, constraint.is_strict
                known = (self.upper if weight > 0 else self.lower)[place]
                if weight > 0:
                    narrower = known is None or (side[0], not side[1]) < (known[0], not known[1])
                    self.upper[place] = side if narrower else known
                else:
                    self.lower[place] = side if known is None else max(side, known)

    def check(self, path: Path) -> None:
        """Raises UserError where an input has no bound."""
        for word, sides in (("lower", self.lower), ("upper", self.upper)):
            if None in sides:
                raise UserError(f"{path}: X_{sides.index(None)} has no {word} bound")

    def contradiction(self) -> str | None:
        """What is contradictory, if anything is."""
        for place, interval in enumerate(self.box()):
            lower, upper, *is_open = interval
            if lower > upper or (lower == upper and any(is_open)):
                return f"X_{place} must be from {float(lower)} to {float(upper)}"
        return None

    def box(self) -> tuple[Interval, ...]:
        """The intervals of all inputs, which `check` has seen to have bounds."""
        return tuple(
            Interval(lower[0], upper[0], lower[1], upper[1])
            for lower, upper in zip(self.lower, self.upper, strict=True)
            if lower and upper
        )
