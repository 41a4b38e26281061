"""What a defense may prove about its own predictions."""

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class HasCertificate(Protocol):
    """A defense that knows how far its predictions provably reach."""

    def certified_radius(self, x: Tensor) -> Tensor:
        """The certified L2 radius (n,), at least 0, of images x (n, *shape): within it the class
        that is predicted at the image, right or wrong, provably does not change. 0 where nothing is
        known. An image's radius does not depend on what else is in the batch."""
