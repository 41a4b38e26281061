import pytest
import torch
from torch import nn

from defenses import ARCHITECTURES, LeNet5, build_architecture

SHAPES = [(1, 8, 8), (3, 9, 14), (1, 28, 28), (3, 32, 20)]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("widen", [0.25, 1.0])
def test_images_become_logits_whatever_else_is_in_the_batch(
    name: str, shape: tuple[int, int, int], widen: float
) -> None:
    model = build_architecture(name, shape, 7, widen=widen).double()
    x = torch.rand(3, *shape, dtype=torch.float64)
    logits = model(x)
    assert logits.shape == (3, 7)
    torch.testing.assert_close(model(x[1:2]), logits[1:2])


def test_lenet5_is_the_size_of_its_source() -> None:
    def size(model: nn.Module) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    # 5x5 kernels on 1 and 32 channels, then 64 maps of 7x7 into 1024 units.
    first, second = 32 * (25 + 1), 64 * (32 * 25 + 1)
    assert size(LeNet5((1, 28, 28), 10)) == first + second + 1024 * (3136 + 1) + 10 * 1025
    assert size(LeNet5((1, 28, 28), 10)) == 3_274_634
    assert size(LeNet5((1, 28, 28), 10, widen=2)) > 3.9 * size(LeNet5((1, 28, 28), 10))


def test_default_goes_by_the_size_of_the_images() -> None:
    for shape, name in [((1, 8, 8), "mlp"), ((3, 32, 12), "mlp"), ((1, 16, 16), "lenet5")]:
        assert type(build_architecture("default", shape, 2)) is ARCHITECTURES[name]


@pytest.mark.parametrize(
    ("name", "shape", "options", "words"),
    [
        ("lenet", (1, 28, 28), {}, "default, lenet5, cnn2, mlp"),
        ("cnn2", (1, 3, 28), {}, "too small"),
        ("mlp", (1, 8, 8), {"widen": 0.0}, "widen"),
    ],
)
def test_refusals(
    name: str, shape: tuple[int, int, int], options: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        build_architecture(name, shape, 10, **options)
