"""The keys that name results, so that a result is found again as long as it is valid.

A key is a hash of an *identity*: a dictionary of all that determines the result, and of nothing
else. In an identity,

- attacks and recipes are named by their registered names, declared versions and options,
- models by the content of their weights,
- data by the content of their images and labels,
- the user's own code by its source, and that of the local modules that it imports.

The places of files, the names of folders and the labels of rows are not in it. So moving or
commenting our code, or moving the user's code, invalidates no result. If our code changes its
behaviour, it must declare a new version (`tests/test_versions.py` notices where that is forgotten).

The identity of every cell holds the judge's version, torch's version, the kind of device and the
precision. The docstring of each function says what else invalidates the result that it names.
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
from benchmark.data.dataset import fingerprint as fingerprint_of
from benchmark.errors import UserError
from benchmark.judge import evaluator
from benchmark.judge.records import IntArray
from benchmark.spec.components import SOURCE
from benchmark.spec.proof_setting import Proofs
from benchmark.spec.registry import ATTACKS, DEFENSES, Registry
from benchmark.spec.run_spec import Part
from benchmark.user_code import identify_code
from defenses import Recipe
from defenses.training import loop
from defenses.weights import feed, fingerprint

Identity = dict[str, Any]

# What the identity of an attack's records adds to that of the verdicts on clean images.
_OF_ATTACKS = ("threat", "attack", "seed", "block", "samples")


def key_of(identity: Identity) -> str:
    """The key of an identity: the first 16 hexadecimal digits of its SHA-256."""
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def identify_data(
    dataset: Dataset, split: Part, labels: str = "data", order: IntArray | None = None
) -> Identity:
    """The identity of the images and labels in a split of a data set.

    order  (n,), the numbers of all samples in the order in which they are used; None where that is
           the order of the split.

    How many of the images are used is not in it, because cells hold records by their place in that
    order.

    Invalidated by another name of the data set, by any other image or label in the split, by
    other features that attacks must not change, by another choice of `labels` (as in a `RunSpec`),
    and by another order.
    """
    identity = {"name": dataset.name, "sha256": dataset.fingerprint(split)}
    identity |= {} if dataset.frozen is None else {"frozen": fingerprint_of(dataset.frozen)}
    identity |= {} if labels == "data" else {"labels": labels}
    return identity | ({} if order is None else {"order": _digest(order)})


def identify_attack(attack: Attack, peers: Mapping[str, Identity]) -> Identity:
    """The identity of a configured attack, with that of the attacks inside it.

    `peers` are the identities of other models, by the names that the option `source` gives them.

    Invalidated by another registered name, version or option of the attack or of one inside it. A
    source counts by its model and not by its name. An attack that the user brings is also
    invalidated by changes of its code.
    """
    options: Identity = {}
    seen: set[str] = set()  # the models that are identified with the options
    fields = dataclasses.fields(attack) if dataclasses.is_dataclass(attack) else ()
    for name in [field.name for field in cast("tuple[dataclasses.Field[Any], ...]", fields)]:
        value = getattr(attack, name)
        if isinstance(value, Attack) and not isinstance(value, type):
            options[name] = identify_attack(value, peers)
            seen.update(value.facts.sources)
        elif name == SOURCE and value in peers:
            options[name] = peers[value]
            seen.add(value)
        else:
            options[name] = _option(value)
    # Models that the attack names by an option of another name.
    others = [peers[name] for name in sorted(set(attack.facts.sources) - seen) if name in peers]
    sources = {"sources": others} if others else {}
    return _named(ATTACKS, attack, options) | sources | _code([type(attack)])


def identify_recipe(recipe: Recipe) -> Identity:
    """The identity of a configured recipe, without the models that it builds on.

    Invalidated by another registered name, version or option. The labels of other rows, and the
    paths of weights and of code, do not count as options. A recipe that the user brings is also
    invalidated by changes of its code.
    """
    options = {name: _option(value) for name, value in recipe.settings().items()}
    return _named(DEFENSES, recipe, options) | _code([type(recipe)], recipe.code())


def identify_model(model: nn.Module, recipe: Recipe, parts: Mapping[str, Identity]) -> Identity:
    """The identity of a trained model.

    `parts` are the models that it was made of, by the recipe's field, each as `identify_part`
    identifies it.

    Invalidated by any other weight or buffer, by what invalidates its recipe or those of its parts,
    and, where the user brings modules, by changes of their code, and of what no state dict holds:
    other buffers, and attributes that are tensors, numbers or texts.
    """
    identity = {"weights": fingerprint(model), "recipe": identify_recipe(recipe)}
    code = _code({type(module) for module in model.modules()})
    unsaved = _unsaved(model) if code else {}
    return identity | code | unsaved | ({"parts": dict(parts)} if parts else {})


def identify_part(recipe: Recipe, parts: Mapping[str, Identity]) -> Identity:
    """The identity of a model that another was made of, without weights.

    Its weights are among those of the other model.
    """
    return identify_recipe(recipe) | ({"parts": dict(parts)} if parts else {})


def training_key(
    recipe: Recipe,
    model: nn.Module,
    dataset: Dataset,
    threat: ThreatModel | None,
    seed: int,
    device: torch.device,
    threads: int,
    parts: Mapping[str, Identity],
) -> str:
    """The key of a trained model, and of the checkpoints of its training.

    model   the model before its training.
    threat  the threat that it is trained against; None if there is none.
    parts   the models that it is made of, as for `identify_model`.

    Invalidated by what invalidates the recipe or the parts; by other weights of the model before
    training, and so by another content of a file of weights; by other training images or labels, or
    test images or labels if nothing is trained; and by another threat, seed, version of the
    training loop or of torch, kind of device, or number of threads, on which rounding depends.
    """
    identity = {
        "recipe": identify_recipe(recipe),
        "start": fingerprint(model),
        "parts": dict(parts),
        "loop": loop.VERSION,
        "data": identify_data(dataset, "train" if recipe.is_fitted else "test"),
        "threat": None if threat is None else identify_threat(threat),
        "seed": seed,
        "machine": [device.type, torch.__version__, threads],
    }
    return key_of(identity)


def identify_row(model: Identity, data: Identity) -> Identity:
    """The identity of a model with the data that it is measured on, from those of either.

    Invalidated by what invalidates the one or the other.
    """
    return {"defense": model, "data": data}


def identify_side(row: Identity, side: str, task: nn.Module | None) -> Identity:
    """The identity of a row whose images are those on one side of a binary task, by its name.

    task  the network that makes the model's logits those of the binary task; None if there is none.

    Invalidated by what invalidates the row, by the other side, and by another class of network.
    """
    return row | {"side": side} | ({} if task is None else {"task": identify_network(task)})


def identify_natural(
    about: Identity, device: torch.device, precision: str, traits: Mapping[str, int] | None = None
) -> Identity:
    """The identity of the verdicts on clean images; `about` is from `identify_row`.

    Invalidated by what invalidates the model or the data, and by another version of the judge or of
    torch, another kind of device, another precision, and other traits of the subject, such as the
    number of draws of a randomised model.
    """
    return {
        "judge": evaluator.VERSION,
        "torch": torch.__version__,
        "device": device.type,
        "precision": precision,
        **(traits or {}),
        **about,
    }


def identify_certificate(natural: Identity, threat: ThreatModel) -> Identity:
    """The identity of the radii that are certified; `natural` is from `identify_natural`.

    Invalidated by what invalidates the verdicts on clean images, and by another norm.
    """
    return natural | {"certificate": threat.norm}


def identify_search(natural: Identity, threat: ThreatModel, proofs: Proofs) -> Identity:
    """The identity of what a search for proofs shows; `natural` is from `identify_natural`.

    Which samples are tried is not in it, because records are of those alone.

    Invalidated by what invalidates the verdicts on clean images, by another threat, method or time
    limit, and by another version of bounds.
    """
    return natural | {"threat": identify_threat(threat), "attack": proofs.identity()}


def identify_threat(threat: ThreatModel) -> Identity:
    """The identity of a threat: its norm, its radius and its bounds."""
    fields = dataclasses.asdict(threat).items()
    return {name: value.tolist() if torch.is_tensor(value) else value for name, value in fields}


def identify_attacked(
    natural: Identity,
    attack: Attack,
    peers: Mapping[str, Identity],
    threat: ThreatModel,
    seed: int,
    samples: IntArray,
    block: int,
) -> Identity:
    """The identity of the records of an attack on a model.

    natural  what `identify_natural` returns for the model.
    peers    the identities of the models that the attack crafts its points on, by name.
    samples  (k,), the places of the samples to attack, `block` at a time.

    Invalidated by what invalidates the verdicts on clean images, the attack or the peers, and by
    another threat or seed. Attacks that draw their noise for a whole block at once are also
    invalidated by another block size and by other samples.
    """
    identity = natural | {
        "threat": identify_threat(threat),
        "attack": identify_attack(attack, peers),
        "seed": seed,
    }
    if attack.facts.by_block:
        identity |= {"block": block, "samples": _digest(samples)}
    return identity


def is_attacked(identity: Identity, natural: Identity, threat: ThreatModel, seed: int) -> bool:
    """Whether an identity is one that `identify_attacked` gives, of any attack, for these, or
    `identify_search`, which has no seed."""
    facts = identity.get("threat"), identity.get("seed", seed)
    return (
        "attack" in identity
        and natural.items() <= identity.items()
        and identity.keys() - natural.keys() <= set(_OF_ATTACKS)
        and facts == (identify_threat(threat), seed)
    )


def identify_network(network: nn.Module) -> Identity:
    """The identity of a network without weights, which stands between an attack and a model.

    Invalidated by another class, and, where the user brings the network, by changes of its code.
    """
    return {"name": type(network).__name__} | _code([type(network)])


def _digest(numbers: IntArray) -> str:
    return hashlib.sha256(numbers.astype("<i8").tobytes()).hexdigest()[:16]


def _named(registry: Registry, configured: object, options: Identity) -> Identity:
    """The identity of a configured attack or recipe with these options, but for its code."""
    name = registry.name_of(type(configured)) or type(configured).__qualname__
    return {"name": name, "version": getattr(configured, "version", None), "options": options}


def _option(value: Any) -> Any:
    """The value of an option as JSON can hold it."""
    if isinstance(value, Mapping):
        return {str(key): _option(value[key]) for key in value}
    if isinstance(value, list | tuple):
        return [_option(element) for element in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, nn.Module):
        return {"weights": fingerprint(value)} | identify_network(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: _option(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
        return {"name": type(value).__qualname__, "options": fields} | _code([type(value)])
    if hasattr(value, "__qualname__"):  # a function or a class
        return {"name": value.__qualname__} | _code([], [value.__module__])
    text = repr(value)
    if " at 0x" in text:
        raise UserError(
            f"an option is {text}, which cannot be told from another: make it a number, a text, a "
            "list, a function of a module or a dataclass"
        )
    return text


def _unsaved(model: nn.Module) -> Identity:
    """What identifies what a model holds beside its state dict; empty if it has nothing there.

    That is buffers that are not persistent, and attributes that are tensors, numbers or texts.
    """
    digest, saved = hashlib.sha256(), set(model.state_dict(keep_vars=True))
    tensors, plain = dict(model.named_buffers()), {}
    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            if torch.is_tensor(value):
                tensors[f"{prefix}.{name}"] = value
            elif name != "training" and _is_plain(value) and not hasattr(nn.Module, name):
                plain[f"{prefix}.{name}"] = repr(value)
    unsaved = {name: value for name, value in tensors.items() if name not in saved}
    for name, value in sorted(unsaved.items()):
        feed(digest, name, value)
    identity: Identity = {"unsaved": digest.hexdigest()} if unsaved else {}
    return identity | ({"attributes": key_of(plain)} if plain else {})


def _is_plain(value: Any) -> bool:
    """Whether a value is made of numbers and texts alone."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, (*value, *value.values())))
    return value is None or isinstance(value, bool | int | float | complex | str)


def _code(classes: Iterable[type], modules: Iterable[str] = ()) -> Identity:
    """What identifies the user's code in some modules, and in those of classes and their bases.

    It is empty if there is none. The versions of our attacks and recipes are in it, because the
    user's code may call any of them.
    """
    names = {base.__module__ for cls in classes for base in cls.__mro__}
    code = identify_code([*sorted(names), *modules])
    versions = [ATTACKS.versions(), DEFENSES.versions()]
    return {"code": code | {"ours": key_of({"versions": versions})}} if code else {}
