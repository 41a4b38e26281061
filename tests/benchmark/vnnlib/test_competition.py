"""All properties of a residual network of the verification competition, where its files lie."""

import csv
import gzip
import os
import time
from pathlib import Path

import pytest

from benchmark.vnnlib.properties import read_property
from benchmark.vnnlib.verdicts import Judge
from tests.benchmark.vnnlib.small_properties import NEEDS_ONNX, read_back, replayed

pytestmark = NEEDS_ONNX

FOLDER = Path(os.environ.get("BESTATTACK_DATA", ".")) / "vnncomp" / "sri_resnet_b"

# Seconds that a property may take, without the start of the program.
LIMIT_S = 4.0


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER.is_dir(), reason="BESTATTACK_DATA names no folder with vnncomp/")
def test_falsifiable_properties_are_sat_and_robust_ones_never(tmp_path: Path) -> None:
    (packed,) = (FOLDER / "onnx").glob("*.onnx.gz")
    judge = Judge(packed, exact=False)
    network = tmp_path / "net.onnx"
    network.write_bytes(gzip.decompress(packed.read_bytes()))
    rows = list(csv.DictReader((FOLDER / "verdicts.csv").open()))
    assert len(rows) == 72
    for row in rows:
        start = time.process_time()
        asked = read_property(FOLDER / "vnnlib" / f"{row['property']}.gz")
        verdict = judge.decide(asked, 60, 0)
        assert time.process_time() - start < LIMIT_S
        if row["verdict"] != "open":
            assert (verdict.status == "sat") == (row["verdict"] == "sat"), row["property"]
        if verdict.counterexample is not None:
            inputs, outputs = read_back(verdict.text())
            assert replayed(network, inputs) == [float(value) for value in outputs]
