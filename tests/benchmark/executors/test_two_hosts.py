"""A run on two hosts: network namespaces with addresses of their own, one of which is cut off.

It needs root and iproute2, and takes away all that it made.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("ray")

_ROOT = Path(__file__).parents[3]
_ADDRESS = {"bestattack-1": "10.231.7.1", "bestattack-2": "10.231.7.2"}
_HEAD, _OTHER = _ADDRESS
_PORT = 6397

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2"
    ),
]

SPEC = """
data: digits
norm: linf
eps: 0.1
samples: 200
block: 16
defenses: [vanilla/epochs=1, pgd-at/epochs=1]
attacks: [pgd/steps=200, strong, "transfer:pgd/source=vanilla/epochs=1"]
"""


def _call(*words: str, host: str | None = None) -> subprocess.CompletedProcess[str]:
    inside = [] if host is None else ["ip", "netns", "exec", host]
    # Workers are to find the same code.
    ours = {"RAY_AUTH_MODE": "token", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(_ROOT)}
    return subprocess.run(
        [*inside, *words], env=os.environ | ours, capture_output=True, text=True, timeout=600,
        check=True,
    )  # fmt: skip


def _ray(host: str, *words: str) -> None:
    ray = str(Path(sys.executable).with_name("ray"))
    _call(ray, *words, host=host)


@pytest.fixture
def cluster() -> Iterator[str]:
    """The address of a cluster of two hosts of one core each."""
    try:
        for host in _ADDRESS:
            _call("ip", "netns", "add", host)
        _call("ip", "link", "add", "ba1", "type", "veth", "peer", "name", "ba2")
        for link, (host, address) in zip(("ba1", "ba2"), _ADDRESS.items(), strict=True):
            _call("ip", "link", "set", link, "netns", host)
            _call("ip", "-n", host, "addr", "add", f"{address}/24", "dev", link)
            for device in ("lo", link):
                _call("ip", "-n", host, "link", "set", device, "up")
        common = ["--num-cpus=1", "--disable-usage-stats"]
        _call(str(Path(sys.executable).with_name("ray")), "get-auth-token", "--generate")
        _ray(
            _HEAD, "start", "--head", f"--node-ip-address={_ADDRESS[_HEAD]}", f"--port={_PORT}",
            "--include-dashboard=false", *common,
        )  # fmt: skip
        head = f"{_ADDRESS[_HEAD]}:{_PORT}"
        _ray(_OTHER, "start", f"--address={head}", f"--node-ip-address={_ADDRESS[_OTHER]}", *common)
        yield head
    finally:
        for host in _ADDRESS:
            found = subprocess.run(
                ["ip", "netns", "pids", host], capture_output=True, text=True, check=False
            )
            for process in found.stdout.split():
                subprocess.run(["kill", "-9", process], check=False)
            subprocess.run(["ip", "netns", "del", host], check=False, capture_output=True)
        # Where Ray notes the cluster that was begun last on this machine.
        noted = Path(tempfile.gettempdir()) / "ray" / "ray_current_cluster"
        if noted.is_file() and _ADDRESS[_HEAD] in noted.read_text():
            noted.unlink()


def _command(out: Path, *words: str) -> list[str]:
    spec = out.parent / "spec.yaml"
    spec.write_text(SPEC)
    return [sys.executable, "-m", "bestattack", "run", str(spec), "--out", str(out), *words]


def _figures(out: Path) -> pd.DataFrame:
    """The table of a run, without how long things took."""
    table = pd.read_csv(out / "table.csv")
    return table[[column for column in table.columns if "second" not in column]]


def test_a_run_on_two_hosts_one_of_which_is_lost(cluster: str, tmp_path: Path) -> None:
    _call(*_command(tmp_path / "here", "--quiet", "--threads", "1"))
    expected = _figures(tmp_path / "here")
    cells = sorted(path.name for path in (tmp_path / "here" / "cells").iterdir())

    _call(*_command(tmp_path / "both", "--quiet", "--ray", cluster), host=_HEAD)
    assert _figures(tmp_path / "both").equals(expected)

    out = tmp_path / "cut"
    running = subprocess.Popen(
        ["ip", "netns", "exec", _HEAD, *_command(out, "--quiet", "--ray", cluster)],
        env=os.environ | {"RAY_AUTH_MODE": "token", "PYTHONPATH": str(_ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not list(out.glob("cells/*/*.npz")):
        assert running.poll() is None, running.stderr.read() if running.stderr else ""
        time.sleep(0.2)
    _call("ip", "-n", _OTHER, "link", "set", "ba2", "down")
    _, said = running.communicate(timeout=600)
    assert running.returncode == 0, said
    assert _figures(out).equals(expected)
    assert sorted(path.name for path in (out / "cells").iterdir()) == cells
