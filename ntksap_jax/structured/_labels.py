"""Which indices stand for the same channel: union-find, and arrays whose axes carry channels."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np

FIXED = -1
"""Number of what belongs to no channel that could be removed."""

Axis = np.ndarray | Literal["free"] | None
"""What the indices of one axis are.

An integer array: the channel of each index. "free": the array is constant along the axis, so that
any number of indices would do. None: anything else, such as pixels; the axis keeps its size.
"""


CHANGED = "changed"
"""What an entry becomes when its channel is removed, if that is another number than before, and is
not known. It may be 0."""

POSITIVE = "positive"
"""The same, if it is known to be above 0, as what a softmax divides by."""


class Padded(NamedTuple):
    """A number, or minus infinity where it was padded with that for the maximum that follows."""

    number: Any


class Value(NamedTuple):
    """What is known of an array without computing it.

    Attributes:
        axes: what the indices of each axis are.
        removed: for each axis, the number that an entry becomes when its index's channel is
            removed by setting its filters, biases, scales and shifts to 0; None if it stays what it
            is, `CHANGED` or `POSITIVE` if it does not and is unknown then. (Or a `Padded` number,
            which any calculation but a maximum takes for NaN.)
        uniform: the number that all entries are, None if unknown or not all the same.
        leaf: path of the leaf that the array is, perhaps reshaped or broadcast.
        layer: path of the kernel whose outputs the array is, perhaps with the layer's bias.
    """

    axes: tuple[Axis, ...]
    removed: tuple[Any, ...]
    uniform: Any = None
    leaf: str | None = None
    layer: str | None = None


def opaque(shape: tuple[int, ...]) -> Value:
    """A value of which nothing is known; axes of size 1 are constant along themselves."""
    axes: list[Axis] = ["free" if size == 1 else None for size in shape]
    return Value(tuple(axes), (None,) * len(shape))


def uniform(shape: tuple[int, ...], number: Any) -> Value:
    """A value whose entries are all the same number, None where it is not known which."""
    axes: list[Axis] = ["free" for _ in shape]
    return Value(tuple(axes), (None,) * len(shape), number)


def constant(array: Any, shape: tuple[int, ...]) -> Value:
    """A value that stands in the program itself; `array` is None where it has no NumPy form."""
    if array is not None and array.size and bool(np.all(array == array.flat[0])):
        return uniform(shape, array.flat[0])
    return opaque(shape)


class Labels:
    """Channels by number: new ones, ones that turn out to be the same, ones that must stay."""

    def __init__(self) -> None:
        self._parent = np.zeros(0, np.int64)
        self._reasons: dict[int, str] = {}
        self.lenient = False  # whether nothing must stay now, since no output depends on it

    @property
    def count(self) -> int:
        """How many numbers have been given out."""
        return len(self._parent)

    def new(self, count: int) -> np.ndarray:
        """Makes so many new channels and returns their numbers."""
        start = len(self._parent)
        numbers = np.arange(start, start + count)
        self._parent = np.concatenate([self._parent, numbers])
        return numbers

    def find(self, numbers: np.ndarray) -> np.ndarray:
        """Returns for each number the one that stands for all that are the same."""
        roots = self._parent[numbers]
        while not np.array_equal(roots, above := self._parent[roots]):
            roots = above
        self._parent[numbers] = roots
        return roots

    def tie(self, left: np.ndarray, right: np.ndarray) -> None:
        """Makes channels the same, one by one."""
        roots = np.stack([self.find(left), self.find(right)])
        for pair in roots.T[roots[0] != roots[1]]:
            first, second = self.find(pair)
            if first != second:
                self._parent[second] = first
                reason = self._reasons.pop(int(second), None)
                if reason is not None:
                    self._reasons.setdefault(int(first), reason)

    def are_same(self, left: np.ndarray, right: np.ndarray) -> bool:
        """Whether two lists of numbers stand for the same channels, one by one."""
        return np.array_equal(self.find(left), self.find(right))

    def fix(self, axis: Axis, reason: str) -> None:
        """Makes the channels of an axis stay, for a reason; the first one counts."""
        if isinstance(axis, np.ndarray) and not self.lenient:
            for root in np.unique(self.find(axis)):
                self._reasons.setdefault(int(root), reason)

    def reasons(self, numbers: np.ndarray) -> list[str | None]:
        """Returns for each number why it must stay, None if it may go."""
        return [self._reasons.get(int(root)) for root in self.find(numbers)]
