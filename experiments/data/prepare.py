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

Split = tuple[np.ndarray, dict[str, np.ndarray]]
"""Images uint8 (N, H, W, C), and for each label feature the labels (N,)."""
Splits = tuple[Split, Split, dict[str, list[str]]]
"""Training and test split, and the class names of the label features if the archive has them."""


def prepare(spec: Spec, root: Path, *, url: str | None = None) -> Path:
    """Downloads a data set and writes its prepared folder, which appears only when complete.

    Args:
        spec: the data set.
        root: the folder of all data sets, TFDS's `data_dir`.
        url: a mirror's folder that holds the official files.

    Returns:
        The prepared folder, `root/name/version`; it may have been there already.

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
    """Downloads a file to `path`, unless it is there already; `file:///...` is one of this machine.

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


def _read_cifar(spec: Spec, paths: Mapping[str, Path]) -> Splits:
    """Reads rows, each one byte a label, then the red, the green and the blue plane."""
    [path] = paths.values()
    with tarfile.open(path) as tar:  # Nothing is unpacked to disk.
        files = [(member.name, tar.extractfile(member)) for member in tar]
        members = {Path(name).name: file.read() for name, file in files if file is not None}
    if spec.name == "cifar10":
        train, test = [f"data_batch_{number}.bin" for number in range(1, 6)], "test_batch.bin"
        texts = {"label": "batches.meta.txt"}
    else:
        train, test = ["train.bin"], "test.bin"
        texts = {"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"}
    height, width, channels = spec.image_shape

    def split(names: Sequence[str]) -> Split:
        rows = np.frombuffer(b"".join(members[name] for name in names), np.uint8)
        rows = rows.reshape(-1, len(texts) + height * width * channels)
        pixels = rows[:, len(texts) :].reshape(-1, channels, height, width)
        labels = {feature: rows[:, index] for index, feature in enumerate(texts)}
        return pixels.transpose(0, 2, 3, 1), labels

    class_names = {
        feature: list(filter(None, members[text].decode().split("\n")))
        for feature, text in texts.items()
    }
    return split(train), split([test]), class_names


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
    "cifar10": _read_cifar,
    "cifar100": _read_cifar,
    "fashion_mnist": _read_fashion_mnist,
}


def write(spec: Spec, splits: Splits, root: Path) -> None:
    """Writes `root/name/version` by TFDS's own builder, to the side and then renamed.

    Keys, and hence the order of the records, ids, labels and metadata are TFDS's. Images are handed
    over as PNG, because TFDS encodes arrays with TensorFlow.

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
