"""Learning-rate schedules: what the learning rate is multiplied by as training goes on.

Each is a function from the part of all steps that has been taken, in [0, 1), to a factor in [0, 1].
A new schedule is one function here, and one entry in SCHEDULES.
"""

import math
from collections.abc import Callable

Schedule = Callable[[float], float]

# The part of training in which `one_cycle` rises, and the factor that it rises from.
_RISE = 0.3
_BOTTOM = 1 / 25


def constant(done: float) -> float:
    """The learning rate stays as it is.

    >>> [constant(done) for done in (0.0, 0.5, 0.9)]
    [1.0, 1.0, 1.0]
    """
    return 1.0


def step(done: float) -> float:
    """A tenth in the second half (RoBin, section 5).

    >>> [step(done) for done in (0.0, 0.4, 0.5, 0.9)]
    [1.0, 1.0, 0.1, 0.1]
    """
    return 0.1 if done >= 1 / 2 else 1.0


def two_steps(done: float) -> float:
    """A tenth in the second third, a hundredth in the last (RoBin, section 5, for ResNet-50).

    >>> [two_steps(done) for done in (0.0, 0.4, 0.7)]
    [1.0, 0.1, 0.01]
    """
    if done >= 2 / 3:
        return 0.01
    return 0.1 if done >= 1 / 3 else 1.0


def cosine(done: float) -> float:
    """Down to 0 along half a cosine (Loshchilov and Hutter 2017, "SGDR", without restarts).

    >>> [round(cosine(done), 3) for done in (0.0, 0.25, 0.5, 0.75)]
    [1.0, 0.854, 0.5, 0.146]
    """
    return (1 + math.cos(math.pi * done)) / 2


def one_cycle(done: float) -> float:
    """Up from a 25th in a straight line for 30% of the steps, then down to 0 along half a cosine,
    as in fastai.

    Differs from the source (Smith and Topin 2018, "Super-Convergence"): they go down in a straight
    line.

    >>> [round(one_cycle(done), 3) for done in (0.0, 0.15, 0.3, 0.65)]
    [0.04, 0.52, 1.0, 0.5]
    """
    if done < _RISE:
        return _BOTTOM + (1 - _BOTTOM) * done / _RISE
    return cosine((done - _RISE) / (1 - _RISE))


SCHEDULES: dict[str, Schedule] = {
    "constant": constant,
    "step": step,
    "two-steps": two_steps,
    "cosine": cosine,
    "one-cycle": one_cycle,
}
