"""Several networks of one architecture, as one module."""

import copy
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from defenses.networks.architectures import Shape
from defenses.networks.at_once import at_once, few_images

# Elements of one network's largest tensor up to which a CPU runs all networks at once. Measured on
# one thread, 10 networks, forward and backward, how many times as fast as one by one: "cnn2" (3136
# elements an image) 3.1 for 1 image, 1.3 for 8, 1.0 for 20, 0.8 for 64; "mlp" (128) 1.7 for 64, 1.0
# for 256, 0.8 for 512. On a GPU it is not measured.
_MOST = 2**15


class Networks(nn.Module):
    """`count` networks, from images (1 or count, n, *shape), where 1 says that all share them, to
    (count, n, outputs).

    Every parameter and buffer of `network` has the networks as its first dimension. On a CPU they
    run at once for few images, and one by one for more, since their tensors then fit in no cache
    together; on an accelerator always at once.
    """

    def __init__(self, count: int, build: Callable[[], nn.Module], shape: Shape) -> None:
        super().__init__()
        built = [build() for _ in range(count)]
        self.count, self.few = count, few_images(_widest(built[0], shape), _MOST)
        self.network = built[0]
        for parts in zip(*(one.modules() for one in built), strict=True):
            for name, own in parts[0].named_parameters(recurse=False):
                values = [cast(Tensor, getattr(part, name)).detach() for part in parts]
                setattr(parts[0], name, nn.Parameter(torch.stack(values), own.requires_grad))
            for name, _ in parts[0].named_buffers(recurse=False):
                setattr(parts[0], name, torch.stack([getattr(part, name) for part in parts]))

    def forward(self, x: Tensor) -> Tensor:
        state = dict(self.network.named_parameters()) | dict(self.network.named_buffers())
        if at_once(x, self.few, accelerated=True):
            shared = len(x) == 1
            together = vmap(self._one, (0, None if shared else 0), randomness="different")
            return together(state, x[0] if shared else x)
        states = (
            dict(zip(state, row, strict=True))
            for row in zip(*(value.unbind() for value in state.values()), strict=True)
        )
        return torch.stack(list(map(self._one, states, x.expand(self.count, *x.shape[1:]))))

    def _one(self, state: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return cast(Tensor, functional_call(self.network, dict(state), (x,)))


def _widest(network: nn.Module, shape: Shape) -> int:
    """The most elements that a tensor between the network's layers has for one image."""
    sizes = []
    bare = copy.deepcopy(network).to("meta").eval()
    for module in bare.modules():
        module.register_forward_hook(lambda _, __, output: sizes.append(output.numel()))
    bare(torch.empty(1, *shape, device="meta"))
    return int(max(sizes))
