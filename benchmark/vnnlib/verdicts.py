"""The verdict on a property of a network: sat, unsat or unknown."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from benchmark.errors import UserError
from benchmark.vnnlib.counterexamples import CaseSearch, Counterexample
from benchmark.vnnlib.proofs import Prover
from benchmark.vnnlib.properties import Property
from defenses.foreign.onnx_graphs.onnx_file import OnnxFile

Status = Literal["sat", "unsat", "unknown"]


@dataclass(frozen=True)
class Verdict:
    """What is known of a property.

    status          "sat": onnxruntime confirms the counterexample, in the file's own precision.
                    "unsat": the solver proves that there is none. "unknown": neither.
    counterexample  of "sat", and else None.
    contradicted    whether the solver claims to prove that there is none where there is one.
    """

    status: Status
    counterexample: Counterexample | None = None
    contradicted: bool = False

    def text(self) -> str:
        """The verdict as the competition has it, with the counterexample if there is one."""
        if self.counterexample is None:
            return self.status
        return f"{self.status}\n{self.counterexample.text()}"


class Judge:
    """What gives verdicts on properties of one network, which is read from an ONNX file.

    unreadable  why the solver cannot read the network, if it was asked to and cannot.

    Raises UserError where the file holds no network that can be attacked.
    """

    def __init__(self, path: Path, exact: bool) -> None:
        self._path = path
        try:
            self._file = OnnxFile(path)
            if len(self._file.outputs) != 1:
                raise ValueError(f"has {len(self._file.outputs)} outputs, not one")
            # Its weights need no gradients, which saves time.
            self._network = self._file.module().requires_grad_(False)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from error
        shape = self._file.input_shape
        self._inputs = torch.Size(shape).numel()
        self._outputs = self._file.run(torch.zeros(1, *shape))[0].numel()
        self._prover: Prover | None = None
        self.unreadable: str | None = None
        if exact:
            try:
                self._prover = Prover(self._file, self._network)
            except ValueError as error:
                self.unreadable = str(error)

    def decide(self, asked: Property, limit_s: float, seed: int) -> Verdict:
        """Attack a property, and then ask the solver if it is to be asked, within so many seconds.

        Raises UserError where the property is not one of this network.
        """
        for word, declared, has in (
            ("inputs", asked.inputs, self._inputs),
            ("outputs", asked.outputs, self._outputs),
        ):
            if declared != has:
                raise UserError(f"{asked.name} declares {declared} {word}: {self._path} has {has}")
        start = time.monotonic()
        searches = [CaseSearch(self._file, self._network, case) for case in asked.cases]
        if self._prover is None:
            return _attack(searches, start + limit_s, seed)[0]
        verdict, broken = _attack(searches, start + limit_s / 2, seed)
        left = [broken] if broken else searches
        return _ask(self._prover, left, verdict, start + limit_s)


def _attack(
    searches: Sequence[CaseSearch], deadline: float, seed: int
) -> tuple[Verdict, CaseSearch | None]:
    """The verdict of attacks on the cases of a property, and the case in which one succeeded. Of
    several, all are attacked briefly before any is attacked at length."""
    for quick in [False] if len(searches) == 1 else [True, False]:
        for place, search in enumerate(searches):
            now = time.monotonic()
            until = now + (deadline - now) / (len(searches) - place)
            counterexample = search.run(quick, seed, until)
            if counterexample is not None:
                return Verdict("sat", counterexample), search
    return Verdict("unknown"), None


def _ask(
    prover: Prover, searches: Sequence[CaseSearch], verdict: Verdict, deadline: float
) -> Verdict:
    """The verdict once the solver was asked about some cases of a property. Where there is a
    counterexample, it looks there first, so that it only answers at length where it disagrees."""
    known = verdict.counterexample
    proven = True
    for search in searches:
        if not all(search.case.ways):  # any point of the box is a counterexample
            proven = False
            continue
        limit_s = max(0.0, deadline - time.monotonic())
        if not limit_s and known is None:
            proven = False
            continue
        found: list[Counterexample] = []

        def confirm(
            point: Tensor, search: CaseSearch = search, found: list[Counterexample] = found
        ) -> bool:
            confirmed = search.confirm(point)
            found += [confirmed] if confirmed else []
            return confirmed is not None

        start = None if known is None else known.point
        status = prover.prove(search.box, search.case, start, limit_s, confirm)
        if found and known is None:
            return Verdict("sat", found[0])
        proven &= status == "robust"
    if known is not None:
        return replace(verdict, contradicted=proven)
    return Verdict("unsat") if proven else verdict
