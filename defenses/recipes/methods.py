"""The methods of adversarial training: what their examples climb, and the loss that they lower.

A new method is one entry in METHODS, below the functions that it needs, besides a row in the table
of `docs/defenses.md` and its outcomes in `tests/versions.json`. Its name is then a value of the
option `method` of every recipe that trains adversarially, and the name of a defense. Where what a
method computes changes, `AdversarialTraining.version` is to be raised.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from attacks.objectives import Objective
from defenses.recipes.adversarial_examples import Climb, label_loss

# From clean logits (n, classes), those at adversarial images of the first m samples (m, classes),
# labels (n,) and the weight of the second term to a scalar. The other n - m samples count as if
# their adversarial images were the clean ones. Of two classes, with s the log-odds of the label,
# losses are those of a binary classifier.
Loss = Callable[[Tensor, Tensor, Tensor, float], Tensor]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method of adversarial training.

    about         the docstring of the defense of its name: what it is, and where it is from.
    loss          see `Loss`.
    climbs        what its adversarial examples climb, see `Climb`.
    takes_weight  whether the loss has a second term, which the option `weight` weighs.
    clean_pass    True: the clean batch is forwarded separately. False: only the mixed batch is, so
                  the first `count` rows passed as clean logits are adversarial ones: for losses
                  that ignore them.
    """

    about: str
    loss: Loss
    climbs: Climb = label_loss
    takes_weight: bool = True
    clean_pass: bool = True


def divergence(clean: Tensor, adversarial: Tensor) -> Tensor:
    """KL(softmax of clean, softmax of adversarial) of each sample, (n, classes) twice to (n,)."""
    before, after = clean.log_softmax(1), adversarial.log_softmax(1)
    return (before.exp() * (before - after)).sum(1)


def divergence_from_clean(model: nn.Module, x: Tensor) -> Objective:
    """The divergence from what the model says at the clean images x (n, *shape), up to a constant:
    what the examples of TRADES climb."""
    with torch.no_grad():
        clean = model(x).softmax(1)
    return lambda logits, _: -(clean * logits.log_softmax(1)).sum(1)


def attacked(clean: Tensor, adversarial: Tensor) -> Tensor:
    """The logits (n, classes) at the adversarial images, and at the clean ones where a sample has
    no adversarial image."""
    return torch.cat([adversarial, clean[len(adversarial) :]])


def pgd_at(clean: Tensor, adversarial: Tensor, y: Tensor, weight: float) -> Tensor:
    """Cross-entropy at the adversarial images (Madry et al. 2018, "Towards deep learning models
    resistant to adversarial attacks")."""
    return cross_entropy(attacked(clean, adversarial), y)


def trades(clean: Tensor, adversarial: Tensor, y: Tensor, weight: float) -> Tensor:
    """Cross-entropy at the clean images, and `weight` times the divergence (Zhang et al. 2019,
    "Theoretically principled trade-off between robustness and accuracy"; RoBin, section 5)."""
    moved = divergence(clean[: len(adversarial)], adversarial).sum() / len(y)
    return cross_entropy(clean, y) + weight * moved


def mart(clean: Tensor, adversarial: Tensor, y: Tensor, weight: float) -> Tensor:
    """Boosted cross-entropy at the adversarial images, and `weight` times the divergence, of each
    sample as far as its clean image is misclassified (Wang et al. 2020, "Improving adversarial
    robustness requires revisiting misclassified examples"; RoBin, section 5).

    Boosted: -log p_y - log(1 - p_r), where r is the likeliest wrong class.

    Differs from the source: RoBin prints the boosted cross-entropy at the clean image; this is at
    the adversarial one, as Wang et al. have it.
    """
    logits, count = attacked(clean, adversarial), len(adversarial)
    label = one_hot(y, clean.shape[1]).bool()
    rival = logits.detach().masked_fill(label, -torch.inf).argmax(1, keepdim=True)
    without_rival = logits.scatter(1, rival, -torch.inf).logsumexp(1)
    boost = (logits.logsumexp(1) - without_rival).mean()
    wrong = 1 - clean.softmax(1).gather(1, y[:, None]).squeeze(1)[:count]
    moved = (divergence(clean[:count], adversarial) * wrong).sum() / len(y)
    return cross_entropy(logits, y) + boost + weight * moved


METHODS = {
    "pgd-at": Method(
        about="""Adversarial training with PGD (Madry et al. 2018), by RoBin's schedule (section
        5).""",
        loss=pgd_at,
        takes_weight=False,
        clean_pass=False,
    ),
    "trades": Method(
        about="""TRADES (Zhang et al. 2019), which trades natural accuracy for robustness, by
        RoBin's schedule (section 5).

        weight  lambda of RoBin, 1 by its default; Zhang et al. use 6 (their 1 / lambda).

        Differs from the source: PGD starts uniformly in the ball, as Madry et al. (2018) do.
        """,
        loss=trades,
        climbs=divergence_from_clean,
    ),
    "mart": Method(
        about="""Misclassification-aware adversarial training (Wang et al. 2020), by RoBin's
        schedule (section 5).

        weight  lambda of RoBin, 1 by its default; Wang et al. use 5.
        """,
        loss=mart,
    ),
}
