"""The formulas of VNN-LIB files: linear comparisons within `and` and `or`, in normal form."""

import re
from fractions import Fraction
from typing import NamedTuple

from benchmark.errors import UserError
from benchmark.vnnlib.vnnlib_syntax import Form, Node, Source, Symbol, shown

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?")
_VARIABLE = re.compile(r"([XY])_(0|[1-9]\d{0,8})")

# Numbers, at most: far more than any precision has, and few products of it overflow.
_LARGEST = 1e100

# Made once, which saves time.
_ZERO, _ONE, _MINUS = Fraction(0), Fraction(1), Fraction(-1)

# Ways in which a property can be violated, at most.
_MOST_WAYS = 10_000


class Constraint(NamedTuple):
    """The sum of weight * variable, of inputs and outputs, is at most `bound`, or below it."""

    inputs: dict[int, Fraction]
    outputs: dict[int, Fraction]
    bound: Fraction
    is_strict: bool


class _Sum(NamedTuple):
    """A sum of weight * variable, and a constant."""

    weights: dict[str, Fraction]
    constant: Fraction

    def plus(self, other: "_Sum", factor: Fraction) -> "_Sum":
        weights = dict(self.weights)
        for name, weight in other.weights.items():
            weights[name] = weights.get(name, _ZERO) + factor * weight
        return _Sum(weights, self.constant + factor * other.constant)


class Reader:
    """What is declared in a file so far, and how its formulas are understood."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._declared: dict[str, tuple[str, int]] = {}

    def declare(self, form: Form) -> None:
        """Take a declaration of an input or an output."""
        words = [item.text if isinstance(item, Symbol) else "" for item in form.items]
        if len(words) != 3 or words[2] != "Real":
            self._source.fail(form, f"{shown(form)} declares no constant of the sort Real")
        match = _VARIABLE.fullmatch(words[1])
        if match is None:
            self._source.fail(form, f"{words[1]!r} is no input X_0, X_1, ... or output Y_0, ...")
        if words[1] in self._declared:
            self._source.fail(form, f"{words[1]} is declared twice")
        self._declared[words[1]] = match.group(1), int(match.group(2))

    def count(self, kind: str) -> int:
        """How many inputs (X) or outputs (Y) there are. Raises UserError for a gap in them."""
        places = {place for of, place in self._declared.values() if of == kind}
        if not places:
            raise UserError(f"{self._source.path}: no {kind}_0 is declared")
        gaps = sorted(set(range(len(places))) - places)
        if gaps:
            there, missing = f"{kind}_{max(places)}", f"{kind}_{gaps[0]}"
            raise UserError(f"{self._source.path}: {there} is declared, and {missing} is not")
        return len(places)

    def normal(self, node: Node) -> list[list[Constraint]]:
        """The disjunctive normal form: the ways in which a formula holds."""
        if isinstance(node, Symbol) or len(node.items) < 2:
            self._source.fail(node, f"{shown(node)} is no comparison, (and ...) or (or ...)")
        if node.head == "or":
            return [way for part in node.items[1:] for way in self.normal(part)]
        if node.head == "and":
            ways: list[list[Constraint]] = [[]]
            for part in node.items[1:]:
                ways = self.both(ways, self.normal(part), node)
            return ways
        return [[self._comparison(node)]]

    def both(
        self, ways: list[list[Constraint]], others: list[list[Constraint]], node: Node
    ) -> list[list[Constraint]]:
        """The ways in which two formulas hold together."""
        if len(ways) * len(others) > _MOST_WAYS:
            self._source.fail(node, f"the property has more than {_MOST_WAYS} alternatives")
        return [way + other for way in ways for other in others]

    def _comparison(self, form: Form) -> Constraint:
        if form.head not in ("<=", ">=", "<", ">"):
            self._source.fail(
                form, f"{form.head or shown(form)!r} is none of <=, >=, <, >, and, or"
            )
        if len(form.items) != 3:
            self._source.fail(form, f"{shown(form)} compares {len(form.items) - 1} things, not two")
        left, right = (self._sum(item) for item in form.items[1:])
        lesser, greater = (left, right) if form.head[0] == "<" else (right, left)
        less = lesser.plus(greater, _MINUS)
        inputs: dict[int, Fraction] = {}
        outputs: dict[int, Fraction] = {}
        for name, weight in less.weights.items():
            kind, place = self._declared[name]
            if weight:
                (inputs if kind == "X" else outputs)[place] = weight
        if not inputs and not outputs:
            self._source.fail(form, f"{shown(form)} compares no inputs and no outputs")
        if inputs and (outputs or len(inputs) > 1):
            what = "an input with outputs" if outputs else "inputs with each other"
            self._source.fail(
                form, f"{shown(form)} compares {what}: only bounds of single inputs are supported"
            )
        return Constraint(inputs, outputs, -less.constant, len(form.head) == 1)

    def _sum(self, node: Node) -> _Sum:
        """What an expression is in terms of the variables."""
        if isinstance(node, Symbol):
            if node.text in self._declared:
                return _Sum({node.text: _ONE}, _ZERO)
            if not _NUMBER.fullmatch(node.text):
                self._source.fail(node, f"{node.text!r} is no number and not declared")
            if abs(float(node.text)) > _LARGEST:
                self._source.fail(node, f"the number {node.text} is too large")
            return _Sum({}, Fraction(node.text))
        terms = [self._sum(item) for item in node.items[1:]]
        if node.head not in ("+", "-", "*") or not terms:
            self._source.fail(node, f"{shown(node)} is no sum of +, - and * by a constant")
        if node.head == "*":
            return self._product(terms, node)
        if node.head == "-" and len(terms) == 1:
            terms.insert(0, _Sum({}, _ZERO))
        total = terms[0]
        for term in terms[1:]:
            total = total.plus(term, _ONE if node.head == "+" else _MINUS)
        return total

    def _product(self, factors: list[_Sum], form: Form) -> _Sum:
        product = _Sum({}, _ONE)
        for factor in factors:
            if product.weights and factor.weights:
                self._source.fail(form, f"{shown(form)} multiplies variables with each other")
            if product.weights:
                product, factor = factor, product
            product = _Sum({}, _ZERO).plus(factor, product.constant)
        return product
