"""From the official archive to a TFDS folder in array_record format, without TensorFlow."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data import archives, cache, download, progress
from experiments.data.catalogue import Spec
from experiments.data.prepared import find_problem
from experiments.shell.errors import DataError


def prepare(spec: Spec, root: Path, *, url: str | None = None) -> Path:
    """Downloads a data set and writes its prepared folder, which appears only when complete.

    Nothing is done if it is there already.

    Args:
        spec: the data set.
        root: the folder of all data sets, TFDS's `data_dir`.
        url: a mirror's folder that holds the official files, instead of `spec.source.url`.

    Returns:
        The prepared folder, `root/name/version`.

    Raises:
        DataError: no source, no network, a wrong checksum, no space, or something unusable in the
            place of the folder.
    """
    if spec.source is None:
        raise DataError(f"{spec.name} is embedded in a Python package: there is nothing to prepare")
    folder = root / spec.name / spec.version
    problem = find_problem(spec, root)
    if problem is None:
        return folder
    if folder.exists():
        raise DataError(f"{problem}. Move {folder} away, or choose another folder by --data-dir")

    if not cache.is_writable(root):
        raise DataError(f"cannot write to {root}; choose another folder by --data-dir")
    downloads = _downloads(spec, root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        _check_space(spec, root)
        with progress.byte_bar() as bar:
            task = bar.add_task(
                f"downloading {spec.name}", total=sum(file.size for file in spec.source.files)
            )
            files = [
                download.fetch(
                    file,
                    url or spec.source.url,
                    downloads,
                    on_bytes=lambda count: bar.advance(task, count),
                )
                for file in spec.source.files
            ]
        contents = archives.read(spec, files)
        with progress.count_bar() as bar:
            task = bar.add_task(f"writing {spec.name}", total=spec.num_train + spec.num_test)
            write(spec, contents, root, on_image=lambda: bar.advance(task))
        shutil.rmtree(downloads)
        with contextlib.suppress(OSError):  # not empty: somebody else's downloads
            downloads.parent.rmdir()
    except OSError as error:
        raise DataError(f"cannot write to {root}: {error}") from error
    return folder


def write(
    spec: Spec, contents: archives.Contents, root: Path, *, on_image: Callable[[], object]
) -> None:
    """Writes `root/name/version` by TFDS's own builder, to the side and then renamed.

    Only the builder's step that reads the source files is replaced. Keys, and hence the order of
    the records, ids, labels and metadata are TFDS's. Images are handed over as PNG, because TFDS
    encodes arrays with TensorFlow.

    Args:
        spec: the data set.
        contents: all images and labels.
        root: TFDS's `data_dir`.
        on_image: called for every image.

    Raises:
        DataError: TFDS is missing, or makes another version.
    """
    try:
        import tensorflow_datasets as tfds

        builder = tfds.builder_cls(spec.name)(data_dir=root)
    except ImportError as error:
        raise DataError(
            f"preparing data needs a package that is not installed ({error}): "
            "pip install 'ntksap_jax[experiments]'"
        ) from error
    if str(builder.version) != spec.version:
        raise DataError(
            f"the installed TFDS {tfds.__version__} makes {spec.name} {builder.version}, "
            f"and {spec.version} is needed; install the pinned version"
        )

    def split_generators(download_manager: object) -> dict[str, Iterator[tuple[int, Any]]]:
        del download_manager  # downloads nothing: `contents` has it all
        for feature, names in contents.names.items():
            builder.info.features[feature].names = names
        splits = {"train": contents.train, "test": contents.test}
        return {
            name: _examples(split, name, "id" in builder.info.features, on_image)
            for name, split in splits.items()
        }

    builder._split_generators = split_generators
    tfds.disable_progress_bar()
    # TFDS announces on stdout a download of unknown size, which there is not.
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(
            file_format="array_record",
            download_dir=_downloads(spec, root),
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        )


def _examples(
    split: archives.Split, name: str, with_id: bool, on_image: Callable[[], object]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields what TFDS's own builders yield, but for the encoding of the image."""
    for index, image in enumerate(split.images):
        example: dict[str, Any] = {key: int(labels[index]) for key, labels in split.labels.items()}
        example["image"] = _encode_png(image)
        if with_id:
            example["id"] = f"{name}_{index:05d}"
        yield index, example
        on_image()


def _downloads(spec: Spec, root: Path) -> Path:
    return root / "downloads" / spec.name


def _encode_png(image: np.ndarray) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(stream, "PNG")
    return stream.getvalue()


def _check_space(spec: Spec, root: Path) -> None:
    assert spec.source is not None
    pixels = (spec.num_train + spec.num_test) * int(np.prod(spec.image_shape))
    # PNG makes these small images hardly smaller than their pixels.
    needed = sum(file.size for file in spec.source.files) + pixels
    free = shutil.disk_usage(root).free
    if free < needed:
        raise DataError(
            f"{root} has {free / 1e6:.0f} MB free, and {spec.name} needs up to "
            f"{needed / 1e6:.0f} MB; choose another folder by --data-dir"
        )
