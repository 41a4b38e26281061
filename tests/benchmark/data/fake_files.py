"""Stand-ins for the official files of data sets, and for the mirrors that have them."""

import gzip
import hashlib
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import pytest
from numpy.typing import NDArray

from benchmark.data import files as data_files
from benchmark.data import places

Images = NDArray[np.uint8]


def isolate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing come from outside, and let the test change which files are official."""
    monkeypatch.delenv("BESTATTACK_DATA", raising=False)
    monkeypatch.setattr(places, "user_cache_path", lambda name: tmp_path / "cache")
    monkeypatch.setattr(places, "_SYSTEM", tmp_path / "system")
    monkeypatch.setattr(data_files, "MD5", dict(data_files.MD5))
    serve(monkeypatch, lambda url: pytest.fail(f"a download of {url}"))


def serve(monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], bytes]) -> None:
    """Pooch is left as it is, but for the network under it."""

    def download(self: Any, url: str, output_file: str, pooch: Any) -> None:
        Path(output_file).write_bytes(answer(url))

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", download)


def listed(folder: Path) -> list[str]:
    """What a folder holds, but for the lock that downloads leave in it."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def no_network(url: str) -> bytes:
    raise ConnectionError("no\nnetwork")


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def put(path: Path, content: bytes, official: bool = True) -> None:
    """Write a file; the official one is from now on the one that is expected there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    if official:
        packed = path.suffix == ".gz" and not path.name.endswith(".tar.gz")
        name = path.name.removesuffix(".gz") if packed else path.name
        plain = gzip.decompress(content) if packed else content
        data_files.MD5[f"{path.parent.name}/{name}"] = md5(plain)


def random_bytes(*shape: int) -> Images:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, np.uint8)


def pickled(images: Images, key: bytes, labels: Images) -> bytes:
    """What Python 2 wrote into CIFAR's python releases: text and bytes alike are BINSTRING."""

    def string(raw: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(raw)) + raw

    shape = struct.pack("<cicic", b"J", len(images), b"J", 3072, pickle.TUPLE2)
    dtype = b"cnumpy\ndtype\n" + string(b"u1") + b"K\0K\1\x87R"
    dtype += b"(K\3" + string(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + string(b"b")
    array += b"\x87R(K\1" + shape + dtype + b"\x89" + string(images.tobytes()) + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels.tolist()) + b"e"
    return b"\x80\2}(" + string(b"data") + array + string(key) + numbers + b"u."
