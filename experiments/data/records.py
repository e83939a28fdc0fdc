"""ImageNet as TFDS prepares it: JPEGs of any size in array_record files, read one by one."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.data import cache, prepared, progress
from experiments.data.catalogue import Spec


class Records:
    """The records of one split, see `streaming.EncodedImages`.

    Args:
        spec: the data set.
        place: its checked folder.
        split: one of `spec.splits`.
    """

    def __init__(self, spec: Spec, place: prepared.Prepared, split: str) -> None:
        self._spec, self._place, self._split = spec, place, split
        self._records: Any = prepared.open_records(spec, place, split)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        record = self._records[index]
        return record["image"], int(record["label"])

    def where(self, index: int) -> str:
        """Names the folder, the split and the record."""
        return f"{self._place.folder}, {self._split} record {index}"

    def read_labels(self) -> np.ndarray:
        """Returns the labels of all images, int32 (N,).

        Labels lie beside the images, so that the first call reads the whole split; then they are
        cached as decoded images are.
        """
        fingerprint = cache.fingerprint(
            path for path in self._place.files if path.suffix in (".json", ".txt")
        )
        return cache.get(
            f"{self._spec.name}-{self._spec.version}-{self._split}-labels-{fingerprint[:16]}",
            cache.folders(self._place.folder.parent),
            self._scan,
            expected={"labels"},
        )["labels"]

    def _scan(self) -> cache.Arrays:
        labels = np.empty(len(self), np.int32)
        with progress.count_bar() as bar:
            task = bar.add_task(f"reading the labels of {self._spec.name}", total=len(self))
            for start in range(0, len(self), prepared.CHUNK):
                rows = list(range(start, min(start + prepared.CHUNK, len(self))))
                labels[rows] = [int(row["label"]) for row in self._records.__getitems__(rows)]
                bar.advance(task, len(rows))
        return {"labels": labels}
