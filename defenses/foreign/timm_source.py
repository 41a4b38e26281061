"""Classifiers of timm."""

from typing import Any

from attacks.messages import closest
from defenses.foreign.extras import need
from defenses.foreign.sources import Asked, Brought, OfLibrary
from defenses.foreign.torchvision_source import import_torchvision


class Timm(OfLibrary):
    """A classifier by its name in timm, such as resnet18 or vit_base_patch16_224.augreg_in21k, with
    the normalisation that timm has for it. With `pretrained`, with timm's weights."""

    package = "timm"

    def bring(self, name: str, asked: Asked) -> Brought:
        need("timm", "timm")
        import_torchvision()
        import timm

        if not timm.is_model(name.partition(".")[0]):
            close = closest(name.partition(".")[0], timm.list_models())
            hint = f"did you mean {close!r}?" if close else "see timm.list_models()"
            raise ValueError(f"timm has no model {name!r}: {hint}")
        options = dict(asked.kwargs)
        if not asked.pretrained:
            options = {"in_chans": asked.shape[0]} | options
            if asked.classes is not None:
                options = {"num_classes": asked.classes} | options
        model: Any = timm.create_model(name, pretrained=asked.pretrained, **options)
        known = model.pretrained_cfg
        mean, std = tuple(known.get("mean", ())), tuple(known.get("std", ()))
        if len(mean) not in (1, asked.shape[0]):
            return Brought(model)
        return Brought(model, mean, std)
