"""The data sets that the programs know: sizes, normalisation, augmentation."""

from __future__ import annotations

from typing import NamedTuple

from experiments.shell.configuration import check_name
from experiments.shell.errors import DataError


class Spec(NamedTuple):
    """What is known about a data set before it is read.

    Attributes:
        name: as TFDS calls it.
        version: TFDS's version of the data, the only one accepted; "" if a package has them.
        image_shape: (height, width, channels).
        num_classes: number of classes of `label`.
        num_train: images in the official training split.
        num_test: images in the official test split.
        mean: per channel, of pixels scaled to [0, 1].
        std: likewise.
        crop_padding: zeros on each side of the image before a random crop; 0 for no crop.
        flip: whether a mirrored image is still an image of its class.
        splits: TFDS's names of the splits for training and test.
    """

    name: str
    version: str
    image_shape: tuple[int, int, int]
    num_classes: int
    num_train: int
    num_test: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int = 4
    flip: bool = True
    splits: tuple[str, str] = ("train", "test")


class StreamedSpec(NamedTuple):
    """What is known about a data set of image files, which are decoded as they are needed.

    Attributes:
        name: also in the run's name.
        folder: where its image files are, in the folder of all data.
        advice: what to do if they are not there.
        image_size: pixels a side, unless `--image-size` says otherwise.
        shorter_side: of the resized image that is cropped to `image_size` for evaluation.
        crop_scale: for training, smallest and largest share of the image's area in a crop.
        crop_ratio: likewise, smallest and largest width / height.
        mean: per channel, of pixels scaled to [0, 1].
        std: likewise.
    """

    name: str
    folder: str
    advice: str
    image_size: int
    shorter_side: int
    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    mean: tuple[float, ...]
    std: tuple[float, ...]


_CIFAR10 = Spec(
    name="cifar10",
    version="3.0.2",
    image_shape=(32, 32, 3),
    num_classes=10,
    num_train=50_000,
    num_test=10_000,
    # Mean, std, padding and flip as in `load.py` of the NTK-SAP authors. The std of CIFAR-10 is
    # the widespread mean of the single images' std, not the std over all pixels (0.247).
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2023, 0.1994, 0.2010),
)
_CIFAR100 = _CIFAR10._replace(
    name="cifar100",
    num_classes=100,
    mean=(0.5071, 0.4867, 0.4408),
    std=(0.2675, 0.2565, 0.2761),
)
_DIGITS = Spec(
    name="digits",
    version="",
    image_shape=(8, 8, 1),
    num_classes=10,
    num_train=1433,
    num_test=364,
    # Measured on the training split.
    mean=(0.3055,),
    std=(0.3761,),
    # The digit fills the 8x8 frame, and a mirrored digit is none.
    crop_padding=1,
    flip=False,
)
_FASHION_MNIST = Spec(
    name="fashion_mnist",
    version="3.0.1",
    image_shape=(28, 28, 1),
    num_classes=10,
    num_train=60_000,
    num_test=10_000,
    # Measured on the training split. Crops and flips are those of the benchmark in its README.
    mean=(0.2860,),
    std=(0.3530,),
)

TINY_IMAGENET = StreamedSpec(
    name="tiny_imagenet",
    folder="tiny-imagenet-200",
    advice="Unpack tiny-imagenet-200.zip there, or name the folder that holds tiny-imagenet-200 "
    "by --data-dir or TFDS_DATA_DIR",
    image_size=64,
    shorter_side=64,
    # Crops as in `load.py` of the NTK-SAP authors; mean and std are those of the images.
    crop_scale=(0.1, 1.0),
    crop_ratio=(0.8, 1.25),
    mean=(0.480, 0.448, 0.397),
    std=(0.276, 0.269, 0.282),
)
IMAGENET = StreamedSpec(
    name="imagenet",
    folder="imagenet",
    advice="Put or link the folders train/<class> and val/<class> of ImageNet there, or prepare "
    "imagenet2012 by TFDS in array_record format beside it; --data-dir or TFDS_DATA_DIR names "
    "the folder around it",
    image_size=224,
    shorter_side=256,
    crop_scale=(0.08, 1.0),
    crop_ratio=(3 / 4, 4 / 3),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
IMAGENET_RECORDS = _CIFAR10._replace(
    name="imagenet2012",
    version="5.1.0",
    num_classes=1000,
    num_train=1_281_167,
    num_test=50_000,
    splits=("train", "validation"),
)
"""ImageNet as TFDS prepares it. The images in it are JPEGs of any size; how they are cropped and
normalised, `IMAGENET` says."""

SPECS: dict[str, Spec] = {
    spec.name: spec for spec in (_DIGITS, _CIFAR10, _CIFAR100, _FASHION_MNIST)
}
STREAMED: dict[str, StreamedSpec] = {spec.name: spec for spec in (TINY_IMAGENET, IMAGENET)}
NAMES: tuple[str, ...] = (*SPECS, *STREAMED)


def find(name: str) -> Spec:
    """Returns the entry of a data set that fits into memory.

    Raises:
        UserError: there is none; the message suggests the nearest name.
        DataError: it is one that is streamed, which nobody can download here.
    """
    check_name("data set", name, NAMES)
    if name in STREAMED:
        raise DataError(f"{name} cannot be prepared here. {STREAMED[name].advice}")
    return SPECS[name]
