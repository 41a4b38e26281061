"""Several networks of one architecture, as one module."""

import copy
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from defenses.networks.architectures import Shape
from defenses.networks.at_once import at_once, few_images

# Elements of one network's largest tensor up to which all networks run at once, see `few_images`.
# Measured on one thread, 10 networks, forward and backward, how many times as fast as one by one:
# "cnn2" (3136 elements an image) 3.1 for 1 image, 1.3 for 8, 1.0 for 20, 0.8 for 64; "mlp" (128)
# 1.7 for 64, 1.0 for 256, 0.8 for 512. It is not measured on a GPU.
_MOST = 2**15


class Networks(nn.Module):
    """`count` networks of one architecture, from images (1 or count, n, *shape) to (count, n,
    outputs). A first dimension of 1 says that all networks share the images.

    build  makes a network; it is called once for each of them.
    shape  of the images: (channels, height, width).

    Every parameter and buffer of `network` has the networks as its first dimension. All networks
    run at once on few images, and one by one on more; on an accelerator they always run at once.
    """

    def __init__(self, count: int, build: Callable[[], nn.Module], shape: Shape) -> None:
        super().__init__()
        built = [build() for _ in range(count)]
        self.count, self.few = count, few_images(_widest(built[0], shape), _MOST)
        self.network = built[0]
        # Each layer of the first network takes in the weights of that layer of all.
        for layers in zip(*(network.modules() for network in built), strict=True):
            first = layers[0]
            for name, parameter in first.named_parameters(recurse=False):
                values = [cast(Tensor, getattr(layer, name)).detach() for layer in layers]
                setattr(first, name, nn.Parameter(torch.stack(values), parameter.requires_grad))
            for name, _ in first.named_buffers(recurse=False):
                setattr(first, name, torch.stack([getattr(layer, name) for layer in layers]))

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
        """The outputs (n, outputs) of the network with these weights."""
        return cast(Tensor, functional_call(self.network, dict(state), (x,)))


def _widest(network: nn.Module, shape: Shape) -> int:
    """The most elements that a tensor between the network's layers has for one image."""
    sizes = []
    bare = copy.deepcopy(network).to("meta").eval()
    for module in bare.modules():
        module.register_forward_hook(lambda _, __, output: sizes.append(output.numel()))
    bare(torch.empty(1, *shape, device="meta"))
    return int(max(sizes))
