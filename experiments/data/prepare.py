"""From a data set's official archive to a TFDS folder in array_record format, without TensorFlow.

Pooch downloads, and believes a file only when its SHA-256 is the official one: from there on, what
is in the archives is known. A subclass of TFDS's own builder writes the folder.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import shutil
import sys
import tarfile
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pooch
from PIL import Image

from experiments.data import prepared
from experiments.data.catalogue import Spec
from experiments.shell.errors import DataError

Labels = dict[str, np.ndarray]
Split = tuple[np.ndarray, Labels]
"""Images uint8 (N, H, W, C), and for each label feature the labels (N,)."""
Splits = tuple[Split, Split, dict[str, list[str]]]
"""Training and test split, and the class names of the label features if the archive has them."""


def prepare(spec: Spec, root: Path, *, url: str | None = None) -> Path:
    """Downloads a data set and writes its prepared folder, which appears only when complete.

    Nothing is done if it is there already.

    Args:
        spec: the data set.
        root: the folder of all data sets, TFDS's `data_dir`.
        url: a mirror's folder that holds the official files.

    Returns:
        The prepared folder, `root/name/version`.

    Raises:
        DataError: no source, no network, a wrong checksum, no space, or something unusable in the
            place of the folder.
    """
    if spec.name not in _READERS:
        raise DataError(f"{spec.name} is embedded in a Python package: there is nothing to prepare")
    folder = prepared.folder(spec, root)
    if prepared.is_there(folder):
        return folder
    if folder.exists():
        raise DataError(
            f"{folder} has no dataset_info.json: half-made, or no TFDS folder. Move it away, or "
            "choose another folder by --data-dir"
        )
    downloads = root / "downloads" / spec.name
    try:
        downloads.mkdir(parents=True, exist_ok=True)
        paths = {}
        for name, (official, sha256) in official_files(spec).items():
            address = f"{url.rstrip('/')}/{urllib.parse.quote(name)}" if url else official
            paths[name] = download(address, sha256, downloads / name)
        write(spec, _READERS[spec.name](spec, paths), root)
        shutil.rmtree(downloads)
        with contextlib.suppress(OSError):  # not empty: somebody else's downloads
            downloads.parent.rmdir()
    except OSError as error:
        raise DataError(
            f"cannot write to {root}: {error}; choose another folder by --data-dir"
        ) from error
    return folder


def official_files(spec: Spec) -> dict[str, tuple[str, str]]:
    """Returns the address and the SHA-256 of each official file, by its name: TFDS lists them."""
    infos = prepared.import_tfds().builder_cls(spec.name).url_infos
    return {info.filename: (url, info.checksum) for url, info in infos.items()}


def download(url: str, sha256: str, path: Path) -> Path:
    """Downloads a file, unless it is there already.

    Args:
        url: its address; `file:///...` is one on this machine.
        sha256: its checksum, in hexadecimal.
        path: where to.

    Returns:
        The path.

    Raises:
        DataError: no connection, an error of the server, or not the file that was asked for.
    """
    pooch.get_logger().setLevel("WARNING")
    try:
        pooch.retrieve(url, f"sha256:{sha256}", path.name, path.parent, downloader=_downloader(url))
    # Pooch's own are ValueErrors, for a wrong checksum or protocol; those of the network are of
    # requests, and OSErrors.
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot download {url}: {' '.join(str(error).split())}. Try again, or another --url; "
            "without a network, fetch the file elsewhere and name its folder by "
            "--url file:///FOLDER"
        ) from error
    return path


def _downloader(url: str) -> Callable[[str, Any, Any], object]:
    if url.startswith("file:"):  # The one protocol that Pooch does not know.
        path = urllib.request.url2pathname(urllib.parse.urlsplit(url).path)
        return lambda url, to, pooch: shutil.copyfile(path, to)
    return pooch.HTTPDownloader(progressbar=sys.stderr.isatty())


# -- Archives --------------------------------------------------------------------------------------


def _read_cifar10(spec: Spec, paths: Mapping[str, Path]) -> Splits:
    members = _members(paths["cifar-10-binary.tar.gz"])
    train = b"".join(members[f"data_batch_{number}.bin"] for number in range(1, 6))
    return (
        _cifar_split(spec, train, ["label"]),
        _cifar_split(spec, members["test_batch.bin"], ["label"]),
        {"label": _lines(members["batches.meta.txt"])},
    )


def _read_cifar100(spec: Spec, paths: Mapping[str, Path]) -> Splits:
    members, features = _members(paths["cifar-100-binary.tar.gz"]), ["coarse_label", "label"]
    texts = zip(features, ("coarse_label_names.txt", "fine_label_names.txt"), strict=True)
    return (
        _cifar_split(spec, members["train.bin"], features),
        _cifar_split(spec, members["test.bin"], features),
        {feature: _lines(members[text]) for feature, text in texts},
    )


def _lines(text: bytes) -> list[str]:
    return list(filter(None, text.decode().split("\n")))


def _members(path: Path) -> dict[str, bytes]:
    """The files in an archive, by name without folder; nothing is unpacked to disk."""
    with tarfile.open(path) as tar:
        files = [(member.name, tar.extractfile(member)) for member in tar]
        return {Path(name).name: file.read() for name, file in files if file is not None}


def _cifar_split(spec: Spec, data: bytes, features: Sequence[str]) -> Split:
    """Splits rows, each one byte a label, then the red, the green and the blue plane."""
    height, width, channels = spec.image_shape
    rows = np.frombuffer(data, np.uint8)
    rows = rows.reshape(-1, len(features) + height * width * channels)
    pixels = rows[:, len(features) :].reshape(-1, channels, height, width)
    labels = {feature: rows[:, index] for index, feature in enumerate(features)}
    return pixels.transpose(0, 2, 3, 1), labels


def _read_fashion_mnist(spec: Spec, paths: Mapping[str, Path]) -> Splits:
    """Reads IDX files: a header of 4 bytes and 4 a dimension, then the values."""

    def split(name: str) -> Split:
        images, labels = (
            np.frombuffer(gzip.decompress(paths[f"{name}-{kind}-ubyte.gz"].read_bytes()), np.uint8)
            for kind in ("images-idx3", "labels-idx1")
        )
        return images[16:].reshape(-1, *spec.image_shape), {"label": labels[8:]}

    return split("train"), split("t10k"), {}


_READERS: dict[str, Callable[[Spec, Mapping[str, Path]], Splits]] = {
    "cifar10": _read_cifar10,
    "cifar100": _read_cifar100,
    "fashion_mnist": _read_fashion_mnist,
}


# -- The folder ------------------------------------------------------------------------------------


def write(spec: Spec, splits: Splits, root: Path) -> None:
    """Writes `root/name/version` by TFDS's own builder, to the side and then renamed.

    Keys, and hence the order of the records, ids, labels and metadata are TFDS's. Images are handed
    over as PNG, because TFDS encodes arrays with TensorFlow.

    Args:
        spec: the data set.
        splits: all images and labels, and the names of the classes.
        root: TFDS's `data_dir`.

    Raises:
        DataError: TFDS is missing, or makes another version.
    """
    tfds = prepared.import_tfds()
    official = tfds.builder_cls(spec.name)
    train, test, class_names = splits

    class Builder(official, skip_registration=True):  # type: ignore[call-arg, misc, valid-type]
        """TFDS's builder of the data set, from images that are here already."""

        name = spec.name

        def _split_generators(self, dl_manager: object) -> dict[str, Iterator[tuple[int, Any]]]:
            del dl_manager  # downloads nothing
            for feature, names in class_names.items():
                self.info.features[feature].names = names
            with_id = "id" in self.info.features
            return {
                name: _examples(split, name, with_id)
                for name, split in (("train", train), ("test", test))
            }

    builder = Builder(data_dir=root, file_format="array_record")
    if str(builder.version) != spec.version:
        raise DataError(
            f"the installed TFDS {tfds.__version__} makes {spec.name} {builder.version}, "
            f"and {spec.version} is needed; install the pinned version"
        )
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    # TFDS announces on stdout a download of unknown size, which there is not.
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_dir=root / "downloads" / spec.name)


def _examples(split: Split, name: str, with_id: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields what TFDS's own builders yield, but for the encoding of the image."""
    images, labels = split
    for index, image in enumerate(images):
        example: dict[str, Any] = {key: int(values[index]) for key, values in labels.items()}
        example["image"] = _encode(image)
        if with_id:
            example["id"] = f"{name}_{index:05d}"
        yield index, example


def _encode(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(stream, "PNG")
    return stream.getvalue()
