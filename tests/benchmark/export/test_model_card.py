"""Model cards: what machines read of them, and that they repeat the run."""

import json
import re
from pathlib import Path

import pytest
import yaml

from benchmark.export.exported_run import ExportedRun
from benchmark.export.model_card import model_card
from benchmark.spec.components import BEST, CERTIFIED, NATURAL
from benchmark.spec.run_spec import make_spec
from tests.benchmark.export.conftest import LABELS, ODD

hub = pytest.importorskip("huggingface_hub")


def _results(text: str) -> list:  # type: ignore[type-arg]
    return hub.ModelCard(text).data.eval_results


def test_hugging_face_reads_the_numbers_of_each_row(run: Path) -> None:
    exported = ExportedRun.of(run)
    for report in exported.reports:
        labels = [NATURAL, *LABELS, *([CERTIFIED] if report.radii else []), BEST]
        text = exported.model_card(report.name)
        card = hub.ModelCard(text)
        assert card.data.model_name == report.name
        values = [result.metric_value for result in card.data.eval_results]
        assert values == [report.accuracy(label).value for label in labels]  # type: ignore[union-attr]
        for result in card.data.eval_results:
            assert (result.task_type, result.metric_type) == ("image-classification", "accuracy")
            assert (result.dataset_type, result.dataset_name) == ("digits", "digits")
            assert (result.dataset_split, result.source_url) == ("test", None)
        best = card.data.eval_results[-1]
        assert best.metric_name == "Best-attack accuracy (L2 eps 0.5)"
        assert best.metric_args["norm"] == "l2"
        assert best.metric_args["eps"] == 0.5
        low, high = best.metric_args["interval"]
        assert low < best.metric_value < high
        # What is read is what would be written again.
        index = yaml.safe_load(text.split("---\n")[1])["model-index"]
        assert card.data.to_dict()["model-index"] == index


def test_all_rows_are_in_one_card_unless_one_is_chosen(run: Path) -> None:
    exported = ExportedRun.of(run)
    metadata = yaml.safe_load(exported.model_card().split("---\n")[1])
    assert [entry["name"] for entry in metadata["model-index"]] == [ODD, "l2nnn/epochs=1"]
    one = exported.model_card("l2nnn/epochs=1", "https://example.org")
    assert "R&D" not in one.split("```yaml")[0]
    assert {result.source_url for result in _results(one)} == {"https://example.org"}


def test_what_failed_is_left_out_with_a_word(run: Path) -> None:
    manifest = json.loads((run / "run.json").read_text())
    manifest["rows"][1]["errors"] = {LABELS[0]: "it broke"}
    (run / "run.json").write_text(json.dumps(manifest))
    exported = ExportedRun.of(run)
    text = exported.model_card("l2nnn/epochs=1")
    assert not any("[a]" in result.metric_name for result in _results(text))
    assert "failed: it broke" in text
    assert re.search(r"\[a\]\* \$5 +\| +error \|", text)
    assert "NaN" not in text
    assert ".nan" not in text


def test_the_spec_in_a_card_repeats_the_run(run: Path) -> None:
    exported = ExportedRun.of(run)
    (text,) = re.findall(r"```yaml\n(.*?)```", exported.model_card(), re.S)
    assert make_spec(yaml.safe_load(text)) == make_spec(exported.run["spec"])


def test_a_card_names_files_without_their_folders(run: Path) -> None:
    exported = ExportedRun.of(run)
    defenses = ["saved:/home/me/models/mine", {"name": "external", "onnx": "/home/me/net.onnx"}]
    asked = make_spec(exported.run["spec"] | {"defenses": defenses, "plugins": ["/home/me/p.py"]})
    text = model_card(
        exported.reports, exported.spec, exported.run | {"spec": asked.model_dump(mode="json")}
    )
    assert "/home" not in text
    (spec,) = re.findall(r"```yaml\n(.*?)```", text, re.S)
    assert yaml.safe_load(spec)["plugins"] == ["p.py"]
    assert "saved:mine" in spec
    assert "net.onnx" in spec


def test_tables_in_files_are_tabular(run: Path) -> None:
    exported = ExportedRun.of(run)
    spec = exported.spec.model_copy(update={"data": "csv=/home/me/patients.csv/label=ill"})
    (result, *_) = _results(model_card(exported.reports[:1], spec, exported.run))
    assert result.task_type == "tabular-classification"
    assert result.dataset_type == "csv=patients.csv/label=ill"
    spec = exported.spec.model_copy(update={"data": "mnist/pair=4-9"})
    (result, *_) = _results(model_card(exported.reports[:1], spec, exported.run))
    assert (result.dataset_type, result.dataset_name) == ("ylecun/mnist", "mnist/pair=4-9")
