"""Build the wheel and the source distribution, look at what is in them, and try the wheel where
nothing else of this folder is. Run by `make package`; leaves both in dist/."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
CODE = ("attacks", "benchmark", "bestattack.py", "defenses", "leaderboard")

# What of these is of the repository alone: what the board has published.
LEFT_OUT = ("leaderboard/rows/", "leaderboard/site/", "leaderboard/README.md")

# How large a distribution may be, in bytes; the rows of the board would make it a hundred times
# larger.
LARGEST = 2_000_000


def main() -> None:
    """Build, look, try. Raises SystemExit, which says what is wrong."""
    shutil.rmtree(DIST, ignore_errors=True)
    # The wheel is made of the source distribution, so that this is tried as well.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(DIST), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode:
        sys.exit(built.stdout[-2000:] + built.stderr[-2000:])
    (wheel,), (source,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as packed:
        look(wheel, packed.namelist())
    with tarfile.open(source) as packed_source:
        files = [member.name for member in packed_source if member.isfile()]
        look(source, [name.partition("/")[2] for name in files])
    with tempfile.TemporaryDirectory() as folder:
        attempt(wheel, Path(folder))
    print(f"{wheel.name} works by itself")


def look(file: Path, names: Iterable[str]) -> None:
    """Compare what a distribution holds of the packages with what git knows of them."""
    known = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *CODE]
    listed = subprocess.check_output(known, cwd=ROOT, text=True).splitlines()
    expected = {name for name in listed if not name.startswith(LEFT_OUT)}
    held = set(names)
    if missing := sorted(expected - held):
        sys.exit(f"{file.name} lacks {', '.join(missing)}")
    ours = {name for name in held if name.split("/")[0] in (*CODE, "tests", "runs", "docs")}
    if beyond := sorted(ours - expected):
        sys.exit(f"{file.name} holds {', '.join(beyond)}, which git does not know or is not for it")
    size = file.stat().st_size
    if size > LARGEST:
        sys.exit(f"{file.name} is larger than {LARGEST / 1e6} MB: {size / 1e6:.1f} MB")
    print(f"{file.name}: {len(held)} files, {size / 1e6:.2f} MB")


def attempt(wheel: Path, folder: Path) -> None:
    """Install the wheel alone, with the libraries of this environment, and use it elsewhere."""
    home, work = folder / "venv", folder / "work"
    work.mkdir()
    # Nothing of this folder may be found, neither by a path nor as what is installed already.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache")}

    def call(*words: str | Path, status: int = 0) -> str:
        """What a command prints. Raises SystemExit where it ends otherwise."""
        ended = subprocess.run(
            words, cwd=work, env=environment, capture_output=True, text=True, check=False
        )
        printed = ended.stdout + ended.stderr
        if ended.returncode != status or "Traceback" in printed:
            sys.exit(f"{' '.join(map(str, words))}: status {ended.returncode}\n{printed}")
        return printed

    def expect(text: str, *words: str, status: int = 0) -> None:
        """Run a command that is installed, and find a text in what it prints, however wrapped."""
        printed = call(home / "bin" / words[0], *words[1:], status=status)
        if text not in " ".join(printed.split()):
            sys.exit(f"{' '.join(words)}: no {text!r} in\n{printed}")

    call(sys.executable, "-m", "venv", "--without-pip", home)
    python = home / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    call(*pip, "install", "--no-deps", "--no-index", wheel)
    inside = call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # A folder that a .pth file names comes last, and its own .pth files, such as that of an
    # editable bestattack, are not read.
    (Path(inside) / "libraries.pth").write_text(sysconfig.get_path("purelib"))

    version = wheel.name.split("-")[1]
    expect(inside, "python", "-c", "import bestattack; print(bestattack.__file__)")
    expect(f"bestattack {version}", "bestattack", "--version")
    expect(f"{version}, in {inside}", "bestattack", "doctor")
    expect("strong", "bestattack", "list", "attacks")
    expect("mnist-capacity", "bestattack", "list", "studies")
    expect("fractal", "python", "-c", _DEMO)
    words = ("--data", "digits", "--samples", "20", "--eps", "0.5", "--out", "runs/tiny")
    attacked = ("--defense", "vanilla/epochs=1", "--attack", "pgd/steps=5", "--quiet")
    expect("best-attack", "bestattack", "run", *words, *attacked)
    expect("The table of runs/tiny holds.", "bestattack", "verify", "runs/tiny")
    expect("verify", "bestattack", "leaderboard", "--help")
    # Rows are published in the repository; tasks are installed.
    clone = "start in a clone of bestattack's repository"
    expect(clone, "bestattack", "leaderboard", "verify", status=1)
    expect("is of no task", "bestattack", "leaderboard", "submit", "runs/tiny", status=1)


# The demo itself takes minutes, and is run by `make demo`: its spec is installed, and valid.
_DEMO = """
from benchmark.cli.demo_command import DEMO
from benchmark.spec.run_spec import make_spec, read_values
print([defense.label for defense in make_spec(read_values(DEMO)).defenses])
"""

if __name__ == "__main__":
    main()
