"""Measures of robustness that follow from the outputs of a model, image by image.

Source: "L2-nonexpansive neural networks" (Qian and Wegman 2019), sections 3.1 and 3.2.
"""

import math

import torch
from torch import Tensor, nn

from attacks.problem import NoGradientError, differentiate
from benchmark.judge.replica import freeze
from benchmark.judge.surroundings import full_precision
from defenses.nonexpansive.nonexpansive_classifier import confidence_gap

# How many images the mean norm of the Jacobian is taken over.
FIRST = 1000

# How many images are worked on at once. Ten classes of 3 x 32 x 32 pixels take 60 MB in float64.
_BLOCK = 256


@torch.no_grad()
@full_precision()
def gaps(model: nn.Module, x: Tensor, device: torch.device, block: int = _BLOCK) -> Tensor:
    """The confidence gap of each image: its largest logit less the second largest.

    x       (n, *shape), images; the model is run in their dtype.
    device  runs the model.
    block   how many images to run at once.

    Returns (n,), on the CPU. The model is copied, and the copy is run in eval mode. Raises
    UserError where the model cannot be copied.

    >>> x = torch.tensor([[0.9, 0.2, 0.5], [0.1, 0.3, 0.2]])
    >>> gaps(nn.Identity(), x, torch.device("cpu"))
    tensor([0.4000, 0.1000])
    """
    frozen = freeze(model, device, x.dtype)
    return torch.cat([confidence_gap(frozen(images.to(device))).cpu() for images in x.split(block)])


@full_precision()
def jacobian_norms(
    model: nn.Module, x: Tensor, device: torch.device, block: int = _BLOCK
) -> Tensor:
    """The spectral norm of the Jacobian of the logits at each image, in logits per L2 distance.

    It is the local Lipschitz constant of the vector of logits. Returns (n,), float64, on the CPU.
    The arguments are those of `gaps`. Raises UserError where the model cannot be copied, and
    NoGradientError (a ValueError) where it gives no gradients.

    >>> model = nn.Linear(2, 2)
    >>> _ = model.load_state_dict({"weight": torch.diag(torch.tensor([3.0, 1.0])),
    ...                            "bias": torch.zeros(2)})
    >>> jacobian_norms(model, torch.rand(2, 2), torch.device("cpu"))
    tensor([3., 3.], dtype=torch.float64)
    """
    frozen = freeze(model, device, x.dtype)
    return torch.cat(
        [_spectral_norms(frozen, images.to(device)).cpu() for images in x.split(block)]
    )


def mean_jacobian_norm(model: nn.Module, x: Tensor, device: torch.device) -> float:
    """The mean of `jacobian_norms` over the first FIRST images (section 3.1).

    It is NaN where the model gives no gradients.
    """
    try:
        return float(jacobian_norms(model, x[:FIRST], device).mean())
    except NoGradientError:
        return math.nan


def _spectral_norms(model: nn.Module, x: Tensor) -> Tensor:
    """What `jacobian_norms` returns, for images that are all worked on at once."""
    points = x.detach().requires_grad_()
    logits = model(points)
    gradients = [differentiate(logit, points, retain=True) for logit in logits.T]
    # The eigenvalues of the (classes, classes) products are cheaper than the singular values.
    jacobian = torch.stack(gradients, 1).flatten(2).double()
    largest: Tensor = torch.linalg.eigvalsh(jacobian @ jacobian.mT)[:, -1]
    return largest.clamp_min(0).sqrt()
