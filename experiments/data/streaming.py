"""Data sets too large for memory: image files, decoded and augmented by several processes.

Grain runs the processes. An epoch's batches depend on key and epoch alone, not on the number of
processes, and training can begin at any epoch.
"""

from __future__ import annotations

import atexit
import functools
import multiprocessing.util
import os
import signal
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import numpy as np

from experiments.data.batching import eval_batches, rows_of
from experiments.data.crops import CentreCrop, RandomCrop
from experiments.shell.errors import DataError


class EncodedImages(Protocol):
    """The images of one split, not yet decoded. Processes get a copy of it."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: int, /) -> tuple[bytes, int]:
        """Reads an image file, not yet decoded, and its label."""

    def where(self, index: int, /) -> str:
        """Says where the image lies, for messages."""

    def read_labels(self) -> np.ndarray:
        """Returns the labels of all images, int32 (N,)."""


@dataclass(frozen=True)
class StreamedDataset:
    """A data set whose images stay on disk; methods and most attributes are those of `Dataset`.

    Attributes:
        train: encoded images.
        test: likewise.
        train_crop: augmentation.
        test_crop: what is evaluated.
        num_workers: processes that decode; 0 for a thread of this one.
    """

    name: str
    train: EncodedImages
    test: EncodedImages
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train_crop: RandomCrop
    test_crop: CentreCrop
    num_workers: int
    source: str
    note: str = ""
    _train_reader: _Reader = field(default_factory=lambda: _Reader(), init=False, repr=False)
    _test_reader: _Reader = field(default_factory=lambda: _Reader(), init=False, repr=False)

    # On the device there is nothing left to do but to normalise.
    crop_padding = 0
    flip = False

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def num_train(self) -> int:
        """Number of training images."""
        return len(self.train)

    @property
    def num_test(self) -> int:
        """Number of test images."""
        return len(self.test)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one image."""
        return self.train_crop.size, self.train_crop.size, 3

    @property
    def augmentation(self) -> str:
        """The augmentation, in words."""
        size, scale, ratio = self.train_crop
        return (
            f"random crop of {scale[0]:.3g} to {scale[1]:.3g} of the area with width / height "
            f"{ratio[0]:.3g} to {ratio[1]:.3g}, resized to {size}x{size}; random flip"
        )

    @property
    def train_labels(self) -> np.ndarray:
        """Labels of the training images, int32 (N,); reads all records where there are records."""
        return self.train.read_labels()

    def train_images_at(self, indices: np.ndarray) -> np.ndarray:
        """Decodes some training images without augmentation, uint8."""
        try:
            return np.stack(
                [_test_example(self.train, self.test_crop, int(index))[0] for index in indices]
            )
        except (OSError, ValueError) as error:
            raise _data_error(error) from error

    def train_batches(
        self,
        key: jax.Array,
        epoch: int,
        batch_size: int,
        *,
        start: int = 0,
        part: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields uint8 images and int32 labels of one epoch, shuffled and augmented.

        The arguments are those of `Dataset.train_batches`. Only images of `part` are decoded.

        Raises:
            DataError: an image cannot be read, or a process ended.
        """
        import grain

        seed = int(jax.random.bits(key, dtype=np.uint32))
        examples = (
            grain.MapDataset.range(len(self.train))
            .seed(seed)
            .shuffle()
            .random_map(functools.partial(_train_example, self.train, self.train_crop))
        )
        return self._train_reader.read(
            _batches(examples, len(self.train) // batch_size, batch_size, part),
            epoch,
            start=start,
            which=(seed, batch_size, part),
            num_workers=self.num_workers,
        )

    def test_batches(
        self, batch_size: int, *, part: tuple[int, int] = (0, 1)
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yields uint8 images, int32 labels and `is_real` that cover the test set once.

        Raises:
            DataError: an image cannot be read, or a process ended.
        """
        import grain

        indices, _ = eval_batches(len(self.test), batch_size)
        examples = grain.MapDataset.range(indices.size).map(
            functools.partial(_test_example, self.test, self.test_crop)
        )
        reader = self._test_reader
        return reader.read(
            _batches(examples, len(indices), batch_size, part),
            reader.next_epoch,
            which=(batch_size, part),
            num_workers=self.num_workers,
        )


def _batches(examples: Any, number: int, batch_size: int, part: tuple[int, int]) -> Any:
    """Cuts examples into batches and takes the same rows of each, without making the others."""
    rows = rows_of(part, batch_size)
    index, count = part
    return examples.batch(rows.stop - rows.start)[index : number * count : count]


def _train_example(
    images: EncodedImages, crop: RandomCrop, index: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.int32]:
    """Reads and augments a training image."""
    return _read(images, index, lambda encoded: crop(encoded, rng))


def _test_example(
    images: EncodedImages, crop: CentreCrop, index: int
) -> tuple[np.ndarray, np.int32, np.bool_]:
    """Reads an image without augmentation; behind the last one, the first one again."""
    is_real = index < len(images)
    return *_read(images, index if is_real else 0, crop.__call__), np.bool_(is_real)


def _read(
    images: EncodedImages, index: int, decode: Callable[[bytes], np.ndarray]
) -> tuple[np.ndarray, np.int32]:
    encoded, label = images[index]
    try:
        return decode(encoded), np.int32(label)
    except ValueError as error:
        raise ValueError(f"{images.where(index)}: {error}") from error


class _Reader:
    """Reads epochs by processes, which take seconds to start and run ahead into the next epoch."""

    def __init__(self) -> None:
        self._iterator: Any = None
        self._next: tuple[Hashable, int] | None = None
        _READERS.add(self)

    @property
    def next_epoch(self) -> int:
        """The epoch that the processes are about to read; any, if there are none."""
        return 0 if self._next is None else self._next[1]

    def read(
        self, examples: Any, epoch: int, *, start: int = 0, which: Hashable, num_workers: int
    ) -> Iterator:
        """Yields one epoch: that repetition of `examples`, a Grain MapDataset of batches.

        `which` is all that `examples` depends on, to know it again.
        """
        if self._next != (which, epoch) or start:
            self.close()
            first = epoch * len(examples) + start
            self._iterator = _iterate(examples.repeat()[first:], num_workers)
        # Until the epoch is through, the iterator stands nowhere that a caller may ask for.
        self._next = None
        try:
            for _ in range(start, len(examples)):
                # Copied, because Grain's arrays lie in memory that the processes share.
                yield tuple(map(np.array, next(self._iterator)))
        # RuntimeError is Grain's, for a process that ended.
        except (OSError, ValueError, RuntimeError) as error:
            self.close()
            raise _data_error(error) from error
        self._next = which, epoch + 1

    def close(self) -> None:
        """Ends the processes."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = self._next = None


_READERS: weakref.WeakSet[_Reader] = weakref.WeakSet()


# What is registered last runs first, and so before `multiprocessing.util` ends the thread by which
# Grain gives back shared memory.
@atexit.register
def _close_readers() -> None:
    for reader in _READERS:
        reader.close()


def _iterate(batches: Any, num_workers: int) -> Any:
    import absl.flags
    import grain

    # Grain asks for the value of one of its flags, which only programs of absl have parsed.
    if not absl.flags.FLAGS.is_parsed():
        absl.flags.FLAGS.mark_as_parsed()

    # One thread makes the next batch while this one is copied; Grain's 16 would each hold a batch.
    threads = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    iterable = batches.to_iter_dataset(threads)
    if not num_workers:
        return iter(iterable)
    processes = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2)
    return iter(iterable.mp_prefetch(processes, worker_init_fn=_init_worker))


def _init_worker(index: int, count: int) -> None:
    del index, count
    # Ctrl-C goes to every process; the program ends its own.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_program, daemon=True).start()


def _end_with_program() -> None:
    # A program that is killed cannot end its processes, and Grain's wait for a reader for ever.
    program = multiprocessing.parent_process()
    assert program is not None
    program.join()
    os._exit(1)


def _data_error(error: Exception) -> DataError:
    return DataError(f"cannot read the images: {' '.join(str(error).split())}")
