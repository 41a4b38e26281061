import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from attacks import ThreatModel
from defenses import (
    MLP,
    AdversarialTraining,
    SavedModelError,
    describe,
    fingerprint,
    load,
    read_card,
    round_to_half,
    save,
)

SHAPE = (1, 8, 8)


class Tied(nn.Module):
    """Two layers of one weight, a transposed view among the buffers, and a counter."""

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64, bias=False)
        self.second = nn.Linear(64, 64, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("turned", torch.rand(3, 5).T)
        self.register_buffer("steps", torch.tensor(7))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.second(self.first(x.flatten(1)).relu())
        return logits


@pytest.mark.parametrize("build", [lambda: MLP(SHAPE, 10), Tied])
def test_what_is_loaded_gives_the_logits_that_were_saved(
    build: type[nn.Module], tmp_path: Path
) -> None:
    model, other = build(), build()
    x = torch.rand(4, *SHAPE)
    save(tmp_path / "new" / "folder", model, {"defense": "vanilla"})
    load(tmp_path / "new" / "folder", other.train())
    assert torch.equal(other(x), model(x))
    assert fingerprint(other) == fingerprint(model)
    assert not other.training
    card = read_card(tmp_path / "new" / "folder")
    assert card["defense"] == "vanilla"
    assert card["fingerprint"] == fingerprint(model)
    assert card["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {
        "model.safetensors",
        "card.json",
    }


def test_saving_again_gives_the_same_bytes(tmp_path: Path) -> None:
    model = MLP(SHAPE, 10)
    for folder in ("a", "b"):
        save(tmp_path / folder, model, {"seed": 1})
    for name in ("model.safetensors", "card.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def refusal(folder: Path, model: nn.Module) -> str:
    before = fingerprint(model)
    with pytest.raises(SavedModelError) as error:
        load(folder, model)
    assert fingerprint(model) == before
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.safetensors", None, "missing or damaged: train"),
        ("model.safetensors", b"", "missing or damaged: train"),
        ("card.json", None, "no saved model"),
        ("card.json", b'{"sha256": "12', "damaged: train"),
        ("card.json", b"\xff\xfe", "damaged: train"),
        ("card.json", b"[1]", "damaged: train"),
        ("card.json", b"{}", "damaged: train"),
    ],
)
def test_missing_and_damaged_files_are_refused(
    name: str, content: bytes | None, words: str, tmp_path: Path
) -> None:
    model = MLP(SHAPE, 10)
    save(tmp_path, model, {})
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    assert words in refusal(tmp_path, model)


def test_one_flipped_bit_is_refused(tmp_path: Path) -> None:
    model = MLP(SHAPE, 10)
    save(tmp_path, model, {})
    weights = bytearray((tmp_path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert "damaged" in refusal(tmp_path, model)


def test_another_model_is_refused(tmp_path: Path) -> None:
    save(tmp_path, MLP(SHAPE, 10), {})
    assert "wrong shape: 5.weight (10, 128) for (3, 128)" in refusal(tmp_path, MLP(SHAPE, 3))
    assert "2 missing: 7.weight, 7.bias" in refusal(
        tmp_path, nn.Sequential(*MLP(SHAPE, 10), nn.ReLU(), nn.Linear(10, 10))
    )
    assert "2 unexpected: 5.bias, 5.weight" in refusal(
        tmp_path, nn.Sequential(*list(MLP(SHAPE, 10))[:-1])
    )


def test_fingerprint_sees_names_types_shapes_and_bits() -> None:
    def of(name: str, value: Tensor) -> str:
        model = nn.Module()
        model.register_buffer(name, value)
        return fingerprint(model)

    value = torch.zeros(2, 3)
    nudged = value.clone()
    nudged[1, 2] = 1e-40
    others = [
        of("b", value),
        of("a", value.double()),
        of("a", value.T),
        of("a", nudged),
        of("a", -value),
        of("a", value.bool()),
        of("a", value.bfloat16()),
    ]
    assert of("a", value) not in others
    assert len(set(others)) == len(others)
    assert of("a", torch.rand(5, 5).T) != of("a", torch.rand(5, 5).T)
    turned = torch.rand(5, 4).T
    assert of("a", turned) == of("a", turned.contiguous())


def test_the_card_tells_all_that_made_the_model(tmp_path: Path) -> None:
    recipe = AdversarialTraining(epochs=3, eps=0.2)
    card = describe(
        "pgd-at",
        recipe,
        data="digits",
        shape=SHAPE,
        classes=10,
        threat=ThreatModel("linf", 0.1),
        seed=4,
        natural_accuracy=0.5,
        seconds=1.5,
    )
    save(tmp_path, MLP(SHAPE, 10), card)
    read = read_card(tmp_path)
    assert AdversarialTraining(**read["hyperparameters"]) == recipe
    assert ThreatModel(**read["threat"]) == ThreatModel("linf", 0.1)
    assert read["versions"]["torch"] == torch.__version__
    assert json.loads(json.dumps(card)) == {key: read[key] for key in card}
    assert {"parameters", "fingerprint", "sha256"} == read.keys() - card.keys()


@pytest.mark.parametrize("build", [lambda: MLP(SHAPE, 10), Tied])
def test_half_precision_loses_nothing_after_rounding(
    build: type[nn.Module], tmp_path: Path
) -> None:
    model, other = build(), build()
    x = torch.rand(4, *SHAPE)
    save(tmp_path / "whole", model, {})
    before = model(x)
    round_to_half(model)
    assert not torch.equal(model(x), before)
    assert torch.allclose(model(x), before, atol=1e-2)
    save(tmp_path / "half", model, {}, half=True)
    load(tmp_path / "half", other)
    assert fingerprint(other) == fingerprint(model)
    assert torch.equal(other(x), model(x))
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.6 * sizes[1]


def test_weights_beyond_half_precision_are_refused() -> None:
    model = MLP(SHAPE, 10)
    with torch.no_grad():
        model[1].bias[0] = 1e5
    with pytest.raises(ValueError, match=r"^1\.bias is beyond the range of half precision$"):
        round_to_half(model)


def test_infinite_weights_stay_infinite() -> None:
    model = MLP(SHAPE, 10)
    with torch.no_grad():
        model[1].bias[0] = torch.inf
    round_to_half(model)
    assert model[1].bias[0] == torch.inf
