"""Classifiers of Hugging Face's transformers."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from defenses.foreign.extras import installed, need
from defenses.foreign.sources import Asked, Brought
from defenses.foreign.torchvision_source import import_torchvision

# What models of text call their inputs.
_WORDS = ("input_ids", "decoder_input_ids")

# What a model's outputs call its logits, in order of preference.
_LOGITS = ("logits", "prediction_logits", "prediction_outputs")


class Transformers:
    """A classifier in a folder of `save_pretrained`, or by its name on the hub: of images, with its
    processor's normalisation, or any other that takes floats. A name is looked for among what was
    downloaded before, and fetched only with `pretrained`."""

    has_weights = True

    def identity(self, name: str) -> str:
        need("transformers", "transformers")
        config = Path(name) / "config.json"
        described = config.read_text(encoding="utf-8") if config.is_file() else name
        # The code that may come with it.
        for path in sorted(Path(name).glob("*.py")):
            described += f" {path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        return f"{described} {version('transformers')}"

    def bring(self, name: str, asked: Asked) -> Brought:
        need("transformers", "transformers")
        if installed("torchvision"):
            import_torchvision()
        import transformers

        local = not asked.pretrained
        options: dict[str, Any] = {"local_files_only": local, "trust_remote_code": asked.run_code}
        try:
            config = transformers.AutoConfig.from_pretrained(name, **options)
        except (OSError, ValueError) as error:
            raise ValueError(_unreadable(name, error, asked)) from error
        made = next(iter(config.architectures or ()), "")
        kind = getattr(transformers, made, None)
        if kind is None:
            if not asked.run_code:
                raise ValueError(
                    f"is a {made or 'model'} that transformers does not have: give run_code to run "
                    "the code that comes with it"
                )
            kind = transformers.AutoModelForImageClassification
        try:
            with _silent(transformers):
                model = kind.from_pretrained(name, **options | dict(asked.kwargs))
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(_unreadable(name, error, asked)) from error
        if model.main_input_name in _WORDS:
            raise ValueError(
                "takes the numbers of words, which have no small changes: models of images, sound "
                "and series can be evaluated"
            )
        processor = _processor(name, local)
        mean, std = (None, None) if processor is None else _normalisation(processor)
        note = ""
        is_of_images = processor is None or "image_mean" in processor
        if not is_of_images and "feature_extractor_type" in (processor or {}):
            note = "it is given the samples as they are, not what its feature extractor makes"
        return Brought(Keyword(model.float(), model.main_input_name), mean, std, note=note)


@contextmanager
def _silent(transformers: Any) -> Iterator[None]:
    """While the context lasts, the package shows no progress."""
    logging = transformers.utils.logging
    was_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_shown:
            logging.enable_progress_bar()


class Keyword(nn.Module):
    """A model that takes its input by a keyword, and gives its logits alone."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.model(**{self.name: x})
        for name in _LOGITS:
            logits = getattr(outputs, name, None)
            if isinstance(logits, Tensor):
                return logits
        raise ValueError(f"gives a {type(outputs).__name__}, which holds no logits")


def _processor(name: str, local: bool) -> dict[str, Any] | None:
    """What the file of a processor says; None without one."""
    from transformers.utils.hub import cached_file

    path = cached_file(
        name, "preprocessor_config.json", local_files_only=local,
        _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )  # fmt: skip
    if path is None:
        return None
    known: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return known


def _normalisation(known: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and std of images in [0, 1] that a processor says."""
    # Pixels from 0 to 255 are multiplied by the factor, and then normalised.
    factor = known.get("rescale_factor", 1 / 255) if known.get("do_rescale", True) else 1.0
    whole = 255 * factor
    mean, std = (0.0,), (1.0,)
    if known.get("do_normalize", True):
        mean, std = tuple(known.get("image_mean", mean)), tuple(known.get("image_std", std))
    return tuple(m / whole for m in mean), tuple(s / whole for s in std)


def _unreadable(name: str, error: Exception, asked: Asked) -> str:
    """Why a model cannot be had, in one line."""
    if not Path(name).exists() and not asked.pretrained:
        return "is no folder, nor was it downloaded before: give pretrained to fetch it"
    return f"cannot be read: {' '.join(str(error).split())}"
