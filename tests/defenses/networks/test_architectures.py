from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from defenses import ARCHITECTURES, LeNet5, build_architecture
from defenses.networks.architectures import Shape
from defenses.networks.residual import BasicBlock, Bottleneck, PreActivated, WideResNet

SHAPES = [(1, 8, 8), (3, 9, 14), (1, 28, 28), (3, 32, 20), (3, 64, 64)]
PLAIN = ["lenet5", "cnn2", "mlp"]
NORMALISED = ["myrtle", "resnet18", "resnet50", "wideresnet28"]


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_every_architecture_is_tested() -> None:
    assert [*PLAIN, *NORMALISED] == list(ARCHITECTURES)


@pytest.mark.parametrize(
    ("name", "widen"),
    [(name, w) for name in PLAIN for w in (0.25, 1.0)]
    + [(name, w) for name in NORMALISED for w in (0.01, 0.1)],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_images_become_logits_whatever_else_is_in_the_batch(
    name: str, shape: Shape, widen: float
) -> None:
    model = build_architecture(name, shape, 7, widen=widen).double().eval()
    x = torch.rand(3, *shape, dtype=torch.float64)
    logits = model(x)
    assert logits.shape == (3, 7)
    torch.testing.assert_close(model(x[1:2]), logits[1:2])


def test_lenet5_is_the_size_of_its_source() -> None:
    # 5x5 kernels on 1 and 32 channels, then 64 maps of 7x7 into 1024 units.
    first, second = 32 * (25 + 1), 64 * (32 * 25 + 1)
    assert size(LeNet5((1, 28, 28), 10)) == first + second + 1024 * (3136 + 1) + 10 * 1025
    assert size(LeNet5((1, 28, 28), 10)) == 3_274_634
    assert size(LeNet5((1, 28, 28), 10, widen=2)) > 3.9 * size(LeNet5((1, 28, 28), 10))


@pytest.mark.parametrize(
    ("name", "widen", "parameters"),
    [
        # Nakkiran et al. (2019), appendix B.1: 1,558,026, with biases that batch norm cancels.
        ("myrtle", 1, 1_558_026 - (64 + 128 + 256 + 512)),
        ("resnet18", 1, 11_173_962),
        ("resnet50", 1, 23_520_842),
        ("wideresnet28", 10, 36_479_194),
    ],
)
def test_published_networks_have_their_size(name: str, widen: int, parameters: int) -> None:
    with torch.device("meta"):
        model = build_architecture(name, (3, 32, 32), 10, widen=widen)
        assert model(torch.empty(2, 3, 32, 32)).shape == (2, 10)
    assert size(model) == parameters


def names_of(*modules: str, bias: bool = False) -> Iterator[str]:
    """State dict names of convolutions, linear layers and (those of a name with bn) batch norms."""
    for module in modules:
        norm = module.rpartition(".")[2].startswith(("bn", "1"))
        yield f"{module}.weight"
        if norm or bias:
            yield f"{module}.bias"
        if norm:
            yield from (f"{module}.{n}" for n in ("running_mean", "running_var"))
            yield f"{module}.num_batches_tracked"


@pytest.mark.parametrize(
    ("name", "counts", "convolutions"), [("resnet18", [2] * 4, 2), ("resnet50", [3, 4, 6, 3], 3)]
)
def test_resnets_name_their_weights_as_published_ones_do(
    name: str, counts: list[int], convolutions: int
) -> None:
    expected = {*names_of("conv1", "bn1"), *names_of("linear", bias=True)}
    for stage, count in enumerate(counts, 1):
        for block in range(count):
            at = f"layer{stage}.{block}"
            for n in range(1, convolutions + 1):
                expected |= {*names_of(f"{at}.conv{n}", f"{at}.bn{n}")}
            if block == 0 and (stage > 1 or name == "resnet50"):
                expected |= {*names_of(f"{at}.shortcut.0", f"{at}.shortcut.1")}
    with torch.device("meta"):
        assert set(build_architecture(name, (3, 32, 32), 10).state_dict()) == expected


@pytest.mark.parametrize("widen", [1, 10])
def test_wide_resnets_name_their_weights_as_published_ones_do(widen: int) -> None:
    expected = {*names_of("conv1", "bn1"), *names_of("fc", bias=True)}
    for stage in (1, 2, 3):
        for block in range(4):
            at = f"block{stage}.layer.{block}"
            expected |= {*names_of(f"{at}.bn1", f"{at}.conv1", f"{at}.bn2", f"{at}.conv2")}
            if block == 0 and (stage > 1 or widen > 1):
                expected |= {*names_of(f"{at}.convShortcut")}
    with torch.device("meta"):
        model = build_architecture("wideresnet28", (3, 32, 32), 10, widen=widen)
    assert set(model.state_dict()) == expected


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(8, 8, 1), (4, 8, 1), (8, 8, 2)])
def test_a_block_without_its_last_convolution_is_its_shortcut(
    inputs: int, outputs: int, stride: int
) -> None:
    x = torch.randn(3, inputs, 6, 5)
    same = inputs == outputs and stride == 1
    for kind in (BasicBlock, Bottleneck):
        block = kind(inputs, outputs, stride).eval()
        last = block.conv3 if isinstance(block, Bottleneck) else block.conv2
        nn.init.zeros_(last.weight)
        torch.testing.assert_close(block(x), (x if same else block.shortcut(x)).relu())
    before = PreActivated(inputs, outputs, stride).eval()
    before.bn1.running_mean = torch.randn(inputs)
    nn.init.zeros_(before.conv2.weight)
    shortcut = before.convShortcut
    activated = before.bn1(x).relu()
    torch.testing.assert_close(before(x), x if shortcut is None else shortcut(activated))
    assert (shortcut is None) == same


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_two_networks_at_once_are_the_two_one_by_one(name: str, training: bool) -> None:
    shape = (3, 8, 8)
    copies = [
        build_architecture(name, shape, 4, widen=0.1).double().train(training) for _ in range(2)
    ]
    parameters, buffers = stack_module_state(copies)
    x = torch.rand(2, 5, *shape, dtype=torch.float64)

    def run(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = functional_call(copies[0], state, (x,))
        return logits

    at_once = vmap(run)({**parameters, **buffers}, x)
    one_by_one = [model(points) for model, points in zip(copies, x, strict=True)]
    torch.testing.assert_close(at_once, torch.stack(one_by_one))
    slopes = torch.autograd.grad(at_once.square().sum(), list(parameters.values()))
    for slope, *own in zip(slopes, *(model.parameters() for model in copies), strict=True):
        alone = [
            torch.autograd.grad(y.square().sum(), p, retain_graph=True)[0]
            for y, p in zip(one_by_one, own, strict=True)
        ]
        torch.testing.assert_close(slope, torch.stack(alone))
    for key, stacked in buffers.items():
        torch.testing.assert_close(stacked, torch.stack([m.get_buffer(key) for m in copies]))
    moved = [key for key in buffers if key.endswith("num_batches_tracked")]
    assert all(torch.equal(buffers[key], torch.tensor([training] * 2).long()) for key in moved)
    assert bool(moved) == (name in NORMALISED)


def test_default_goes_by_the_size_of_the_images() -> None:
    for shape, name in [((1, 8, 8), "mlp"), ((3, 32, 12), "mlp"), ((1, 16, 16), "lenet5")]:
        assert type(build_architecture("default", shape, 2)) is ARCHITECTURES[name]


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_rows_of_a_table_are_for_mlp_alone(name: str) -> None:
    if name != "mlp":
        with pytest.raises(ValueError, match=f"{name} is for images, not for rows of 7 features"):
            build_architecture(name, (7,), 3)
        return
    torch.manual_seed(0)
    default = build_architecture("default", (7,), 3)
    torch.manual_seed(0)
    named, x = build_architecture("mlp", (7,), 3), torch.rand(4, 7)
    assert torch.equal(default(x), named(x))
    assert named(x).shape == (4, 3)


@pytest.mark.parametrize(
    ("name", "shape", "options", "words"),
    [
        ("lenet", (1, 28, 28), {}, "default, lenet5, cnn2, mlp"),
        ("cnn2", (1, 3, 28), {}, "too small"),
        ("myrtle", (1, 28, 3), {}, "too small"),
        ("resnet18", (1, 8, 8), {"widen": -1.0}, "widen"),
        ("mlp", (1, 8, 8), {"widen": 0.0}, "widen"),
    ],
)
def test_refusals(
    name: str, shape: tuple[int, int, int], options: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        build_architecture(name, shape, 10, **options)


@pytest.mark.parametrize("depth", [4, 20, 30])
def test_a_wide_resnet_has_whole_blocks(depth: int) -> None:
    with pytest.raises(ValueError, match=f"not {depth}"):
        WideResNet(3, 10, (2, 2, 2), depth)
