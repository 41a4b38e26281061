"""The model card of a row, in Markdown, which tells readers about it."""

from typing import Any

from benchmark.columns import NONE, eps_text, escaped
from defenses.training.saved import CARD, WEIGHTS
from leaderboard.submission.record import EVIDENCE, RECORD, SPEC, Record


def card_text(record: Record, card: dict[str, Any]) -> str:
    """The text on a submission's model and its numbers. `card` is the content of its card.json."""
    numbers = record.numbers
    low, high = numbers.interval
    versions = escaped(", ".join(f"{name} {value}" for name, value in card["versions"].items()))
    hyperparameters = card["hyperparameters"].items()
    options = "\n".join(f"- {escaped(f'{key}: {value}')}" for key, value in hyperparameters)
    certified = NONE if numbers.certified is None else f"{100 * numbers.certified:.1f} %"
    weights = record.weights.at or WEIGHTS
    threat = card["threat"]
    task = f"{record.task}: {record.threat.norm} eps {eps_text(record.threat.eps)}"
    against = (
        f"within {threat['norm']} {eps_text(threat['eps'])}" if threat else "no adversary named"
    )
    return f"""# {escaped(record.row)} on {escaped(record.data.name)}

{escaped(record.about) or "Trained as its specification says."}

| | |
|---|---|
| task | {task}, {record.samples} images |
| natural | {100 * numbers.natural:.1f} % |
| best-attack | {100 * numbers.best_attack:.1f} % [{100 * low:.1f}, {100 * high:.1f}] |
| certified | {certified} |
| parameters | {card["parameters"]} |
| weights | [{escaped(weights)}]({weights}), SHA-256 {record.weights.sha256} |
| training | {against}, seed {card["seed"]}, {card["seconds"]:g} s on {escaped(card["device"])} |
| made with | {versions} |

Files: [what was measured]({RECORD}), [how to make it again]({SPEC}), [the model's card]({CARD}),
and [the adversarial examples]({EVIDENCE}). `bestattack leaderboard check FOLDER` replays them.

Hyperparameters of `{card["component"]["name"]}`:

{options}
"""
