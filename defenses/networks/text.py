"""Plain sequential networks, written as text."""

import ast
import re
from typing import Any, cast

from torch import nn


def parse_layers(text: str) -> nn.Sequential:
    """Build the network that a text describes, such as "Conv2d(1, 16, 4, stride=2), ReLU(),
    Flatten(), Linear(2704, 10)".

    Each layer is a class of torch.nn, with or without "nn." before it, and has literal arguments.
    What print shows of an nn.Sequential can be read too, with others inside it. No other code runs.
    No layer works in place, even if the text says so: the logits are the same, and the images are
    not overwritten.

    Raises ValueError, in one line, for any other text, and for arguments that torch refuses.
    """
    # print numbers the layers in place of commas.
    text = re.sub(r"\)\s*\(\d+\):", "),", text)
    text = re.sub(r"(^|\()\s*\(\d+\):", r"\1", text)
    try:
        tree = ast.parse(f"Sequential({text}\n)", mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"not a list of layers: {error.msg}") from error
    network = cast(nn.Sequential, _layer(tree))
    if len(network) == 1 and isinstance(network[0], nn.Sequential):
        network = network[0]
    if not len(network):
        raise ValueError("no layers: write them as in Flatten(), Linear(784, 10)")
    for layer in network.modules():
        if "inplace" in vars(layer):
            vars(layer)["inplace"] = False
    return network


def _layer(node: ast.expr) -> nn.Module:
    if not isinstance(node, ast.Call):
        raise ValueError(f"{ast.unparse(node)} is not a layer: write Name(arguments)")
    name = ast.unparse(node.func).removeprefix("torch.").removeprefix("nn.")
    kind = vars(nn).get(name)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ValueError(f"{name} is not a layer of torch.nn")
    if kind is nn.Sequential and not node.keywords:
        return nn.Sequential(*(_layer(argument) for argument in node.args))
    args = [_literal(argument) for argument in node.args]
    kwargs = {str(keyword.arg): _literal(keyword.value) for keyword in node.keywords}
    try:
        return kind(*args, **kwargs)
    except Exception as error:
        raise ValueError(f"{ast.unparse(node)}: {error}") from error


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise ValueError(
            f"{ast.unparse(node)} is not a literal: write numbers, or texts in quotes"
        ) from error
