"""`evaluate`: the benchmark as one function on a torch module, which needs no files."""

from collections.abc import Sequence
from typing import Any, Unpack

from torch import nn

from attacks import Attack
from attacks.threat import Norm
from benchmark.direct.request import Options, read_request
from benchmark.executors import Executor, executor_for
from benchmark.judge.records import MemoryCell
from benchmark.report.captions import may_reject_name
from benchmark.report.report import Report
from benchmark.run.assess import assessed


def evaluate(
    model: nn.Module,
    x: Any,
    y: Any = None,
    *,
    norm: Norm = "l2",
    eps: Any,
    attacks: Sequence[str | dict[str, Any] | Attack] = (),
    suite: str | None = None,
    **options: Unpack[Options],
) -> Report:
    """Attack a model on images x (n, *shape) in [0, 1] with labels y (n,) and report.

    model       from images to logits (n, classes), in any of torch's forms. It is copied and stays
                as it is.
    x, y        tensors, arrays, data frames or lists; or x alone, a Dataset or a DataLoader of
                images with labels, or a split of `load_dataset`. Labels are integers, or one-hot
                rows.
    norm, eps   the threat: "l2", "linf" or "l1", and the radius in the units of x, or of x / scale
                where there is a scale, also as "8/255"; or one radius per feature, which broadcast
                to a sample. Under "l2" and "l1" perturbations are then divided by them, feature by
                feature, and have length 1 at most.
    attacks     registered names with options ("pgd", "pgd/steps=40", {"name": "pgd", "steps": 40}),
                wrappers around other attacks ("best-arm:pgd"), series ("cw/steps=100,1000"), or
                configured Attack objects.
    suite       the name of a set of attacks, or "learned:RUN" for the cascade that is learned from
                the folder of a run; "strong" where neither it nor attacks are given.
    options     see `Options`.

    Raises UserError for input that cannot be evaluated. Changes nothing, not even global states.

    >>> import torch
    >>> x, y = torch.tensor([[0.6, 0.4], [0.9, 0.1]]).view(2, 1, 1, 2), torch.tensor([0, 0])
    >>> report = evaluate(nn.Flatten(), x, y, norm="linf", eps=0.2, attacks=["pgd"])
    >>> report.natural, report.best_attack  # the two pixels are the logits
    (1.0, 0.5)
    >>> report.adversarial["pgd"].index
    array([0])
    """
    request = read_request(model, x, y, norm, eps, attacks, suite, options)

    def measured(name: str, may_reject: bool, executor: Executor) -> Report:
        report = executor.run(
            assessed(
                name, model, request.samples, request.lineup, request.sources,
                request.settings(may_reject, executor), lambda key: MemoryCell(), request.about,
            )
        )  # fmt: skip
        scale = request.geometry.scale
        report.scale = None if scale is None else scale.numpy()
        report.origin = lambda: (request.samples, None)
        return report

    with executor_for(request.options.workers) as executor:
        report = measured(request.name, False, executor)
        if request.options.reject is not None:
            report.rejecting = measured(may_reject_name(request.name), True, executor)
    return report
