"""Operations that change the shape alone: broadcast, squeeze, reshape."""

from __future__ import annotations

from typing import Any

import numpy as np

from ntksap_jax.structured._labels import Axis, Labels, Value
from ntksap_jax.structured._rules.common import unknown


def broadcast(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    operand, before = operands[0], eqn.invars[0].aval.shape
    shape = eqn.outvars[0].aval.shape
    axes: list[Axis] = ["free"] * len(shape)
    removed: list[Any] = [None] * len(shape)
    for axis, target in enumerate(eqn.params["broadcast_dimensions"]):
        kind = operand.axes[axis]
        if before[axis] == shape[target]:
            axes[target], removed[target] = kind, operand.removed[axis]
        else:
            labels.fix(kind, f"{place} repeats a single one along an axis of {shape[target]}")
    return [Value(tuple(axes), tuple(removed), operand.uniform, operand.leaf, operand.layer)]


def squeeze(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    [operand] = operands
    gone = eqn.params["dimensions"]
    for axis in gone:
        labels.fix(operand.axes[axis], f"{place} takes a single one out")
    kept = [axis for axis in range(len(operand.axes)) if axis not in gone]
    axes, removed = (tuple(one[axis] for axis in kept) for one in (operand.axes, operand.removed))
    return [Value(axes, removed, operand.uniform, operand.leaf)]


def reshape(labels: Labels, eqn: Any, operands: list[Value], place: str) -> list[Value]:
    operand, old = operands[0], eqn.invars[0].aval.shape
    new = eqn.outvars[0].aval.shape
    if eqn.params.get("dimensions") is not None or 0 in old:
        return unknown(labels, eqn, operands, place)
    axes: list[Axis] = ["free" if size == 1 else None for size in new]
    removed: list[Any] = [None] * len(new)
    for sources, targets in _runs(old, new):
        channels = [axis for axis in sources if isinstance(operand.axes[axis], np.ndarray)]
        wide = [axis for axis in targets if new[axis] > 1]
        if not channels:
            if all(operand.axes[axis] == "free" for axis in sources):
                for axis in targets:
                    axes[axis] = "free"
            continue
        spread = _spread(operand.axes[channels[0]], channels[0], sources, old)
        # Channels go along one axis, such as the heads of an attention: of two axes the first one.
        for axis in channels[1:]:
            labels.fix(operand.axes[axis], f"{place} mixes them with others")
        parts = spread.reshape([new[axis] for axis in targets])
        found = _varying(parts)
        if not targets:
            labels.fix(operand.axes[channels[0]], f"{place} takes a single one out")
            continue
        target = targets[found[0]] if found else (wide or targets)[-1]
        inside = tuple(slice(None) if axis == target else slice(1) for axis in targets)
        first = parts[inside]
        if len(found) > 1:  # Taken apart, such as into heads: all of a part go together.
            labels.tie(parts.ravel(), np.broadcast_to(first, parts.shape).ravel())
        axes[target] = first.ravel()
        removed[target] = operand.removed[channels[0]]
        if not found and new[target] != old[channels[0]]:
            labels.fix(axes[target], f"{place} repeats a single one")
    layer = operand.layer if old and new and old[-1] == new[-1] else None
    return [Value(tuple(axes), tuple(removed), operand.uniform, operand.leaf, layer)]


def _runs(old: Any, new: Any) -> list[tuple[list[int], list[int]]]:
    """Splits the axes of a reshape into the shortest runs of equal numbers of entries.

    From the last axis on, which is where channels are: a vector of one goes to the last of (1, 1).
    """
    runs: list[tuple[list[int], list[int]]] = []
    i, j = len(old), len(new)
    while i or j:
        sources: list[int] = []
        targets: list[int] = []
        left = right = 1
        while (not sources and i) or (left < right) or (not targets and j) or (right < left):
            if i and (not sources or left < right):
                i -= 1
                sources, left = [i, *sources], left * old[i]
            else:
                j -= 1
                targets, right = [j, *targets], right * new[j]
        runs.append((sources, targets))
    return runs


def _spread(axis: Any, position: int, sources: list[int], shape: Any) -> np.ndarray:
    """The channel of every entry of a run of axes, of which one is a channel axis."""
    sizes = [shape[one] for one in sources]
    single = [size if one == position else 1 for one, size in zip(sources, sizes, strict=True)]
    return np.broadcast_to(axis.reshape(single), sizes)


def _varying(numbers: np.ndarray) -> list[int]:
    """The axes along which an array is not constant."""
    return [
        axis
        for axis in range(numbers.ndim)
        if not np.array_equal(numbers, np.broadcast_to(numbers.take([0], axis), numbers.shape))
    ]
