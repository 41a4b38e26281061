"""What a defense may prove of its own predictions."""

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class HasCertificate(Protocol):
    """A defense that knows how far its predictions provably reach."""

    def certified_radius(self, x: Tensor) -> Tensor:
        """At images x (n, *shape): the L2 radius (n,), at least 0, around each within which the
        class that is predicted there, right or wrong, provably does not change; 0 where nothing is
        known. Each image's is its own, whatever else is in the batch."""
