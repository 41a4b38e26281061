"""The losses of adversarial training, from logits at clean and at adversarial images.

Each takes clean logits (n, classes), those at adversarial images of the first m samples
(m, classes), and labels (n,), and gives a scalar. The other n - m samples count as if their
adversarial images were the clean ones. Of two classes, with s the log-odds of the label, they are
the losses of a binary classifier.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot


def divergence(clean: Tensor, adversarial: Tensor) -> Tensor:
    """KL(softmax of clean, softmax of adversarial) of each sample, (n, classes) twice to (n,)."""
    before, after = clean.log_softmax(1), adversarial.log_softmax(1)
    return (before.exp() * (before - after)).sum(1)


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
    count = len(adversarial)
    attacked = torch.cat([adversarial, clean[count:]])
    own = one_hot(y, clean.shape[1]).bool()
    rival = attacked.detach().masked_fill(own, -torch.inf).argmax(1, keepdim=True)
    without = attacked.scatter(1, rival, -torch.inf).logsumexp(1)
    boost = (attacked.logsumexp(1) - without).mean()
    wrong = 1 - clean.softmax(1)[own][:count]
    moved = (divergence(clean[:count], adversarial) * wrong).sum() / len(y)
    return cross_entropy(attacked, y) + boost + weight * moved
