"""Models made elsewhere: any torch.nn.Module, with its own weights and normalisation."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from attacks.messages import reason
from defenses.foreign.adapting.in_precision import taking_float32
from defenses.foreign.adapting.logits import Logits, Reading, kind_of
from defenses.foreign.adapting.normalisation import Normalised, scaled
from defenses.foreign.adapting.state_dicts import head_size, read_state, unwrapped
from defenses.foreign.python_source import module_name
from defenses.foreign.sources import KINDS, Asked, Brought, source
from defenses.networks.architectures import Shape, build_architecture
from defenses.networks.modes import evaluating
from defenses.networks.text import parse_layers
from defenses.recipes.recipe import Plain
from defenses.weights import misfit

# How many characters of foreign code's error are shown at most.
_LONGEST = 300

# The sources that are files of a network with its weights, or code.
_FILES = ("python", "onnx", "exported", "script")


@dataclass(frozen=True, kw_only=True)
class External(Plain):
    """A model made elsewhere, from one of several sources. It is trained further, with
    cross-entropy on clean images, only if `epochs` says so.

    python        "path/to/file.py:Factory" or "package.module:Factory", where Factory(**kwargs)
                  gives an nn.Module from images to logits. Its code is run.
    onnx          an ONNX file. It is converted, and refused where onnxruntime says otherwise.
    exported      a .pt2 file of `torch.export.save`.
    script        a TorchScript file.
    timm          the name of a model of timm.
    torchvision   the name of a classifier of torchvision.
    transformers  a folder of `save_pretrained`, or a name on the hub that was downloaded before.
    robustbench   "NAME/DATASET/THREAT" of a model in RobustBench's folder.
    model         the name of one of our own ARCHITECTURES; "FILE.py:Factory" is as `python`.
    layers        a plain sequential network as text: see parse_layers.

    kwargs      what the factory, the architecture or the library is given.
    weights     a .safetensors file, or a torch file that holds a state dict and nothing that needs
                code to load, possibly nested under "state_dict", "model_state_dict" or "model".
                Prefixes of names that DataParallel or a module around the network adds are removed.
    pretrained  take the weights that the library offers, and fetch them where they are not at hand.
    run_code    run code that comes with a model of transformers.
    mean, std   of the input normalisation that the model expects: see Normalised. If the weights
                hold them too, they must be the same. Libraries know them for their own weights.
    range       the lowest and the highest value that the model expects of images, such as 0, 255;
                mean and std are then of images in that range.
    output      where the logits are in what the model returns: an index, a key or an attribute.
    binary      whether the model gives one logit per image, which is above 0 for class 1.
    classes     which of the model's classes are those of the data, in order, where it has others.
    reject      the class by which the model rejects an image. It is put behind those of the data.

    Raises ValueError for options that exclude each other, and `build`, in one line, for code,
    files or weights that cannot be used.
    """

    later: ClassVar[tuple[str, ...]] = (
        *Plain.later, *KINDS, "pretrained", "run_code", "range", "output", "binary", "classes",
        "reject",
    )  # fmt: skip

    epochs: int = 0
    model: str = "default"
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    layers: str | None = None
    weights: str | Path | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    python: str | None = None
    onnx: str | None = None
    exported: str | None = None
    script: str | None = None
    timm: str | None = None
    torchvision: str | None = None
    transformers: str | None = None
    robustbench: str | None = None
    pretrained: bool = False
    run_code: bool = False
    range: tuple[float, float] | None = None
    output: int | str | None = None
    binary: bool = False
    classes: tuple[int, ...] | None = None
    reject: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if ":" in self.model:
            # The older way of writing it.
            if self.python is not None:
                raise ValueError("external: python and model name two models: leave one out")
            object.__setattr__(self, "python", self.model)
            object.__setattr__(self, "model", "default")
        if isinstance(self.output, str) and self.output.lstrip("-").isdecimal():
            object.__setattr__(self, "output", int(self.output))
        self._check_source()
        if self.arch != "default":
            raise ValueError(f"external: write model={self.arch!r} in place of arch")
        if (self.mean is None) != (self.std is None):
            raise ValueError("external: give both mean and std, or neither")
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError("external: range must be the lowest and the highest value: 0,255")
        if self.classes is not None and (
            len({*self.classes}) < max(2, len(self.classes)) or min(self.classes) < 0
        ):
            raise ValueError("external: classes must be two or more different numbers, from 0 on")
        if self.reject is not None and (
            self.reject < 0 or self.binary or self.reject in (self.classes or ())
        ):
            raise ValueError(
                "external: reject must be the number of a class of the model, which is none of "
                "the data's"
            )

    def _check_source(self) -> None:
        """Raises ValueError where not one source is named, or others' options are given."""
        named = [kind for kind in KINDS if getattr(self, kind) is not None]
        others = {"layers": self.layers is not None, "model": self.model != "default"}
        named += [name for name, is_named in others.items() if is_named]
        if len(named) > 1:
            raise ValueError(f"external: {' and '.join(named)} name {len(named)} models: keep one")
        if self.model.endswith(".py") or (self.python or "").endswith(".py"):
            file = self.python or self.model
            raise ValueError(f"external: name the class or the function: {file}:Network")
        if self.kind is not None and self.widen != 1:
            raise ValueError("external: widen is of named architectures: leave it out")
        if self.layers is not None and (self.kwargs or self.widen != 1):
            raise ValueError("external: layers say all: leave out kwargs and widen")
        if self.pretrained and (self.weights is not None or self.kind in (None, *_FILES)):
            raise ValueError("external: pretrained is for weights of a library, and no others")

    @property
    def kind(self) -> str | None:
        """The kind of source that the model comes from; None for our own architectures."""
        return next((kind for kind in KINDS if getattr(self, kind) is not None), None)

    def settings(self) -> dict[str, Any]:
        # The weights are the network's, and the file of code is in `code`.
        unsaid = ("weights", "pretrained", "run_code")
        settings = {name: value for name, value in super().settings().items() if name not in unsaid}
        if self.kind == "python":
            del settings["python"]
            return settings | {"model": str(self.python).rpartition(":")[2]}
        if self.kind is not None:
            with _foreign(self._name):
                settings[self.kind] = source(self.kind).identity(self._name)
        return settings

    @property
    def _name(self) -> str:
        """What the model is called in messages, and in its source."""
        if self.kind is not None:
            return str(getattr(self, self.kind))
        return self.model if self.layers is None else "layers"

    def check_weights(self) -> None:
        has_weights = None if self.kind is None else source(self.kind).has_weights
        if not (self.epochs or self.weights or self.pretrained or has_weights):
            offered = "" if self.kind is None else ", pretrained for the library's"
            raise ValueError(f"give weights{offered}, or epochs to train")
        if self.weights and has_weights is None and self.kind is not None and self.mean is None:
            raise ValueError(
                "give the mean and std that these weights were trained with, or mean=0 and std=1 "
                "where their images were in [0, 1]"
            )

    def rebuilding(self) -> Self:
        # The folder of a trained model has a copy of the weights; their own file may be gone.
        return replace(self, weights=None, pretrained=False)

    def code(self) -> tuple[str, ...]:
        return (module_name(self.python),) if self.python is not None else ()

    def build(self, shape: Shape, classes: int) -> nn.Module:
        columns = self._columns(classes)
        with _foreign(self._name):
            brought = self._brought(shape, None if self.classes or self.binary else columns)
        if self.weights is not None:
            with _foreign(self.weights):
                state = read_state(Path(self.weights))
                brought = self._with_weights(brought, shape, columns, state)
        model = self._normalised(taking_float32(brought.model.cpu(), shape), brought, shape)
        output = brought.output if self.output is None else self.output
        if output is not None or self.binary:
            model = Logits(model, Reading(output, self.binary))
        with _foreign(self._name), evaluating(model), torch.no_grad():
            outputs = model.cpu()(torch.zeros(1, *shape))
            chosen = self._chosen(outputs, classes)
        if chosen is not None:
            model = Logits(model, Reading(), chosen)
        if brought.note:
            model.note = brought.note  # type: ignore[assignment]
        if self.reject is not None:
            model.reject = classes  # type: ignore[assignment]
        return model

    def _chosen(self, outputs: Any, classes: int) -> tuple[int, ...] | None:
        """Which of the model's classes count, in order: those of the data, of which there are
        `classes`, and that of rejection behind them; None where these are all, as they are.

        outputs  of the model for an image. Raises ValueError where they are no logits of those.
        """
        wanted = self._columns(classes)
        if not isinstance(outputs, Tensor):
            raise ValueError(
                f"gives {kind_of(outputs)} for an image, not logits (1, {wanted}): say where they "
                "are by output=..."
            )
        columns = outputs.shape[1] if outputs.dim() == 2 and len(outputs) == 1 else 0
        if self.classes is None and columns != wanted:
            raise ValueError(_misshapen(outputs, wanted))
        if self.classes is not None and len(self.classes) != classes:
            raise ValueError(f"classes name {len(self.classes)}, and the data has {classes}")
        of_data = [number for number in range(columns) if number != self.reject]
        chosen = (*(self.classes or of_data), *(() if self.reject is None else (self.reject,)))
        if chosen and max(chosen) >= columns:
            raise ValueError(
                f"the model has classes 0 to {columns - 1}: there is no class {max(chosen)}"
            )
        return None if chosen == tuple(range(columns)) else chosen

    def _columns(self, classes: int) -> int:
        """How many logits there are for so many classes of the data."""
        return classes + (self.reject is not None)

    def _brought(self, shape: Shape, outputs: int | None) -> Brought:
        """The network that the options name: with fresh weights, or those of its source.

        outputs  how many it is to have, where that can be chosen; None: as many as it usually has.
        """
        if self.kind is not None:
            asked = Asked(shape, outputs, self.kwargs, self.pretrained, self.run_code)
            return source(self.kind).bring(self._name, asked)
        if self.layers is not None:
            return Brought(parse_layers(self.layers))
        options = {"widen": self.widen, **self.kwargs}
        outputs = outputs or len(self.classes or "1")
        return Brought(build_architecture(self.model, shape, outputs, **options))

    def _with_weights(
        self, brought: Brought, shape: Shape, columns: int, state: dict[str, Tensor]
    ) -> Brought:
        """The network with the weights of a state dict, with as many outputs as these are for.

        columns  the number of the data's classes, with that of rejection.

        Raises ValueError where they do not fit.
        """
        state = self._fitting(state, set(brought.model.state_dict()))
        outputs = head_size(brought.model, state)
        if outputs is not None and (self.kind is None or source(self.kind).has_weights is None):
            if not (self.classes or self.binary):
                wrong = f"is of {outputs} classes"
                if outputs < columns:
                    raise ValueError(f"{wrong}, and the data has {columns}")
                raise ValueError(
                    f"{wrong}: say by classes=... which of them are those of the data, in order"
                )
            brought = self._brought(shape, outputs)
        if problem := misfit(brought.model, state):
            raise ValueError(f"does not fit {self._name}: {problem}")
        brought.model.load_state_dict(state)
        return brought

    def _normalised(self, model: nn.Module, brought: Brought, shape: Shape) -> nn.Module:
        """The model as it takes images in [0, 1]."""
        mean, std = self.mean, self.std
        if mean is None and self.range is None and brought.unclear:
            raise ValueError(f"{self._name}: {brought.unclear}: give the mean and std it expects")
        if mean is None or std is None:
            mean, std = (brought.mean, brought.std) if self.range is None else ((0.0,), (1.0,))
        if mean is None or std is None:
            return model
        if len(mean) not in (1, shape[0]):
            raise ValueError(f"external: {len(mean)} means for {shape[0]} channels")
        if self.range is not None:
            mean, std = scaled(mean, std, *self.range)
        return Normalised(model, mean, std)

    def _fitting(self, state: dict[str, Tensor], known: set[str]) -> dict[str, Tensor]:
        """What is left of a state dict for a model whose tensors have the `known` names."""
        state = unwrapped(state, known)
        # A normalisation in the file must be the one that was given, which is not in the model yet.
        held = {}
        for name in sorted(state.keys() - known):
            if (option := name.split(".")[-1]) in ("mean", "std"):
                held[option] = state.pop(name).float().flatten()
        for option, value in held.items():
            given = getattr(self, option)
            if given is None or not torch.allclose(value, torch.tensor(given), atol=1e-4):
                wanted = [f"{key}: {[round(v, 5) for v in held[key].tolist()]}" for key in held]
                raise ValueError(f"holds a normalisation: give {' and '.join(wanted)}")
        state = unwrapped(state, known)
        # The code of TRADES, and all that follows it, saves a block that no forward uses.
        unused = {name for name in state if name.startswith("sub_block1.")} - known
        return {name: value for name, value in state.items() if name not in unused}


def _misshapen(outputs: Tensor, classes: int) -> str:
    """What is wrong with outputs that are no logits of the data's classes, and what to do."""
    wrong = f"gives {tuple(outputs.shape)} for an image, not logits (1, {classes})"
    if classes == 2 and outputs.numel() == 1:
        return f"{wrong}: give binary where it is one logit that is above 0 for class 1"
    if outputs.dim() == 2 and outputs.shape[1] > classes:
        return f"{wrong}: say by classes=... which of its classes are those of the data"
    return wrong


@contextmanager
def _foreign(name: object) -> Iterator[None]:
    """Whatever foreign code or files raise inside becomes a ValueError of one line."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{name}: {reason(error)[:_LONGEST]}") from error
