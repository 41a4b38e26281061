"""CIFAR-100, SVHN and Tiny ImageNet, in their official files.

Under a root lie `cifar100/cifar-100-python/` (or that without `cifar100/`), or one of the archives
`cifar100/cifar-100-python.tar.gz` and `cifar100/cifar-100-binary.tar.gz`; `svhn/train_32x32.mat`
and `svhn/test_32x32.mat`; and `tiny-imagenet/tiny-imagenet-200.zip`.
"""

import io
import re
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmark.data.dataset import Dataset, Split
from benchmark.data.files import Bytes, content_of, parsed, pickled_images
from benchmark.data.places import files_of
from benchmark.data.sources.image_files import Cut, Picture, read_pictures
from benchmark.images import Rows, kept
from benchmark.spec.run_spec import Part

_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""
# The folders of classes, which are called by their numbers in WordNet.
_TINY = """
n01443537 n01629819 n01641577 n01644900 n01698640 n01742172 n01768244 n01770393 n01774384
n01774750 n01784675 n01855672 n01882714 n01910747 n01917289 n01944390 n01945685 n01950731
n01983481 n01984695 n02002724 n02056570 n02058221 n02074367 n02085620 n02094433 n02099601
n02099712 n02106662 n02113799 n02123045 n02123394 n02124075 n02125311 n02129165 n02132136
n02165456 n02190166 n02206856 n02226429 n02231487 n02233338 n02236044 n02268443 n02279972
n02281406 n02321529 n02364673 n02395406 n02403003 n02410509 n02415577 n02423022 n02437312
n02480495 n02481823 n02486410 n02504458 n02509815 n02666196 n02669723 n02699494 n02730930
n02769748 n02788148 n02791270 n02793495 n02795169 n02802426 n02808440 n02814533 n02814860
n02815834 n02823428 n02837789 n02841315 n02843684 n02883205 n02892201 n02906734 n02909870
n02917067 n02927161 n02948072 n02950826 n02963159 n02977058 n02988304 n02999410 n03014705
n03026506 n03042490 n03085013 n03089624 n03100240 n03126707 n03160309 n03179701 n03201208
n03250847 n03255030 n03355925 n03388043 n03393912 n03400231 n03404251 n03424325 n03444034
n03447447 n03544143 n03584254 n03599486 n03617480 n03637318 n03649909 n03662601 n03670208
n03706229 n03733131 n03763968 n03770439 n03796401 n03804744 n03814639 n03837869 n03838899
n03854065 n03891332 n03902125 n03930313 n03937543 n03970156 n03976657 n03977966 n03980874
n03983396 n03992509 n04008634 n04023962 n04067472 n04070727 n04074963 n04099969 n04118538
n04133789 n04146614 n04149813 n04179913 n04251144 n04254777 n04259630 n04265275 n04275548
n04285008 n04311004 n04328186 n04356056 n04366367 n04371430 n04376876 n04398044 n04399382
n04417672 n04456115 n04465501 n04486054 n04487081 n04501370 n04507155 n04532106 n04532670
n04540053 n04560804 n04562935 n04596742 n04597913 n06596364 n07579787 n07583066 n07614500
n07615774 n07695742 n07711569 n07715103 n07720875 n07734744 n07747607 n07749582 n07753592
n07768694 n07871810 n07873807 n07875152 n07920052 n09193705 n09246464 n09256479 n09332890
n09428293 n12267677
"""
_TINY_SHAPE = (3, 64, 64)
_OF_CLASS = re.compile(r"tiny-imagenet-200/train/(n\d+)/images/n\d+_(\d+)\.JPEG")


def cifar100(root: Path | None) -> Dataset:
    """CIFAR-100: 50000 and 10000 colour photographs of 32 x 32 pixels, of 100 classes (the fine
    labels)."""
    load = partial(_load_cifar100, root)
    return Dataset("cifar100", tuple(_CIFAR100.split()), (3, 32, 32), load)


def svhn(root: Path | None) -> Dataset:
    """SVHN: 73257 and 26032 colour photographs of house numbers, cropped to a digit, of 32 x 32
    pixels."""
    return Dataset("svhn", tuple("0123456789"), (3, 32, 32), partial(_load_svhn, root))


def tiny_imagenet(root: Path | None) -> Dataset:
    """Tiny ImageNet: 100000 and 10000 colour photographs of 64 x 64 pixels, of 200 classes called
    by their numbers in WordNet.

    The images to test on are those of the folder val, since those of test have no labels. Images to
    train on take turns by class.
    """
    load = partial(_load_tiny, root)
    return Dataset("tiny-imagenet", tuple(_TINY.split()), _TINY_SHAPE, load)


def _load_cifar100(root: Path | None, part: Part) -> Split:
    (places,) = files_of("cifar100", part)
    path, content = content_of(places, "cifar-100-python.tar.gz", root)
    if path.suffix == ".gz":
        release = path.name.removesuffix(".tar.gz")
        member = f"{release}/{part}" + (".bin" if release.endswith("binary") else "")
        content = parsed(partial(_member, member), path, content)
    parse = _parse_cifar100_binary if "binary" in path.name else _parse_cifar100_pickle
    images, labels = parsed(parse, path, content)
    return Split.scaled(images, 255, labels)


def _member(name: str, content: bytes) -> bytes:
    """The content of a file in a packed archive."""
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        file = archive.extractfile(name)
        if file is None:
            raise ValueError(f"{name} is no file")
        return file.read()


def _parse_cifar100_pickle(content: bytes) -> tuple[Bytes, Bytes]:
    return pickled_images(content, b"fine_labels")


def _parse_cifar100_binary(content: bytes) -> tuple[Bytes, Bytes]:
    # Two labels before each image: one of 20 coarse classes, then the fine one.
    records = np.frombuffer(content, np.uint8).reshape(-1, 2 + 3 * 32 * 32)
    return records[:, 2:].reshape(-1, 3, 32, 32), records[:, 1]


def _load_svhn(root: Path | None, part: Part) -> Split:
    (places,) = files_of("svhn", part)
    images, labels = parsed(_parse_svhn, *content_of(places, Path(places[0]).name, root))
    return Split.scaled(images, 255, labels)


def _parse_svhn(content: bytes) -> tuple[Bytes, Bytes]:
    from scipy.io import loadmat

    held = loadmat(io.BytesIO(content))
    images = np.asarray(held["X"], np.uint8).transpose(3, 2, 0, 1)
    # The digit 0 has label 10.
    return images, np.asarray(held["y"], np.uint8).ravel() % 10


def _load_tiny(root: Path | None, part: Part) -> Split:
    (places,) = files_of("tiny-imagenet", part)
    path, content = content_of(places, Path(places[0]).name, root)
    return parsed(partial(_parse_tiny, part), path, content)


def _parse_tiny(part: Part, content: bytes) -> Split:
    archive = zipfile.ZipFile(io.BytesIO(content))
    classes = {name: number for number, name in enumerate(_TINY.split())}
    members = _tiny_train(archive) if part == "train" else _tiny_test(archive)
    pictures = [Picture(name, partial(archive.read, name)) for name, _ in members]

    def read(rows: Rows) -> Tensor:
        return read_pictures([pictures[row] for row in rows], Cut(None, None), _TINY_SHAPE)

    x = kept(read, np.arange(len(pictures)), _TINY_SHAPE)
    return Split(x, torch.tensor([classes[name] for _, name in members]))


def _tiny_train(archive: zipfile.ZipFile) -> list[tuple[str, str]]:
    """The names of the images to train on, and of their classes, by the images' numbers, so that
    classes take turns."""
    found = (_OF_CLASS.fullmatch(name) for name in archive.namelist())
    members = [(int(match[2]), match[1], match[0]) for match in found if match]
    return [(name, of_class) for _, of_class, name in sorted(members)]


def _tiny_test(archive: zipfile.ZipFile) -> list[tuple[str, str]]:
    """The names of the images of val, and of their classes."""
    folder = "tiny-imagenet-200/val"
    lines = archive.read(f"{folder}/val_annotations.txt").decode().splitlines()
    rows = [line.split("\t") for line in lines]
    return [(f"{folder}/images/{row[0]}", row[1]) for row in rows]
