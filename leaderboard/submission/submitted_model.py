"""The model of a submission: its card, its weights, and the code that the submission brings.

That code is run only if the user allows it.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from benchmark.errors import UserError
from benchmark.models.trained import Trained, load_saved
from benchmark.spec.components import Component
from benchmark.spec.registry import only_plugins
from benchmark.spec.roster import recipe_of
from benchmark.spec.run_spec import RunSpec
from defenses import Recipe, SavedModelError
from defenses.training.saved import CARD, WEIGHTS
from leaderboard.submission.record import NEEDED, RECORD, SPEC, Record

# The options of an external defense that name code, "file.py:Factory" or "package.module:Factory".
_CODE = ("model", "python")


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    return sha256(path.read_bytes()).hexdigest()


def read_card(folder: Path) -> dict[str, Any]:
    """Read the card of a submission, and normalise it. Raises UserError where it is not a card."""
    try:
        return normalised(json.loads((folder / CARD).read_text(encoding="utf-8")))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{folder / CARD} is no card of a model") from error


def normalised(card: dict[str, Any]) -> dict[str, Any]:
    """A card with the components in it, which may be written in several forms, in the same form.

    Its parts are the cards of the models that the model was made of; they are normalised too.
    Raises KeyError, TypeError, ValueError or AttributeError where the mapping is not a card.
    """
    component = Component.model_validate(card["component"]).model_dump(mode="json")
    parts = {name: normalised(part) for name, part in card.get("parts", {}).items()}
    return card | {"component": component} | ({"parts": parts} if parts else {})


def foreign(card: dict[str, Any]) -> Iterator[str]:
    """The code that a normalised card and its parts name, as "FILE:NAME" or "MODULE:NAME", and
    models that bring code."""
    options = card["component"]["options"]
    for key in _CODE:
        if isinstance(options.get(key), str) and ":" in options[key]:
            yield options[key]
    if options.get("run_code"):
        yield str(options.get("transformers"))
    for part in card.get("parts", {}).values():
        yield from foreign(part)


def hyperparameters(recipe: Recipe) -> dict[str, Any]:
    """The options of a recipe as a card has them, in JSON."""
    options: dict[str, Any] = json.loads(json.dumps(recipe.hyperparameters(), default=str))
    return options


def code_files(card: dict[str, Any], spec: RunSpec) -> list[Path]:
    """The files of code that a model needs: plugins of the spec, and those that the card names."""
    named = [Path(model.partition(":")[0]) for model in foreign(card)]
    return list(dict.fromkeys([*spec.plugins, *(path for path in named if path.suffix == ".py")]))


def weights_of(folder: Path, record: Record) -> Path:
    """The file of a submission's weights.

    Raises UserError where it is missing, has not been downloaded, or is not the recorded one.
    """
    at = record.weights.at
    path = folder / (at or WEIGHTS)
    if at is not None and "://" in at:
        path = folder / WEIGHTS
        if not path.is_file():
            raise UserError(f"{folder}: its weights are at {at}: download them to {path}")
    if not path.is_file():
        raise UserError(f"{path} is missing, though {folder / RECORD} says that weights are there")
    if digest(path) != record.weights.sha256:
        raise UserError(f"{path} holds other weights than {folder / RECORD} says: SHA-256 differs")
    return path


def plugins_of(
    folder: Path, record: Record, card: dict[str, Any], spec: RunSpec, run_code: bool
) -> list[Path]:
    """The plugins that a submission brings, in its folder.

    Raises UserError where it brings code and `run_code` is not set, and where its spec or its card
    names code that its record does not list.
    """
    listed_code = [name for name in record.files if name not in NEEDED]
    files = code_files(card, spec)
    code = dict.fromkeys([*listed_code, *(path.name for path in spec.plugins), *foreign(card)])
    if code and not run_code:
        raise UserError(
            f"{folder} brings code of its own ({', '.join(code)}): read it, and give --run-code to "
            "run it"
        )
    for path in files:
        if path.name not in listed_code:
            raise UserError(f"{folder / SPEC} or {CARD} names {path.name}, which {RECORD} does not")
    return [folder / path.name for path in spec.plugins]


@contextmanager
def loaded(folder: Path, record: Record, spec: RunSpec, run_code: bool) -> Iterator[Trained]:
    """Load the model of a submission; its plugins are loaded while the context lasts.

    The files must be known to be those that the record lists. Raises UserError where the model
    cannot be loaded, and where the submission brings code and `run_code` is not set.
    """
    # Check the card against the record, and see what code the submission brings.
    card, weights = read_card(folder), weights_of(folder, record)
    if card.get("sha256") != record.weights.sha256:
        raise UserError(f"{folder / CARD} is of other weights than {RECORD}: its SHA-256 differs")
    plugins = plugins_of(folder, record, card, spec, run_code)
    # Load the model from a copy whose card names the code in the submission's folder.
    with tempfile.TemporaryDirectory() as home, only_plugins(plugins):
        (Path(home) / WEIGHTS).write_bytes(weights.read_bytes())
        (Path(home) / CARD).write_text(json.dumps(_at_home(card, folder)))
        try:
            saved = load_saved(Path(home))
        except (UserError, SavedModelError) as error:
            raise UserError(f"{folder}: {str(error).replace(home, str(folder))}") from error
        _check_card(folder, card, saved)
        yield saved


def _at_home(card: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The card, with the paths of code in it and in its parts in the submission's folder."""
    options = dict(card["component"]["options"])
    for key in _CODE:
        file, colon, factory = str(options.get(key, "")).partition(":")
        if colon and file.endswith(".py"):
            options[key] = f"{(folder / Path(file).name).absolute()}:{factory}"
    parts = {name: _at_home(part, folder) for name, part in card.get("parts", {}).items()}
    card = card | {"component": card["component"] | {"options": options}}
    return card | ({"parts": parts} if parts else {})


def _check_card(folder: Path, card: dict[str, Any], saved: Trained) -> None:
    """Raises UserError unless a card tells the truth about its model."""
    parameters = sum(parameter.numel() for parameter in saved.model.parameters())
    for name, actual in (
        ("fingerprint", saved.identity["weights"]),
        ("parameters", parameters),
    ):
        if card.get(name) != actual:
            raise UserError(f"{folder / CARD}: {name} is {card.get(name)}, of the model {actual}")
    recipe = recipe_of(Component.model_validate(card["component"]))
    if card.get("hyperparameters") != hyperparameters(recipe):
        raise UserError(f"{folder / CARD}: its hyperparameters are not those of its component")
