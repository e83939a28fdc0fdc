"""Which filters of a model can be removed, and what else goes with each.

Removing a filter takes with it its bias, its normalisation, the matching inputs of all layers that
read it and, where a residual sum joins several layers, the matching filters of all of these. All of
that is one *channel*. Channels are found by going through the operations that the model carries
out, so that nothing depends on names or on what its modules are.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ntksap_jax._placement import is_traced
from ntksap_jax.structured import _resized
from ntksap_jax.structured._labels import FIXED
from ntksap_jax.structured._program import Call, LabelledOperation, Operation
from ntksap_jax.structured.types import FilterLayer, Keep


@dataclasses.dataclass(frozen=True, eq=False)
class Channels:
    """The channels of a model.

    Attributes:
        layers: every convolution and dense layer by the path of its kernel, in the order of calls.
            Kernels that the model uses otherwise are no layers, such as tables of embeddings:
            `reasons` has them.
        labels: by the path of a leaf, which begins with "params/" or "batch_stats/", for every axis
            of the leaf an array with the channel of every index, -1 for an index that must stay; or
            None, if all of them must stay, such as the pixels of a kernel.
        zeroed: the axes of each leaf along which `zero_out` sets to 0 what is removed.
        features: the same as `labels` for the field `features` of every submodule that has it, by
            the path of the submodule: for each number of the field its channels, or the number if
            they stay. These numbers change when channels are removed.
        sizes: the same for numbers in the code of a submodule that a reshape goes by, such as its
            number of heads: by the submodule's path, pairs of the number and its channels.
        num_channels: how many channels there are.
        reasons: why the filters of a kernel must stay, for all that are not removable.
        flops: FLOPs of each kernel for one example, see `ntksap_jax.flops`.
        across: of kernels that are applied once for each of other channels, as an MLP-Mixer mixes
            tokens: pairs of the FLOPs of such a use and these channels, along each axis.
        shapes: shape of every leaf, by path.
        call: how the model was called.
        program: the operations that it carried out, with labels for the axes of their results.

    >>> import flax.linen as nn
    >>> from ntksap_jax.structured import trace
    >>> channels = trace(nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(3)]), (4,))
    >>> channels.num_channels, channels.reasons
    (8, {'layers_2/kernel': "they are the model's outputs"})
    """

    layers: dict[str, FilterLayer]
    labels: dict[str, tuple[np.ndarray | None, ...]]
    zeroed: dict[str, tuple[int, ...]]
    features: dict[str, tuple[np.ndarray | int, ...]]
    sizes: dict[str, tuple[tuple[int, np.ndarray], ...]]
    num_channels: int
    reasons: dict[str, str]
    flops: dict[str, int]
    shapes: dict[str, tuple[int, ...]]
    call: Call = dataclasses.field(repr=False)
    program: tuple[LabelledOperation, ...] = dataclasses.field(repr=False)
    across: Mapping[str, list[tuple[int, list[np.ndarray]]]] = dataclasses.field(
        default_factory=dict, repr=False
    )

    def __str__(self) -> str:
        """A table: the kernels, their filters, what they are tied to and why they stay whole."""
        tied = {path: group for group in groups(self) for path in group if len(group) > 1}
        rows = [("layer", "filters", "tied to", "stays whole because")]
        for path in dict.fromkeys([*self.layers, *self.reasons]):
            others = [other for other in tied.get(path, ()) if other != path]
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            filters = str(self.layers[path].num_filters) if path in self.layers else "-"
            first = f"{others[0]}{more}" if others else ""
            rows.append((path, filters, first, self.reasons.get(path, "")))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        form = "  ".join(f"{{:{size}}}" for size in widths) + "  {}"
        return "\n".join(form.format(*row).rstrip() for row in rows)


def whole_layers(channels: Channels) -> str:
    """Says how many kernels stay whole, and for which reasons; for messages."""
    found: dict[str, list[str]] = {}
    for path, reason in channels.reasons.items():
        found.setdefault(re.sub(r" at (the top level|[^ ,:;]+)", "", reason), []).append(path)
    largest = sorted(found.items(), key=lambda item: -len(item[1]))
    parts = [
        f"{paths[0]}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''}: {reason}"
        for reason, paths in largest[:4]
    ]
    left = sum(len(paths) for _, paths in largest[4:])
    count = len({*channels.layers, *channels.reasons})
    return (
        f"{len(channels.reasons)} of {count} layers stay whole ("
        + "; ".join([*parts, *([f"{left} for other reasons"] if left else [])])
        + "); channels.reasons says why for each, print(channels) shows all"
    )


def groups(channels: Channels) -> list[tuple[str, ...]]:
    """Returns which layers are tied, such as those that write to the same residual stream.

    Args:
        channels: the model's channels.

    Returns:
        Groups of removable layers in the order of calls, as tuples of kernel paths. A layer that is
        tied to no other is a group by itself. Layers that share only some of their channels count
        as tied.

    >>> import flax.linen as nn
    >>> from ntksap_jax.structured import trace
    >>> groups(trace(nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(3)]), (4,)))
    [('layers_0/kernel',)]
    """
    members: list[tuple[list[str], set[int]]] = []  # kernel paths, and all their channels
    for path, layer in channels.layers.items():
        if layer.removable:
            own = set(filter_channels(channels, path).tolist())
            tied = [group for group in members if group[1] & own]
            members = [group for group in members if not group[1] & own]
            paths = [tied_path for group in tied for tied_path in group[0]]
            members.append(([*paths, path], own.union(*(group[1] for group in tied))))
    order = {path: index for index, path in enumerate(channels.layers)}
    together = [tuple(sorted(paths, key=order.__getitem__)) for paths, _ in members]
    return sorted(together, key=lambda paths: order[paths[0]])


def filter_channels(channels: Channels, kernel: str) -> np.ndarray:
    """Returns the channel of each filter of a layer, (num_filters,), -1 for those that must stay.

    Two layers are tied where they have numbers in common.
    """
    layer = channels.layers[kernel]
    labels = channels.labels[f"params/{kernel}"][layer.axis]
    return np.full(layer.num_filters, FIXED) if labels is None else labels


def expand(channels: Channels, keep: Keep) -> dict[str, np.ndarray]:
    """Completes a choice of filters with the layers that are tied to the chosen ones; checks it.

    Args:
        channels: the model's channels.
        keep: by kernel path, a boolean array (num_filters,), True keeps. A layer that is absent
            follows those that it is tied to, and stays whole if it is tied to none.

    Returns:
        The choice for all layers, in the order of calls, as NumPy arrays.

    Raises:
        TypeError: an entry that is not a boolean array, or not known yet (a tracer).
        ValueError: a layer that does not exist or is not removable, another number of filters,
            tied layers that disagree, or a layer without a filter left.

    >>> import flax.linen as nn, numpy as np
    >>> from ntksap_jax.structured import trace
    >>> channels = trace(nn.Sequential([nn.Dense(3), nn.relu, nn.Dense(2)]), (4,))
    >>> expand(channels, {"layers_0/kernel": np.array([True, False, True])})
    {'layers_0/kernel': array([ True, False,  True]), 'layers_2/kernel': array([ True,  True])}
    """
    removed = removed_channels(channels, keep)
    full = {path: ~is_removed(filter_channels(channels, path), removed) for path in channels.layers}
    for path, kept in full.items():
        if not kept.any():
            tied = next(set(group) - {path} for group in groups(channels) if path in group)
            because = f" (it is tied to {', '.join(sorted(tied))})" if tied else ""
            raise ValueError(
                f"keep: layer {path!r} has no filter left{because}. Keep at least one."
            )
    return full


def check_keep(channels: Channels, keep: Keep) -> None:
    """Raises unless `keep` fits the layers: known paths, a boolean for every filter, none emptied.

    Raises:
        ValueError: a path that is no layer's, another number of filters, a layer whose filters must
            stay, or (where the values are known) one that would lose them all.
        TypeError: an array that is not boolean.
    """
    for path, kept in keep.items():
        if path not in channels.layers:
            why = f": {channels.reasons[path]}" if path in channels.reasons else ""
            raise ValueError(
                f"keep: {path!r} is no kernel of a convolution or dense layer{why}. Expected some "
                f"of: {', '.join(channels.layers)}."
            )
        if getattr(kept, "dtype", None) != np.dtype(bool):
            kind = getattr(kept, "dtype", type(kept).__name__)
            raise TypeError(f"keep: {path!r} is {kind}, expected a boolean array, True keeps.")
        wanted = (channels.layers[path].num_filters,)
        if kept.shape != wanted:
            raise ValueError(
                f"keep: {path!r} has shape {kept.shape}, expected {wanted}, a boolean for each "
                "filter."
            )
        if is_traced(kept):
            continue
        if not np.any(kept):
            raise ValueError(f"keep: layer {path!r} has no filter left. Keep at least one.")
        if not channels.layers[path].removable and not np.all(kept):
            raise ValueError(
                f"keep: filters of layer {path!r} cannot be removed: {channels.reasons[path]}. "
                "Leave the layer out; channels.layers[path].removable says which can go."
            )


def removed_channels(channels: Channels, keep: Keep) -> np.ndarray:
    """Returns which channels a `Keep` removes, a boolean array (num_channels,); checks it.

    Raises:
        TypeError, ValueError: as `expand` does.
    """
    check_keep(channels, keep)
    removed = np.zeros(channels.num_channels, bool)
    removed_by: dict[int, str] = {}
    for path, kept in keep.items():
        if is_traced(kept):
            raise TypeError(
                f"keep: the entry of layer {path!r} is traced by jit or the like. Which filters go "
                "decides shapes: call this outside, with concrete arrays."
            )
        gone = filter_channels(channels, path)[~np.asarray(kept)]
        removed[gone] = True
        removed_by.update(dict.fromkeys(gone.tolist(), path))
    for path, kept in keep.items():
        numbers = filter_channels(channels, path)
        wrong = np.flatnonzero(np.asarray(kept) & is_removed(numbers, removed))
        if len(wrong):
            remover = removed_by[int(numbers[wrong[0]])]
            raise ValueError(
                f"keep: layer {path!r} keeps filter {wrong[0]}, but "
                + (
                    f"{remover!r}, which is tied to it, removes it. Give both the same channels, "
                    "or leave one of the two out: structured.groups(channels) lists what is tied."
                    if remover != path
                    else "removes another filter that is tied to it."
                )
            )
    return removed


def kept_indices(channels: Channels, path: str, removed: np.ndarray) -> list[np.ndarray | None]:
    """Returns for each axis of a leaf the indices that stay, None where all of them do.

    Args:
        channels: the model's channels.
        path: the leaf's path, from "params/" or "batch_stats/" on.
        removed: result of `removed_channels`.
    """
    kept: list[np.ndarray | None] = []
    for labels in channels.labels[path]:
        gone = None if labels is None else is_removed(labels, removed)
        kept.append(None if gone is None or not gone.any() else np.flatnonzero(~gone))
    return kept


def expected_program(channels: Channels, removed: np.ndarray) -> list[Operation]:
    """Returns the operations of the model without some channels, as they should be."""

    def size_of(size: int, axis: Any) -> int:
        if isinstance(axis, np.ndarray):
            return int(np.sum(~is_removed(axis, removed)))
        return _resized.ANY if isinstance(axis, str) and size > 1 else size

    def places_of(places: tuple[int, ...], axis: Any) -> tuple[int, ...]:
        if not isinstance(axis, np.ndarray):
            return places
        stays = ~is_removed(axis, removed)
        place = np.cumsum(stays) - 1  # where an index is once others before it are gone
        return tuple(int(place[index]) for index in places if stays[index])

    return [
        operation._replace(
            shapes=tuple(
                tuple(map(size_of, shape, one))
                for shape, one in zip(operation.shapes, axes, strict=True)
            ),
            lengths=tuple(
                size if isinstance(axis, str) else size_of(size, axis)
                for size, axis in zip(operation.lengths, lengths, strict=True)
            ),
            places=tuple(map(places_of, operation.places, whole)),
        )
        for operation, axes, lengths, whole in channels.program
    ]


def is_removed(labels: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """Which indices belong to a channel that is removed."""
    return np.append(removed, False)[labels]  # -1 is the last entry: never removed
