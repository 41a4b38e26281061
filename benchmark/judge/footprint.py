"""The memory that a block of images takes while it is attacked."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmark.judge.subject import Subject

# How many float32 copies of its images a block takes, roughly, at its peak.
_COPIES = 16

# Of how many images the memory is measured.
_MEASURED = 4


@dataclass(frozen=True)
class Footprint:
    """Bytes that attacks on a model take, roughly.

    fixed     for the model, in float64 too where it is judged in it.
    of_image  for each image of a block: what a forward pass keeps for the backward pass, and what
              attacks and the judge keep of images.
    """

    fixed: int
    of_image: int

    def of(self, block: int) -> int:
        """The bytes that a block of so many images takes.

        >>> Footprint(100, 3).of(20)
        160
        """
        return self.fixed + block * self.of_image

    def fitting(self, memory: float, most: int) -> int:
        """How many images fit in so many bytes; one at least, and `most` at most.

        >>> [Footprint(100, 3).fitting(memory, 256) for memory in (0, 400, 4000)]
        [1, 100, 256]
        """
        return int(max(1, min(most, (memory - self.fixed) // self.of_image)))


def footprint_of(subject: Subject, x: Tensor) -> Footprint:
    """What attacks on a subject take, by a forward pass of some images of x (n, *shape)."""
    images = x[:_MEASURED].to(subject.device, subject.dtype)
    tensors = [*subject.model.parameters(), *subject.model.buffers()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    kept = kept_by(subject.victim(), images) // len(images)
    copies = _COPIES * torch.float32.itemsize * images[0].numel()
    return Footprint(size * (3 if subject.has_twin else 1), kept + copies)


def kept_by(model: nn.Module, x: Tensor) -> int:
    """The bytes of what a forward pass keeps for the backward pass, beside the model's own; none
    where it fails."""
    known = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        place = _storage(tensor)
        if place is not None and place not in known:
            kept[place] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda held: held):
        try:
            logits = model(x.clone().requires_grad_().clone())  # which holds all of it
        except torch.OutOfMemoryError:
            raise
        except Exception:
            return 0
    del logits
    return sum(kept.values())


def _storage(tensor: Tensor) -> int | None:
    """What tensors that share memory have in common; sparse ones have no such thing."""
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else None
