"""Classifiers of Hugging Face's transformers."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attacks.messages import reason
from defenses.foreign.extras import installed, need
from defenses.foreign.sources import Asked, Brought
from defenses.foreign.torchvision_source import import_torchvision

# The images that tell what a processor does, and how far it may round.
_SIDE, _ROUNDING = 32, 1e-4

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
        network = Keyword(model.float(), model.main_input_name)
        if model.main_input_name != "pixel_values" or asked.shape[0] != 3:
            told = _has_extractor(name, local)
            note = "it is given the samples as they are, not what its feature extractor makes"
            return Brought(network, note=note if told else "")
        mean, std, unclear = _normalisation(transformers, name, options)
        return Brought(network, mean, std, unclear=unclear)


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


def _has_extractor(name: str, local: bool) -> bool:
    """Whether a file says how samples are made into what the model takes."""
    from transformers.utils.hub import cached_file

    path = cached_file(
        name, "preprocessor_config.json", local_files_only=local,
        _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )  # fmt: skip
    return path is not None


def _normalisation(
    transformers: Any, name: str, options: dict[str, Any]
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None, str]:
    """The mean and std by which a model's processor normalises images in [0, 1], as it does so to
    some. The last is empty, or says why they cannot be told."""
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(name, **options)
    except (OSError, ValueError):
        is_there = _has_extractor(name, bool(options["local_files_only"]))
        return (
            None,
            None,
            f"its processor {'cannot be read' if is_there else 'is not saved with it'}",
        )
    of_timm = getattr(processor, "data_config", None)
    if isinstance(of_timm, dict) and {"mean", "std"} <= of_timm.keys():
        return tuple(of_timm["mean"]), tuple(of_timm["std"]), ""
    images = np.random.default_rng(0).integers(0, 256, (2, _SIDE, _SIDE, 3), np.uint8)
    try:
        made = processor(
            images=list(images), do_resize=False, do_center_crop=False, do_pad=False,
            return_tensors="pt",
        )["pixel_values"].double()  # fmt: skip
        given = torch.from_numpy(images.transpose(0, 3, 1, 2) / 255)
        if made.shape != given.shape:
            return None, None, f"its processor makes {tuple(made.shape[1:])} of an image"
    except Exception as error:
        return None, None, f"its processor fails ({reason(error)})"
    # Each channel is scaled and moved, or it is another function.
    flat, wanted = (x.movedim(1, 0).flatten(1) for x in (given, made))
    spread = flat - flat.mean(1, keepdim=True)
    slope = (spread * wanted).sum(1) / spread.square().sum(1)
    offset = wanted.mean(1) - slope * flat.mean(1)
    off = (slope[:, None] * flat + offset[:, None] - wanted).abs().amax()
    if float(off) > _ROUNDING * float(wanted.abs().max()):
        return None, None, "its processor does more than scale and move each channel"
    mean, std = (-offset / slope).tolist(), (1 / slope).tolist()
    return tuple(round(m, 6) for m in mean), tuple(round(s, 6) for s in std), ""


def _unreadable(name: str, error: Exception, asked: Asked) -> str:
    """Why a model cannot be had, in one line."""
    if not Path(name).exists() and not asked.pretrained:
        return "is no folder, nor was it downloaded before: give pretrained to fetch it"
    return f"cannot be read: {' '.join(str(error).split())}"
