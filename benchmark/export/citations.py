"""Which papers each attack, defense and data set is from: keys of `references.bib`.

Whatever is registered has an entry here, OWN where it is our own work.
"""

from collections.abc import Mapping

from attacks.threat import Norm

Keys = tuple[str, ...]

ITSELF: Keys = ("bestattack",)
OWN: Keys = ()

_ROBIN: Keys = ("qian2020robin",)
_FRACTAL: Keys = ("qian2021fractal",)
_L2NNN: Keys = ("qian2019l2nnn",)
_DING: Keys = ("ding2019sensitivity",)
_L1: Keys = ("croce2021mind",)

ATTACKS: Mapping[str, Keys] = {
    "pgd": ("madry2018towards",),
    "apgd": ("croce2020reliable",),
    "cw": ("carlini2017towards",),
    "ddn": ("rony2019decoupling",),
    "boundary": ("brendel2018decision",),
    "rays": ("chen2020rays",),
    "square": ("andriushchenko2020square",),
    "strong": OWN,  # its parts are in PARTS
    "robin": _ROBIN,
    "best-arm": _ROBIN,
    "top-2": _ROBIN,
    "softmax": _ROBIN,
    "highest-arm": _ROBIN,
    "average-gradient": _ROBIN,
    "softmax-top-2": _ROBIN,
    "hierarchical": _ROBIN,
    "targeted": ("croce2020reliable",),
    "smoothed": _FRACTAL,
    "bpda": ("athalye2018obfuscated",),
    "transfer": _ROBIN,
    "seeded": _FRACTAL,
    "foolbox": ("rauber2017foolbox", "rauber2020foolbox"),
    "torchattacks": ("kim2020torchattacks",),
}

# What attacks are made of beside that, under a norm.
PARTS: Mapping[tuple[str, Norm], Keys] = {
    ("apgd", "l1"): _L1,
    ("square", "l1"): _L1,
    ("strong", "l1"): (*ATTACKS["square"], *_L1),
    ("strong", "l2"): (*ATTACKS["square"], *ATTACKS["ddn"], *ATTACKS["boundary"]),
    ("strong", "linf"): (*ATTACKS["square"], *ATTACKS["ddn"], *ATTACKS["rays"]),
}

# Options whose values say more, of attacks and defenses.
OPTIONS: Mapping[tuple[str, str], Keys] = {
    ("ranking", "distance"): ("melamed2024malt",),
    ("objective", "probability-margin"): ("xie2024million",),
    ("objective", "dlr"): ATTACKS["apgd"],
    ("method", "pgd-at"): ATTACKS["pgd"],
    ("method", "trades"): ("zhang2019theoretically",),
    ("method", "mart"): ("wang2020improving",),
}

DEFENSES: Mapping[str, Keys] = {
    "vanilla": OWN,
    "pgd-at": ATTACKS["pgd"],
    "trades": OPTIONS["method", "trades"],
    "mart": OPTIONS["method", "mart"],
    "lp-robust": ("wong2018provable", *_DING),
    "robin": _ROBIN,
    "one-vs-one": _ROBIN,
    "hierarchical": _ROBIN,
    "ensemble": _ROBIN,
    "nbr": ("qian2020neural", *_FRACTAL),
    "fractal": _FRACTAL,
    "best-fractal": _FRACTAL,
    "gnb": _FRACTAL,
    "mrf": _FRACTAL,
    "belief": _FRACTAL,
    "external": OWN,  # its sources are in SOURCES
    "l2nnn": _L2NNN,
    "hybrid": _L2NNN,
}

# Where an external model is from, by the option that names it.
SOURCES: Mapping[str, Keys] = {
    "timm": ("wightman2019timm",),
    "transformers": ("wolf2020transformers",),
    "robustbench": ("croce2021robustbench",),
}

# Which bounds prove robustness, by their method.
PROOFS: Mapping[str, Keys] = {
    "crown": ("zhang2018efficient",),
    "branch": (
        "zhang2018efficient", "xu2021fast", "bunel2020branch", "wang2021beta", "tjeng2019evaluating"
    ),
}  # fmt: skip

DATASETS: Mapping[str, Keys] = {
    "digits": ("alpaydin1998optical", "pedregosa2011scikit"),
    "mnist": ("lecun1998gradient",),
    "fashion-mnist": ("xiao2017fashion",),
    "cifar10": ("krizhevsky2009learning",),
    "cifar100": ("krizhevsky2009learning",),
    "svhn": ("netzer2011reading",),
    "tiny-imagenet": ("le2015tiny",),
}

# The variants of data sets that papers made.
VARIANTS: Mapping[str, Keys] = {
    **dict.fromkeys(("smooth", "saturate", "gamma", "scale", "edge"), _DING),
    "scramble": _L2NNN,
}

_FGSM: Keys = ("goodfellow2015explaining",)
_BIM: Keys = ("kurakin2017adversarial",)
_MOMENTUM: Keys = ("dong2018boosting",)
_DEEPFOOL: Keys = ("moosavi2016deepfool",)
_NESTEROV: Keys = ("lin2020nesterov",)
_TUNED: Keys = ("wang2021enhancing",)
_EAD: Keys = ("chen2018ead",)
_SMOOTHED_PGD: Keys = ("salman2019provably",)

# The attacks of torchattacks, as their docstrings have it. Others are the library's own.
TORCHATTACKS: Mapping[str, Keys] = {
    "APGD": ATTACKS["apgd"],
    "APGDT": ATTACKS["apgd"],
    "AutoAttack": ATTACKS["apgd"],
    "BIM": _BIM,
    "CW": ATTACKS["cw"],
    "DIFGSM": ("xie2019improving",),
    "DeepFool": _DEEPFOOL,
    "EADEN": _EAD,
    "EADL1": _EAD,
    "EOTPGD": ("zimmermann2019comment",),
    "FAB": ("croce2020minimally",),
    "FFGSM": ("wong2020fast",),
    "FGSM": _FGSM,
    "Jitter": ("schwinn2021exploring",),
    "MIFGSM": _MOMENTUM,
    "NIFGSM": _NESTEROV,
    "PGD": ATTACKS["pgd"],
    "PGDL2": ATTACKS["pgd"],
    "PGDRS": _SMOOTHED_PGD,
    "PGDRSL2": _SMOOTHED_PGD,
    "PIFGSM": ("gao2020patchwise",),
    "PIFGSMPP": ("gao2020patchwisepp",),
    "RFGSM": ("tramer2018ensemble",),
    "SINIFGSM": _NESTEROV,
    "SPSA": ("uesato2018adversarial",),
    "Square": ATTACKS["square"],
    "TIFGSM": ("dong2019evading",),
    "TPGD": OPTIONS["method", "trades"],
    "VMIFGSM": _TUNED,
    "VNIFGSM": _TUNED,
}

# The attacks of foolbox, by a part of their names, short ones among them; the first that fits. The
# others, such as noise and blur, are the library's own.
FOOLBOX: Mapping[str, Keys] = {
    "BrendelBethge": ("brendel2019accurate",),
    "Boundary": ATTACKS["boundary"],
    "CarliniWagner": ATTACKS["cw"],
    "DDN": ATTACKS["ddn"],
    "DeepFool": _DEEPFOOL,
    "EAD": _EAD,
    "FMN": ("pintor2021fast",),
    "HopSkipJump": ("chen2020hopskipjump",),
    "Inversion": ("hosseini2017limitation",),
    "NewtonFool": ("jang2017objective",),
    "Pointwise": ("schott2019towards",),
    "SparseL1Descent": ("tramer2019multiple",),
    "VirtualAdversarial": ("miyato2016distributional",),
    "ClippingAware": ("rauber2020clipping",),
    "Momentum": _MOMENTUM,
    "MIFGSM": _MOMENTUM,
    "ProjectedGradientDescent": ATTACKS["pgd"],
    "PGD": ATTACKS["pgd"],
    "BasicIterative": _BIM,
    "FastGradient": _FGSM,
    "FGM": _FGSM,
    "FGSM": _FGSM,
}
