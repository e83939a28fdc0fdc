"""The form of a prunable leaf: its shape and what its axes mean, given, found or known by name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeVar

from ntksap_jax.types import Axes

Array = TypeVar("Array", bound=Any)
Shape = tuple[int, ...]
Need = Literal["nothing", "stacks", "roles"]
"""What has to be known: nothing, which axes run over layers, or what every axis means."""

_LARGEST_WINDOW = 11
_CONVOLUTION = re.compile(r"(?i)conv(?!s|_?1_?d(?![a-z])|.*local)")
_TRANSPOSED = re.compile(r"(?i)transpose|deconv|(^|_)up")
_STACK = re.compile(r"(?i)scan|vmap|stack")
"""Names of one convolution; of those whose kernel may have its outputs before its inputs; and of
what Flax and Haiku put around layers in a stack."""


class Form(NamedTuple):
    """A leaf's shape, and a letter for each of its axes (see `axes`)."""

    shape: Shape
    word: str

    @property
    def stacked(self) -> Shape:
        """Sizes of the axes that run over layers."""
        return self._sizes("s")

    @property
    def positions(self) -> Shape:
        return self._sizes("p")

    @property
    def inputs(self) -> int:
        return math.prod(self._sizes("i"))

    @property
    def outputs(self) -> int:
        return math.prod(self._sizes("o"))

    @property
    def layers(self) -> int:
        """Number of layers in the leaf."""
        return math.prod(self.stacked)

    @property
    def size(self) -> int:
        """Number of weights of one layer."""
        return math.prod(self.shape) // max(1, self.layers)

    def arrange(self, leaf: Array) -> Array:
        """Brings a leaf's axes to (*stacked, *positions, inputs, outputs): the form of Flax."""
        shape = (*self.stacked, *self.positions, self.inputs, self.outputs)
        order = self._order("spio")
        moved = leaf if order == sorted(order) else leaf.transpose(order)
        return moved if moved.shape == shape else moved.reshape(shape)

    def restore(self, arranged: Array) -> Array:
        """The inverse of `arrange`."""
        return self._back(arranged, self._order("spio"))

    def arranged_layers(self, leaf: Array) -> Array:
        """Brings a leaf to (layers, *positions, inputs, outputs)."""
        return self.arrange(leaf).reshape(self.layers, *self.positions, self.inputs, self.outputs)

    def by_layer(self, leaf: Array) -> Array:
        """Brings a leaf with a stack to (layers, weights of a layer); leaves others as they are."""
        if not self.stacked:
            return leaf
        order = self._order("s")
        moved = leaf if order == sorted(order) else leaf.transpose(order)
        return moved.reshape(self.layers, self.size)

    def restore_layers(self, layers: Array) -> Array:
        """The inverse of `by_layer`."""
        return self._back(layers, self._order("s"))

    def names(self, path: str) -> list[str]:
        """Returns a name for each layer: the path, with the index in a stack behind it."""
        if not self.stacked:
            return [path]
        return [
            f"{path}[{', '.join(map(str, _index(i, self.stacked)))}]" for i in range(self.layers)
        ]

    def _sizes(self, letter: str) -> Shape:
        return tuple(n for n, found in zip(self.shape, self.word, strict=True) if found == letter)

    def _order(self, first: str) -> list[int]:
        """The axes in the order of some letters; those of all others last, as they are."""
        rank = {letter: i for i, letter in enumerate(first)}
        axes = range(len(self.shape))
        return sorted(axes, key=lambda axis: rank.get(self.word[axis], len(first)))

    def _back(self, moved: Array, order: list[int]) -> Array:
        shape = tuple(self.shape[axis] for axis in order)
        leaf = moved if moved.shape == shape else moved.reshape(shape)
        if order == sorted(order):
            return leaf
        return leaf.transpose([order.index(axis) for axis in range(len(order))])


def _index(flat: int, shape: Shape) -> Shape:
    index: list[int] = []
    for size in reversed(shape):
        flat, place = divmod(flat, size)
        index.insert(0, place)
    return tuple(index)


def forms(leaves: Mapping[str, Any], axes: Axes | None, *, need: Need, what: str) -> list[Form]:
    """Returns the form of each prunable leaf.

    Args:
        leaves: anything with a shape, by path.
        axes: words by path or by pattern; what they do not say is taken from names.
        need: what has to be known.
        what: asks for it, for messages.

    Raises:
        ValueError: a leaf of which not enough is known; a word that does not fit its leaf.
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    words = words_of(shapes, axes)
    return [_form(path, shape, words[path], need, what) for path, shape in shapes.items()]


def _form(path: str, shape: Shape, word: str, need: Need, what: str) -> Form:
    is_known = "?" not in word
    if is_known or need == "nothing":
        return Form(shape, word)
    if need == "stacks" and len(shape) < 3:  # Stacks of kernels have three axes or more.
        return Form(shape, "?" * len(shape))
    told = " or ".join(f'"{each}"' for each in _EXAMPLES.get(len(shape), ["sppio"]))
    raise ValueError(
        f"axes: {what} depends on what the axes of leaf {path!r} of shape {shape} mean, which is "
        f"known as {word!r} only. If the criterion knows no network, pass "
        "axes=ntksap_jax.axes.of(network). If the network does not show it either, a letter for "
        "each axis (s: stacked layers, p: positions, i: inputs, o: outputs): "
        f'axes={{"{path}": {told}}}. Or leave the leaf out with masks.create(params, exclude=...).'
    )


_EXAMPLES = {
    1: ["o"],
    2: ["io", "oi"],
    3: ["sio", "pio", "ioo"],
    4: ["ppio", "oipp", "sioo"],
    5: ["pppio", "sppio"],
}


def words_of(
    shapes: Mapping[str, Shape], axes: Axes | None, found: Axes | None = None
) -> dict[str, str]:
    """Returns a word for each leaf: given by path or pattern, found in a program, or by its name.

    A pattern says what the matching leaves mean that have as many axes as it has letters: where it
    matches a stack's kernels, it matches their biases too.

    Raises:
        TypeError: axes that are no dict.
        ValueError: what is no pattern, or a word that does not fit its leaf.
    """
    if not isinstance(axes, Mapping | None):
        raise TypeError(
            f"axes: got {type(axes).__name__}, expected a dict of letters by path or pattern, such "
            "as ntksap_jax.axes.of(network)."
        )
    given: dict[str, str] = {}
    for pattern, word in sorted((axes or {}).items(), key=lambda item: item[0] in shapes):
        _check_word(pattern, word)
        matched = matching(pattern, shapes)
        fitting = [path for path in matched if len(shapes[path]) == len(word)]
        if matched and not fitting:
            raise ValueError(
                f"axes: got {word!r} for leaf {matched[0]!r}, expected {len(shapes[matched[0]])} "
                f"letters: its shape is {shapes[matched[0]]}."
            )
        given |= dict.fromkeys(fitting, word)
    return {
        path: given.get(path) or (found or {}).get(path) or _by_name(path, shapes)
        for path in shapes
    }


def matching(pattern: str, shapes: Mapping[str, Shape]) -> list[str]:
    """Returns the path that this is, or else all that the pattern matches."""
    if pattern in shapes:
        return [pattern]
    try:
        return [path for path in shapes if re.search(pattern, path)]
    except re.error as error:
        raise ValueError(f"axes: {pattern!r} is not a regular expression: {error}") from error


def _check_word(pattern: str, word: Any) -> None:
    if not (isinstance(word, str) and set(word) <= set("spio?")):
        raise ValueError(
            f"axes: got {word!r} for {pattern!r}, expected a letter for each axis, such as 'sio': "
            "s (stacked layers), p (positions), i (inputs) or o (outputs)."
        )


# -- By name ---------------------------------------------------------------------------------------

_INTO_HEADS, _OUT_OF_HEADS = ("query", "key", "value"), "out"


def _by_name(path: str, shapes: Mapping[str, Shape]) -> str:
    """What a leaf's name and its bias say in Flax and Haiku; `?` for each axis if not enough."""
    parent, _, name = path.rpartition("/")
    shape, unknown = shapes[path], "?" * len(shapes[path])
    bias = shapes.get(f"{parent}/bias".lstrip("/"), shapes.get(f"{parent}/b".lstrip("/")))
    if name not in ("kernel", "w") or (bias is not None and len(bias) >= len(shape)):
        return unknown
    if len(shape) == 2:
        return "io"
    if len(shape) == 3:
        attention = _role_in_attention(parent, name, shapes)
        if attention is not None:
            return attention
        fits = {"ioo": bias == shape[1:], "sio": bias == (shape[0], shape[2])}
        words = [word for word, fit in fits.items() if fit]
        return words[0] if len(words) == 1 else unknown
    is_window = len(set(shape[:-2])) == 1 and shape[0] <= _LARGEST_WINDOW
    if len(shape) in (4, 5) and is_window and _is_convolution(parent, shape, bias, shapes):
        return "p" * (len(shape) - 2) + "io"
    return unknown


def _is_convolution(
    parent: str, shape: Shape, bias: Shape | None, shapes: Mapping[str, Shape]
) -> bool:
    """Whether a kernel with a square window is a convolution's, inputs before outputs.

    It might be transposed, with outputs first, or in a stack, where each leaf has one more axis.
    """
    above, _, layer = parent.rpartition("/")
    is_transposed = bool(_TRANSPOSED.search(layer))
    if bias is not None:
        return bias == shape[-1:] and (shape[-2] != shape[-1] or not is_transposed)
    if len(shape) != 4 or is_transposed or not _CONVOLUTION.search(layer) or _STACK.search(parent):
        return False
    # A stack of three 1-D convolutions looks like one in 2-D.
    beside = [
        other
        for path, other in shapes.items()
        if path.startswith(above) and path.rpartition("/")[2] not in ("kernel", "w")
    ]
    return not beside or any(len(other) == 1 or shape[0] not in other for other in beside)


def _role_in_attention(parent: str, name: str, shapes: Mapping[str, Shape]) -> str | None:
    """The axes of a layer of `nn.MultiHeadDotProductAttention`, which has layers of four names."""
    above, _, role = parent.rpartition("/")
    kernels = {
        each: shapes.get(f"{above}/{each}/{name}".lstrip("/")) for each in (*_INTO_HEADS, "out")
    }
    if role not in kernels or any(shape is None or len(shape) != 3 for shape in kernels.values()):
        return None
    return "iio" if role == _OUT_OF_HEADS else "ioo"
