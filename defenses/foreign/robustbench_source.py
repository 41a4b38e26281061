"""Models of RobustBench."""

import json
from pathlib import Path
from typing import Any

from defenses.foreign.extras import installed, need
from defenses.foreign.sources import Asked, Brought, OfLibrary
from defenses.foreign.torchvision_source import import_torchvision

_FOLDER = "models"


class RobustBench(OfLibrary):
    """A model named NAME/DATASET/THREAT, as in Carmon2019Unlabeled/cifar10/Linf, with its weights
    from RobustBench's own folder, `models`, or `kwargs: {model_dir: FOLDER}`. They are fetched only
    with `pretrained`."""

    package = "robustbench"
    has_weights = True

    def bring(self, name: str, asked: Asked) -> Brought:
        need("robustbench", "robustbench")
        if name.count("/") != 2:
            raise ValueError("write it as NAME/DATASET/THREAT, such as Standard/cifar10/Linf")
        if installed("torchvision"):
            import_torchvision()
        try:
            from robustbench.utils import load_model
        except ImportError as error:
            raise ValueError(
                f"robustbench does not import ({error}): pip install 'bestattack[robustbench]'"
            ) from error
        model, dataset, threat = name.split("/")
        folder = Path(asked.kwargs.get("model_dir", _FOLDER))
        file = folder / dataset / threat / f"{model}.pt"
        if not file.is_file() and not asked.pretrained:
            raise ValueError(f"{file} is missing: give pretrained to fetch it")
        network = load_model(model, str(folder), dataset, threat)
        return Brought(network, note=_reported(model, dataset, threat))


def _reported(model: str, dataset: str, threat: str) -> str:
    """What RobustBench reports of a model, in one line; empty where it says nothing."""
    import robustbench

    origin = Path(str(robustbench.__file__)).parent
    info = origin / "model_info" / dataset / threat / f"{model}.json"
    if not info.is_file():
        return ""
    known: dict[str, Any] = json.loads(info.read_text(encoding="utf-8"))
    reported = known.get("autoattack_acc") or known.get("reported")
    if reported is None:
        return ""
    return (
        f"RobustBench reports {known.get('clean_acc', '-')}% natural and {reported}% robust "
        f"accuracy under {threat} eps {known.get('eps', '-')}"
    )
