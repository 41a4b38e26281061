"""The attacks of other libraries, which are imported once one of their attacks is asked for."""

from attacks.libraries.foolbox import Foolbox
from attacks.libraries.torchattacks import TorchAttacks

__all__ = ["Foolbox", "TorchAttacks"]
