"""A run of several defenses under several attacks, from which tests make pages."""

from pathlib import Path

import yaml

from benchmark.pages.run_page import Shown, render_page
from benchmark.run.run_folder import named, read_run
from benchmark.run.run_samples import data_again
from benchmark.run.runner import run
from benchmark.spec.run_spec import make_spec

SPEC = {
    "data": "digits",
    "samples": 60,
    "norm": "l2",
    "eps": 0.6,
    "defenses": [
        {"label": "plain <i>", "name": "vanilla", "epochs": 3},
        {"name": "l2nnn", "epochs": 1},
    ],
    "attacks": ["pgd/steps=5", "ddn/steps=20"],
}


def make_run(folder: Path) -> Path:
    """A run's folder."""
    run(make_spec(SPEC), folder, None, False, lambda line: None)
    return folder


def make_page(folder: Path) -> str:
    """The page of a run, with its images."""
    spec, manifest, reports = read_run(folder)
    dataset, samples = data_again(folder, spec, manifest, None)
    return render_page(reports, Shown(named(spec, manifest), manifest, samples, dataset.labels))


def spec_file(folder: Path) -> Path:
    """The spec of that run, as a file."""
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(SPEC))
    return path
