"""What names a result. All keys are made here, of what determines the result, by content.

A key is a hash of an *identity*: a dictionary of all that the result depends on. Attacks and
recipes are in it by their registered names, their declared versions and their options, models by
the content of their weights, data by the content of their images and labels, and the user's own
code by its source with the local modules that it imports. Where a file lies, what a folder is
called, and how a row is labelled are not in it. So moving or commenting our code, or moving the
user's, invalidates nothing; a behaviour of ours that changes must be declared by a new version
(`tests/test_versions.py` notices where it was not).

Every identity of a cell has the judge's version, torch's version, the kind of device and the
precision. Each function says what else invalidates what it names.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import nn

from attacks import Attack, ThreatModel
from benchmark.data.dataset import Dataset
from benchmark.judge import evaluator
from benchmark.judge.records import IntArray
from benchmark.spec.components import SOURCE
from benchmark.spec.registry import ATTACKS, DEFENSES, Registry
from benchmark.spec.run_spec import Part
from benchmark.user_code import identify_code
from defenses import Recipe
from defenses.training import loop
from defenses.weights import fingerprint

Identity = dict[str, Any]


def key_of(identity: Identity) -> str:
    """The key of an identity: 16 hexadecimal digits of its SHA-256."""
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def identify_data(dataset: Dataset, split: Part, labels: str = "data") -> Identity:
    """A split of a data set. Another number of its images is the same data, since cells hold
    records by sample.

    Invalidated by another name, by any other image or label in the split, and by measuring with
    respect to other `labels` than those of the data.
    """
    identity = {"name": dataset.name, "sha256": dataset.fingerprint(split)}
    return identity | ({} if labels == "data" else {"labels": labels})


def identify_attack(attack: Attack, peers: Mapping[str, Identity]) -> Identity:
    """A configured attack. `peers` are the identities of models, by the names that the option
    `source` of attacks gives them.

    Invalidated by another registered name, version or option of it or of the attacks inside it
    (the name of a source is none, its model is), and, where the user brings it, by changes of its
    code.
    """
    options: Identity = {}
    fields = dataclasses.fields(attack) if dataclasses.is_dataclass(attack) else ()
    for name in [field.name for field in cast("tuple[dataclasses.Field[Any], ...]", fields)]:
        value = getattr(attack, name)
        if isinstance(value, Attack) and not isinstance(value, type):
            options[name] = identify_attack(value, peers)
        elif name == SOURCE and value in peers:
            options[name] = peers[value]
        else:
            options[name] = _option(value)
    return _named(ATTACKS, attack, options) | _code([type(attack)])


def identify_recipe(recipe: Recipe) -> Identity:
    """A configured recipe, without the models that it is made of.

    Invalidated by another registered name, version or option (labels of other rows, paths of
    weights and of code are none), and, where the user brings it, by changes of its code.
    """
    options = {name: _option(value) for name, value in recipe.settings().items()}
    return _named(DEFENSES, recipe, options) | _code([type(recipe)], recipe.code())


def identify_model(model: nn.Module, recipe: Recipe, parts: Mapping[str, Identity]) -> Identity:
    """A trained model. `parts` are those that it was made of, as `identify_parts` has them.

    Invalidated by any other weight or buffer, by what invalidates its recipe and those of its
    parts, and, where the user brings them, by changes of the code of its modules.
    """
    identity = {"weights": fingerprint(model), "recipe": identify_recipe(recipe)}
    code = _code({type(module) for module in model.modules()})
    return identity | code | ({"parts": dict(parts)} if parts else {})


def identify_part(recipe: Recipe, parts: Mapping[str, Identity]) -> Identity:
    """A part of a model: as the model itself, but for its weights, which are among the model's."""
    return identify_recipe(recipe) | ({"parts": dict(parts)} if parts else {})


def training_key(
    recipe: Recipe,
    model: nn.Module,
    dataset: Dataset,
    threat: ThreatModel | None,
    seed: int,
    device: torch.device,
    parts: Mapping[str, Identity],
) -> str:
    """The key of a trained model and of the checkpoints on the way to it. `model` is the one that
    training begins with, and `threat` what it trains against.

    Invalidated by what invalidates the recipe and the parts, by other weights to begin with (and
    so by other content of a file of weights), by other training images or labels (of those to test
    on, where nothing is trained), another threat, seed, version of the training loop or of torch,
    kind of device, or number of threads, because training rounds otherwise on another number.
    """
    identity = {
        "recipe": identify_recipe(recipe),
        "start": fingerprint(model),
        "parts": dict(parts),
        "loop": loop.VERSION,
        "data": identify_data(dataset, "train" if recipe.is_fitted else "test"),
        "threat": None if threat is None else dataclasses.asdict(threat),
        "seed": seed,
        "machine": [device.type, torch.__version__, torch.get_num_threads()],
    }
    return key_of(identity)


def identify_natural(about: Identity, device: torch.device, precision: str) -> Identity:
    """The verdicts on clean images of a model and data, which `about` names.

    Invalidated by what invalidates these, by another version of the judge or of torch, another
    kind of device, and another precision.
    """
    return {
        "judge": evaluator.VERSION,
        "torch": torch.__version__,
        "device": device.type,
        "precision": precision,
        **about,
    }


def identify_certificate(natural: Identity, threat: ThreatModel) -> Identity:
    """The radii that a model certifies. Invalidated as its natural cell, and by another norm."""
    return natural | {"certificate": threat.norm}


def identify_attacked(
    natural: Identity,
    attack: Attack,
    peers: Mapping[str, Identity],
    threat: ThreatModel,
    seed: int,
    samples: IntArray,
    block: int,
) -> Identity:
    """The records of an attack. `peers` are the models that it crafts points on, and `samples` the
    places of those that it is to attack, `block` at once.

    Invalidated as the model's natural cell, by what invalidates attack and peers, by another threat
    or seed; and, for attacks that draw their noise for a whole block at once, by another block
    size and by other samples.
    """
    identity = natural | {
        "threat": dataclasses.asdict(threat),
        "attack": identify_attack(attack, peers),
        "seed": seed,
    }
    if attack.facts.by_block:
        digest = hashlib.sha256(samples.astype("<i8").tobytes()).hexdigest()[:16]
        identity |= {"block": block, "samples": digest}
    return identity


def identify_network(network: nn.Module) -> Identity:
    """A network without weights of its own that stands between an attack and a model. Invalidated
    by another class, and by changes of its code where the user brings it."""
    return {"name": type(network).__name__} | _code([type(network)])


def _named(registry: Registry, thing: object, options: Identity) -> Identity:
    name = registry.name_of(type(thing)) or type(thing).__qualname__
    return {"name": name, "version": getattr(thing, "version", None), "options": options}


def _option(value: Any) -> Any:
    """An option as JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): _option(value[key]) for key in value}
    if isinstance(value, list | tuple):
        return [_option(each) for each in value]
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


def _code(classes: Iterable[type], modules: Iterable[str] = ()) -> Identity:
    """The user's own code among the modules of some classes and of their bases, if any."""
    names = {base.__module__ for cls in classes for base in cls.__mro__}
    code = identify_code([*sorted(names), *modules])
    return {"code": code} if code else {}
