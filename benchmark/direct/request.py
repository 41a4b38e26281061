"""What `evaluate` and `inspect` are asked: a model, samples, a threat, attacks, options."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Literal, TypedDict, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from attacks import Attack
from attacks.threat import Norm
from benchmark.analysis.learned_order import read_suite
from benchmark.data.dataset import fingerprint
from benchmark.data.given import read_given
from benchmark.errors import UserError, did_you_mean
from benchmark.executors import IN_PROCESS, Executor
from benchmark.judge.evaluator import Samples
from benchmark.judge.reading import Reading
from benchmark.judge.records import IntArray
from benchmark.judge.subject import DRAWS, EXPECTATION, Precision, Terms
from benchmark.judge.surroundings import undisturbed
from benchmark.keys import Identity
from benchmark.models.others import check_sources, fetch, sources_of
from benchmark.models.trained import Trained
from benchmark.run.assess import Settings
from benchmark.run.geometry import Geometry, read_geometry
from benchmark.spec.components import read_component
from benchmark.spec.learned_suite import LearnedSuite
from benchmark.spec.lineup import Entry, Lineup, check_attack, check_norm, choose
from benchmark.spec.proof_setting import read_proofs
from benchmark.spec.run_spec import Mode
from benchmark.spec.suites import DEFAULT_SUITE
from defenses.offers import rejection_of


class Options(TypedDict, total=False):
    """What `evaluate` can be told beside the model, the samples, the threat and the attacks.

    mode        "table" (the default) carries out every attack on every correctly classified sample.
                "cascade" carries out the cheapest attack first, and each on the samples that the
                ones before it left unbroken; it is faster, and gives the best-attack accuracy
                alone. It is the default for a learned suite, whose order it keeps.
    seed        determines all noise, together with `index`; 0 by default.
    device      as torch names it, such as "cuda:1". "auto" takes CUDA where there is a CUDA device.
    precision   "model" (the default) evaluates the model in the precision that it has; "float32",
                "float64", "bfloat16" and "float16" in that, also as "single", "double" and "half",
                or as a torch dtype.
    block       how many samples are worked on at once; 256 by default.
    index       (n,), the number of each sample in its data set (default 0, 1, 2, ...). A sample's
                noise depends on its number, so that it is the same in a subset and in any order.
    name        how the report calls the model; by default, its class.
    progress    whether to show progress bars.
    peers       other models, by the names that attacks give them: "transfer:pgd/source=NAME".
    scale       what images are divided by, such as 255 for integer images. eps, bounds and all
                points and distances of the report are then of the divided images.
    bounds      (lower, upper) of perturbed samples, each a number or what broadcasts to a sample;
                (0, 1) by default.
    output      where the logits are in what the model returns: an index, a key or an attribute.
    binary      whether the model gives one logit per image, which is above 0 for class 1.
    reject      the class by which the model rejects an image; by default its attribute `reject`,
                if it has that. Rejecting a clean image is wrong;
                rejecting a perturbed one is wrong in the report, and right in its `rejecting`.
    workers     how many processes on this machine work at once, by Ray; None (the default) for this
                process alone. Where Ray was begun before, those of its cluster work.
    draws       how many fresh draws of a randomised model judge each point; 50 by default.
    expectation  how many draws of it attacks take the mean of in each step; 10 by default.
    certify     how bounds prove what no attack breaks: "crown", by linear bounds, or
                "branch/seconds=10", by branch and bound within so many seconds an image; None or
                "none" (the default): not at all.
    """

    mode: Mode
    seed: int
    device: str | torch.device
    precision: Precision | Literal["single", "double", "half"] | torch.dtype
    block: int
    index: ArrayLike | None
    name: str | None
    progress: bool
    peers: Mapping[str, nn.Module] | None
    scale: float | None
    output: int | str | None
    binary: bool
    bounds: Any
    reject: int | None
    draws: int
    expectation: int
    workers: int | None
    certify: str | dict[str, Any] | None


@dataclass(frozen=True)
class Request:
    """What was asked, checked.

    name      how the report calls the model.
    samples   in the units of the geometry; `about` identifies them as they were given.
    lineup    the attacks, and `sources` the models that they craft points on.
    options   see `Options`; all of them, as attributes.
    """

    name: str
    samples: Samples
    about: Identity
    geometry: Geometry
    lineup: Lineup
    sources: Mapping[str, Trained]
    options: Any

    def settings(self, may_reject: bool = False, executor: Executor = IN_PROCESS) -> Settings:
        """How the model is assessed, and by what; `may_reject` as in `Terms`."""
        options = self.options
        terms = Terms(
            options.precision, Reading(options.output, options.binary), options.draws,
            options.expectation, options.seed, options.reject, may_reject, self.geometry.scale,
            self.geometry.frozen,
        )  # fmt: skip
        return Settings(
            self.geometry.threat, options.mode, str(options.device), options.block, terms,
            options.progress, executor=executor, certify=options.certify,
        )  # fmt: skip


def read_request(
    model: nn.Module,
    x: Any,
    y: Any,
    norm: Norm,
    eps: Any,
    attacks: Sequence[str | dict[str, Any] | Attack],
    suite: str | None,
    options: Options,
) -> Request:
    """What the arguments of `evaluate` ask. Raises UserError for what cannot be evaluated."""
    learned = read_suite(suite)
    chosen = _chosen(options)
    if isinstance(learned, LearnedSuite) and "mode" not in options:
        chosen.mode = "cascade"
    if chosen.reject is None:
        chosen.reject = rejection_of(model)
    peers = chosen.peers or {}
    _check_modules(model, peers)
    with undisturbed():
        given = _samples(x, y, chosen)
        geometry = read_geometry(norm, eps, chosen.bounds, tuple(given.x.shape[1:]))
        chosen.certify = read_proofs(chosen.certify, geometry.threat.norm)
        samples, about = geometry.measured(given), _about(given)
    known = {name: Trained(module, {}) for name, module in peers.items()}
    lineup = _lineup(attacks, learned, geometry, known)
    sources = fetch(sources_of(lineup), known)
    return Request(
        chosen.name or type(model).__name__, samples, about, geometry, lineup, sources, chosen
    )


_DEFAULTS: dict[str, Any] = {
    "mode": "table", "seed": 0, "device": "auto", "precision": "model", "block": 256,
    "index": None, "name": None, "progress": False, "peers": None, "scale": None, "output": None,
    "binary": False, "bounds": None, "reject": None, "draws": DRAWS, "expectation": EXPECTATION,
    "workers": None, "certify": None,
}  # fmt: skip
_WORDS = {"mode": Mode, "precision": Precision}
# Other names of precisions.
_ALIASES = {"single": "float32", "double": "float64", "half": "float16"}
_LEAST = {"block": 1, "seed": 0, "draws": 1, "expectation": 2}


def options_of(**given: Any) -> Any:
    """Options that are known to be right, and the defaults of all others, as attributes."""
    return SimpleNamespace(**_DEFAULTS | given)


def _chosen(options: Options) -> Any:
    """All options, by name. Raises UserError for those that are unknown or cannot be."""
    if unknown := sorted(options.keys() - _DEFAULTS.keys()):
        hint = did_you_mean(unknown[0], _DEFAULTS, f"use {', '.join(_DEFAULTS)}")
        raise UserError(f"unknown option {unknown[0]!r}: {hint}")
    chosen = options_of(**options)
    chosen.precision = _precision(chosen.precision)
    for option, words in _WORDS.items():
        value, known = getattr(chosen, option), get_args(words)
        if value not in known:
            raise UserError(f"unknown {option} {value!r}: use one of {', '.join(known)}")
    for option, least in _LEAST.items():
        number = getattr(chosen, option)
        if isinstance(number, bool) or not isinstance(number, int) or not least <= number < 2**63:
            raise UserError(f"{option} must be an integer of at least {least}, not {number!r}")
    workers = chosen.workers
    if workers is not None and (type(workers) is not int or workers < 1):
        raise UserError(f"workers must be an integer of at least 1, not {workers!r}")
    if chosen.peers is not None and not isinstance(chosen.peers, Mapping):
        raise UserError("peers must be a mapping of names to models")
    reject = chosen.reject
    if reject is not None and (isinstance(reject, bool) or not isinstance(reject, int)):
        raise UserError(f"reject must be the number of a class, not {reject!r}")
    return chosen


def _precision(given: Any) -> Any:
    """The name of a precision that may be given as a torch dtype or by another name."""
    if isinstance(given, torch.dtype):
        given = str(given).removeprefix("torch.")
    return _ALIASES.get(given, given) if isinstance(given, str) else given


def _check_modules(model: nn.Module, peers: Mapping[str, nn.Module]) -> None:
    modules = {"model": model} | {f"peer {name!r}": peer for name, peer in peers.items()}
    for what, module in modules.items():
        if not isinstance(module, nn.Module | torch.export.ExportedProgram):
            raise UserError(f"{what} must be a torch.nn.Module, not {type(module).__name__}")


def _lineup(
    attacks: Sequence[str | dict[str, Any] | Attack],
    suite: str | LearnedSuite | None,
    geometry: Geometry,
    models: Collection[str],
) -> Lineup:
    """The attacks to carry out: those of the suite, those named, and then the Attack objects; those
    of "strong" where there are none.

    `models` are the names of the models that attacks may craft points on. Raises UserError.
    """
    if isinstance(attacks, str | dict) or not isinstance(attacks, Iterable):
        raise UserError(f"attacks must be a list: [{attacks!r}]")
    attacks = list(attacks)
    named = [
        read_component(attack, "an attack") for attack in attacks if isinstance(attack, str | dict)
    ]
    suite, threat = suite if attacks or suite else DEFAULT_SUITE, geometry.threat
    lineup = choose(suite, named, threat, models)
    entries = dict(lineup.entries)
    for attack in attacks:
        if isinstance(attack, str | dict):
            continue
        if isinstance(attack, type) or not callable(attack):
            raise UserError(f"{attack!r} is not an attack: give a name or a configured Attack")
        name = type(attack).__name__
        check_norm(name, check_attack(name, attack), threat.norm)
        entries[_unused(name, entries)] = Entry(attack)
    notes = (*lineup.notes, *([geometry.note] if geometry.note else []))
    chosen = replace(lineup, entries=entries, notes=notes)
    check_sources(chosen, models)
    return chosen


def _unused(label: str, taken: Collection[str]) -> str:
    """The label, with a number behind it where it is taken."""
    number = 2
    unused = label
    while unused in taken:
        unused, number = f"{label}-{number}", number + 1
    return unused


def _samples(x: Any, y: Any, chosen: Any) -> Samples:
    """The images and labels as Samples. Raises UserError where they cannot be evaluated."""
    x, y = read_given(x, y, chosen.scale)
    if int(y.min()) < 0:
        raise UserError(f"labels must be at least 0, not {int(y.min())}")
    return Samples(x, y, _numbers(chosen.index, len(x)))


def _about(samples: Samples) -> Identity:
    """What identifies the samples, so that `combine` can tell reports of the same ones."""
    return {"data": fingerprint(samples.x, samples.y, torch.from_numpy(samples.number))}


def _numbers(index: ArrayLike | None, n: int) -> IntArray:
    """The numbers (n,) of the samples. Raises UserError where they are not integers."""
    try:
        number = np.arange(n) if index is None else np.asarray(index)
    except ValueError as error:
        raise UserError(f"index must hold one number per image: {error}") from error
    if number.shape != (n,):
        raise UserError(f"index must hold one number per image, not shape {number.shape}")
    if number.dtype.kind not in "iu":
        raise UserError(f"index must hold integers, not {number.dtype}")
    return number.astype(np.int64)
