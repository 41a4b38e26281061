"""A look at a model before it is judged: how it has to be called, and what is odd about it."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from attacks.generators import seeded
from attacks.messages import described
from benchmark.errors import UserError
from benchmark.judge.reading import as_called, find_calling
from benchmark.judge.replica import (
    copied,
    freeze,
    has_training_parts,
    is_training,
    precision_of,
    reseed,
    same_state,
    state_of,
)
from benchmark.judge.steadiness import (
    IMAGES,
    answers_otherwise,
    call,
    depends_on_batch,
    differ,
    hears_others,
    in_twin,
    is_random,
    rounding,
    swallows,
    telling_of,
    usual_size,
)
from benchmark.judge.subject import LOOKED_AT, UNDEFINED, USUAL, Subject, Terms, classes_of

# What images are multiplied by to be far from any.
_FAR = 100.0


def examine(model: nn.Module, x: Tensor, device: torch.device, terms: Terms = USUAL) -> Subject:
    """Copy a model into a Subject, and find out how it has to be called and judged, by its logits
    at some clean images x (n, *shape). The model stays as it is.

    Raises UserError where the model cannot be copied, or does not give logits on the images.
    """
    asked = None if terms.precision == "model" else getattr(torch, terms.precision)
    frozen = freeze(model, device, asked)
    x = x[:IMAGES].to(device, copy=True, memory_format=torch.contiguous_format)
    with seeded(terms.seed, torch.zeros(1, dtype=torch.int64), LOOKED_AT) as seed:
        reseed(frozen, seed)
        before = state_of(frozen)
        calling = find_calling(frozen, x, asked, terms.reading, terms.scale)
        subject = Subject(
            as_called(frozen, calling), device, calling.gives, precision_of(frozen), terms,
            calling, flags={"train-mode"} if has_training_parts(model) else set(),
        )  # fmt: skip
        x = x.to(subject.dtype)
        _check_logits(call(subject.model, x), x)
        try:
            subject = _tried(subject, x, seed)
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise UserError(
                f"the model fails on some of {len(x)} images: {described(error)}"
            ) from error
        may_have_twin = (subject.precision, calling.takes) == ("float32", torch.float32)
        if may_have_twin and not subject.is_random:
            exact = _in_twin(subject, x)
            subject.has_twin = exact is not None
            if exact is None:
                subject.flags.add("float32-only")
        else:
            is_exact = calling.takes == torch.float64 and not subject.is_random
            exact = call(subject.model, x) if is_exact else None
        if exact is not None and swallows(exact):
            subject.flags.add("coarse-logits")
    if not same_state(before, state_of(frozen)):
        model = as_called(freeze(model, device, asked), subject.calling)
        _check_beginning(subject, copied(model), model, x)
        return replace(subject, model=model, is_stateful=True)
    return subject


def note_on_mode(model: nn.Module) -> str:
    """What a report says of a model that was handed over in training mode, in which every model is
    made; empty for others. The flag `train-mode` is for parts alone."""
    if not is_training(model) or has_training_parts(model):
        return ""
    return "it was handed over in training mode, and measured in eval mode"


def _tried(subject: Subject, x: Tensor, seed: int) -> Subject:
    """The subject, treated as calls of its model on some images show it to be."""
    if is_random(subject.model, x):
        subject = subject.treated("random")
        return _alone(subject, x) if hears_others(subject.model, x, seed) else subject
    logits = call(subject.model, x)
    telling = telling_of(logits)
    subject = replace(
        subject, slack=rounding(subject.model, x), telling=telling,
        usual=usual_size(logits, telling),
    )  # fmt: skip
    if answers_otherwise(subject.model, x, subject.slack):
        raise UserError(
            "the model gives other logits where gradients are on (it may ask for grad mode or "
            "requires_grad): attacks would see another function than the one that is judged"
        )
    mixes = depends_on_batch(subject.model, x, subject.slack)
    return _alone(subject, x) if mixes else subject


def _alone(subject: Subject, x: Tensor) -> Subject:
    """The subject, whose images are forwarded one at a time. Raises UserError where it does not run
    on one of some images."""
    alone = subject.treated("batch-dependent")
    try:
        call(alone.model, x[:1])
    except Exception as error:
        raise UserError(
            "the model's output for an image depends on the batch, and it does not run on one "
            f"image alone: {described(error)}"
        ) from error
    return alone


def _check_beginning(subject: Subject, first: nn.Module, model: nn.Module, x: Tensor) -> None:
    """Raises UserError where a model that calls change is set up by the first images that it is
    given, since its figures would depend on them. `first` and `model` are fresh copies."""
    with torch.no_grad():
        together, alone = call(first, x)[:1], call(copied(model), x[:1])
    told = subject.slack, subject.telling, subject.usual
    if not subject.is_random and differ(together, alone, *told):
        raise UserError(
            "the model is set up by the first images that it is given, so that its outputs depend "
            "on them: call it on some images before it is evaluated"
        )


def _in_twin(subject: Subject, x: Tensor) -> Tensor | None:
    """The logits at images x of the model in float64; None where it does not run in it, or is
    another function."""
    try:
        return in_twin(subject.model, subject.twin, x)
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return None


def _check_logits(logits: Tensor, x: Tensor) -> None:
    """Raises UserError for what are not logits of two classes or more for each image."""
    if logits.dim() == 2 and len(logits) == len(x) and logits.shape[1] > 1:
        return
    single = logits.shape in ((len(x),), (len(x), 1))
    hint = ": pass binary=True if the sign of one logit decides between two classes"
    raise UserError(
        f"the model must give logits (n, classes) for {len(x)} images, not "
        f"{tuple(logits.shape)}{hint if single else ''}"
    )


def check_model(subject: Subject, x: Tensor, y: Tensor, classes: int | None) -> int:
    """Check that a model's logits fit the labels, and return how many it gives.

    x        (n, *shape), some of the clean images.
    y        all labels.
    classes  how many logits there must be; any number if None.

    Flags of the subject are set for what is odd but can be evaluated. Raises UserError where the
    logits do not fit.
    """
    x = x[:IMAGES].to(subject.device, subject.dtype)
    logits = call(subject.model, x)
    columns, reject = logits.shape[1], subject.terms.reject
    if reject is not None and not 0 <= reject < columns:
        raise UserError(f"reject={reject} is none of the {columns} classes of the model")
    if reject is not None and bool((y == reject).any()):
        raise UserError(
            f"class {reject} is that of rejected images, and some labels are it: name another by "
            "reject, or leave labels those of the data"
        )
    wanted = None if classes is None else classes + (reject is not None)
    if wanted is not None and columns != wanted:
        rejection = "" if reject is None else ", beside which there is one of rejection"
        raise UserError(
            f"the model gives {columns} logits and the data has {classes} classes{rejection}"
        )
    if int(y.max()) >= columns:
        raise UserError(f"labels go up to {int(y.max())} but the model gives {columns} logits")
    if bool((classes_of(logits) == UNDEFINED).all()):
        raise UserError(
            f"the model gives NaN or infinite logits on all of the first {len(x)} images"
        )
    is_closed = _ends_in_sigmoid if subject.terms.reading.binary else _ends_in_softmax
    if is_closed(subject.model, logits, x):
        subject.flags.add("probabilities")
    return int(columns)


def _ends_in_softmax(model: nn.Module, logits: Tensor, x: Tensor) -> bool:
    """Whether a model's logits (n, classes) are what a softmax gives."""
    sums = logits.sum(1)
    return bool((logits >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-4)


def _ends_in_sigmoid(model: nn.Module, logits: Tensor, x: Tensor) -> bool:
    """Whether a binary model's logits (n, 2) at images x are what a sigmoid gives: its output, the
    logit of class 1, lies in [0, 1]. Small logits may do so too, but not far from the images."""
    output = logits[:, 1]
    if not bool(((output >= 0) & (output <= 1)).all()):
        return False
    for factor in (_FAR, -_FAR):
        try:
            output = call(copied(model), factor * x)[:, 1]
        except torch.OutOfMemoryError:
            raise
        except Exception:  # some models refuse what is no image
            continue
        if bool(((output < 0) | (output > 1)).any()):
            return False
    return True
