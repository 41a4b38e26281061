"""What was seen of a model before it is attacked, as values and as text."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmark.direct.pass_cost import Cost
from benchmark.judge.footprint import Footprint
from benchmark.report.flags import FLAGS
from benchmark.terminal import Grid, Page, Tone, text


@dataclass(frozen=True)
class Trial:
    """What an attack did on a few images.

    seconds  how long it is going to take on all images.
    line     why there is no such number; empty where there is one.
    """

    tried: int = 0
    broken: int = 0
    forwards: float = 0.0
    backwards: float = 0.0
    seconds: float = math.nan
    line: str = ""


@dataclass(frozen=True, eq=False)
class Inspection:
    """What `inspect` saw. `print` shows it as text.

    name        what the model is called, and `kind` its class.
    parameters  how many it has, in `size` bytes with its buffers.
    shape       of a sample.
    classes     how many logits it gives.
    precision   in which it computes; `in_float64` says whether points are judged in float64 too.
    device      that it was looked at on.
    at_once     how many images it is given at once, exactly; None: as many as there are.
    is_random, is_stateful  whether it draws at random, and whether calls change it.
    smoothed    the operations that `strong` and `smoothed:` smooth, by name, with their number;
                None where the model fails when gradients are asked for.
    offers      what else it offers attacks and tables: certificate, arms, stages, surrogate.
    cost        of a pass, and `footprint`, the memory of a block.
    looked_at   how many clean images were judged, and `correct` of them rightly.
    flags       what is odd about it: see the page on flags.
    trials      what each attack did on some of the right ones, and what it will take.
    samples     the number of images that this is reckoned for, `block` at a time.
    judged      how many forward passes judge an image.
    notes       what the model's source says of it, and features that must not change.
    """

    name: str
    kind: str
    parameters: int
    size: int
    shape: tuple[int, ...]
    classes: int
    precision: str
    in_float64: bool
    device: str
    at_once: int | None
    is_random: bool
    is_stateful: bool
    smoothed: Mapping[str, int] | None
    offers: Sequence[str]
    cost: Cost
    footprint: Footprint
    looked_at: int
    correct: int
    flags: Sequence[str]
    trials: Mapping[str, Trial]
    samples: int
    block: int
    judged: int
    notes: Sequence[str]

    @property
    def seconds(self) -> float:
        """How long a run will take, roughly: every attack on every image that is classified
        correctly, as in a table. NaN where no attack could be tried."""
        tried = [trial.seconds for trial in self.trials.values() if not trial.line]
        return self.samples * self.judged * self.cost.forward + sum(tried) if tried else math.nan

    def __str__(self) -> str:
        return text(self.page()).rstrip()

    def page(self) -> Page:
        """All of it for a terminal."""
        rows: list[list[tuple[str, Tone]]] = [
            [(f"{title}:", "warning" if title in self.flags else ""), (line, "")]
            for title, line in self._lines()
        ]
        return [Grid((), rows, (True, True))]

    def _lines(self) -> list[tuple[str, str]]:
        cost = self.cost
        takes = f"{self.at_once} at a time" if self.at_once else "many at a time"
        behaves = ["draws at random" if self.is_random else "gives the same logits again"]
        behaves += ["calls change it"] if self.is_stateful else []
        alone = "batch-dependent" in self.flags
        behaves.append(
            "an image's logits depend on the batch: images are forwarded one by one"
            if alone else "an image's logits do not depend on the batch"
        )  # fmt: skip
        twice = ", judged in float64 too" if self.in_float64 else ""
        smoothed = "not known: the model fails when gradients are asked for"
        if self.smoothed is not None:
            counted = (f"{name} x {count}" for name, count in self.smoothed.items())
            smoothed = ", ".join(counted) or "nothing: strong climbs the model as it is"
        backward = "no gradients" if cost.backward is None else f"{short(cost.backward)} backward"
        lines = [
            ("model", f"{self.name} ({self.kind}), {self.parameters:,} parameters in "
             f"{in_bytes(self.size)}"),
            ("precision", f"{self.precision}{twice}, on {self.device}"),
            ("images", f"{self.shape}, {takes}"),
            ("logits", f"{self.classes}"),
            ("behaviour", "; ".join(behaves)),
            ("smoothed", smoothed),
            ("offers", ", ".join(self.offers) or "logits alone"),
            ("natural", f"{self.correct} of {self.looked_at} images are classified correctly"),
            ("a pass", f"{short(cost.forward)} forward, {backward} per image, {cost.block} at "
             "once"),
        ]  # fmt: skip
        lines.append(("memory", f"about {in_bytes(self.memory)} for blocks of {self.block}"))
        for label, trial in self.trials.items():
            lines.append((label, trial.line or _told(trial, self.samples)))
        if not self.trials:
            lines.append(("attacks", "none was tried: no image is classified correctly. Are mean, "
                          "std and range those that the model expects?"))  # fmt: skip
        elif len(self.trials) > 1 and not math.isnan(self.seconds):
            lines.append(("together", f"about {told(self.seconds)} for {self.samples} images"))
        lines += [("note", note) for note in self.notes]
        lines += [(code, FLAGS[code].line) for code in self.flags]
        return lines

    @property
    def memory(self) -> int:
        """Bytes that a block takes, roughly."""
        return self.footprint.of(self.block)


def _told(trial: Trial, samples: int) -> str:
    return (
        f"broke {trial.broken} of {trial.tried} with {trial.forwards:.0f} forward and "
        f"{trial.backwards:.0f} backward passes each: about {told(trial.seconds)} for {samples} "
        "images"
    )


def told(seconds: float) -> str:
    """A time, in the unit that suits it.

    >>> [told(seconds) for seconds in (3.2, 200, 9000, 300_000)]
    ['3 s', '3 min', '2.5 h', '3.5 days']
    """
    for unit, length, digits in (("days", 86400, 1), ("h", 3600, 1), ("min", 60, 0)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.{digits}f} {unit}"
    return f"{seconds:.0f} s"


def short(seconds: float) -> str:
    """A short time in the unit that suits it, with two digits at least.

    >>> [short(seconds) for seconds in (0.00002, 0.0123, 0.12, 2.5, 123)]
    ['0.020 ms', '12 ms', '120 ms', '2.5 s', '123 s']
    """
    size, unit = (seconds, "s") if seconds >= 1 else (1000 * seconds, "ms")
    return f"{size:.0f} {unit}" if size >= 10 else f"{size:#.2g} {unit}"


def in_bytes(count: int) -> str:
    """A number of bytes in the unit that suits it.

    >>> in_bytes(3000), in_bytes(346_000_000)
    ('3.0 KB', '346.0 MB')
    """
    size, units = float(count), iter(("B", "KB", "MB", "GB", "TB"))
    unit = next(units)
    while size >= 1000 and unit != "TB":
        size, unit = size / 1000, next(units)
    return f"{size:.1f} {unit}"
