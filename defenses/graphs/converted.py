"""Networks that were converted from ONNX, as torch.export can read them."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

# Layers of converted networks that move numbers about, to places that constants name, which they
# look up in a way that cannot be traced; and those that give constants.
_MOVING = {
    "OnnxExpand", "OnnxFlatten", "OnnxGather", "OnnxReshape", "OnnxSlice", "OnnxSliceV9",
    "OnnxSqueezeDynamicAxes", "OnnxSqueezeStaticAxes", "OnnxTranspose", "OnnxUnsqueezeDynamicAxes",
    "OnnxUnsqueezeStaticAxes",
}  # fmt: skip
_CONSTANT = {"OnnxConstant", "OnnxConstantOfShape", "OnnxShape"}


class _Moved(nn.Module):
    """Gives the entries of a tensor at some places, in a shape."""

    places: Tensor

    def __init__(self, places: Tensor, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.register_buffer("places", places)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten()[self.places].reshape(self.shape)


def exportable(network: nn.Module, image: Tensor) -> nn.Module:
    """A copy of a network, on the CPU, for one image (1, *shape), where what a converter left of
    ONNX in it, if anything, can be traced. It shares no tensor with the network."""
    network = copy.deepcopy(network).cpu()
    graphs = [part for part in network.modules() if isinstance(part, fx.GraphModule)]
    for graph in graphs:
        seen: list[Any] = []
        hook = graph.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given))
        with torch.no_grad():
            network(image)
        hook.remove()
        if seen:
            _settle(graph, seen[0])
    return network


def _settle(graph: fx.GraphModule, given: tuple[Any, ...]) -> None:
    """Compute what does not depend on the inputs of a graph, and settle where moves go."""
    settled = _Settled(graph)
    with torch.no_grad():
        settled.run(*given)
    for node in list(graph.graph.nodes):
        value = settled.known.get(node)
        if isinstance(value, Tensor) and node.op == "call_module":
            name = f"settled_{node.name}"
            graph.register_buffer(name, value)
            with graph.graph.inserting_before(node):
                node.replace_all_uses_with(graph.graph.get_attr(name))
            graph.graph.erase_node(node)
        elif node in settled.moves:
            name = f"settled_{node.name}"
            graph.add_submodule(name, settled.moves[node])
            with graph.graph.inserting_before(node):
                moved = graph.graph.call_module(name, (settled.source[node],))
            node.replace_all_uses_with(moved)
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


class _Settled(fx.Interpreter):
    """Runs a graph, and notes what is constant in it and where moves go.

    known   the constants, by node.
    moves   the layers that move numbers, as they move them, by node, and `source` their inputs.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.known: dict[fx.Node, Any] = {}
        self.moves: dict[fx.Node, _Moved] = {}
        self.source: dict[fx.Node, fx.Node] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        kind = ""
        if n.op == "call_module":
            kind = type(self.module.get_submodule(str(n.target))).__name__
        inputs = n.all_input_nodes
        if (
            n.op == "get_attr"
            or kind in _CONSTANT
            or (n.op.startswith("call") and inputs and all(i in self.known for i in inputs))
        ):
            self.known[n] = value
        elif kind in _MOVING and isinstance(value, Tensor):
            moving = [i for i in inputs if i not in self.known]
            if moving == [n.args[0]]:
                before: Tensor = self.env[moving[0]]
                numbers = torch.arange(before.numel(), dtype=torch.float64).view(before.shape)
                layer = self.module.get_submodule(str(n.target))
                rest = [self.known[a] if isinstance(a, fx.Node) else a for a in n.args[1:]]
                places = layer(numbers.to(before.device), *rest)
                self.moves[n] = _Moved(places.flatten().long(), value.shape)
                self.source[n] = moving[0]
        return value
