"""Leaves that are all zero at initialisation, and that scores vanish behind.

Models that are to begin as a simpler function start some factors at zero: scales at the end of
residual branches, heads, gates, adapters. As long as such a factor is zero, no derivative reaches
what stands behind it, and no criterion can rank that. (A bias is zero too, and in nobody's way: it
is added.) Which leaves are factors is found in the model's own operations.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntksap_jax import _forms, _jaxprs, _placement, axes, masks
from ntksap_jax._draws import normal
from ntksap_jax.types import ApplyFn, Key, Mask, Network, Params, ScoreFn


class Zero(NamedTuple):
    """A leaf that is zero, and what is to stand in its place.

    Attributes:
        place: its place among the leaves of the params.
        path: its path.
        std: standard deviation of normal numbers, for kernels; None: ones, for scales.
    """

    place: int
    path: str
    std: float | None


class Draws(NamedTuple):
    """What `network.init` draws, or does not.

    Attributes:
        zeros: the factors that it makes all zero, so that other numbers have to be drawn there.
        fixed: paths of the prunable leaves that are other numbers, the same for every key.
    """

    zeros: tuple[Zero, ...]
    fixed: tuple[str, ...]


class About(NamedTuple):
    """What a criterion says of itself; an attribute of the score function, `about`.

    Attributes:
        network: the network that it evaluates, if any.
        draws: `draws(mask)`: what it draws; None if it scores the params that it is given.
    """

    network: Network | None = None
    draws: Callable[[Mask], Draws] | None = None


def about(score: ScoreFn) -> About:
    """Returns what a criterion says of itself; of a user's own function nothing is known."""
    return getattr(score, "about", About())


def says(score: ScoreFn, network: Network, draws: Any = None) -> ScoreFn:
    """Returns the score function, which now says what network it evaluates; see `About`."""
    score.about = About(network, draws)  # type: ignore[attr-defined]
    return score


# -- Which leaves ----------------------------------------------------------------------------------


def of_init(network: Network) -> Callable[[Mask], Draws]:
    """Makes a function of the mask: what `network.init` draws. It raises if that is nothing at all.

    Prunable leaves that are zero count as factors even where the program does not show what they
    are for. Found once for each set of prunable leaves, from the programs alone: nothing is
    computed.
    """

    @functools.cache
    def find(prunable: tuple[str, ...]) -> Draws:
        key = jax.random.key(0)
        program, params = jax.make_jaxpr(network.init, return_shape=True)(key)
        are_zero = _jaxprs.walk(program, [False], _zero_step, constant=_is_zero)
        zero = [i for i, is_zero in enumerate(are_zero) if is_zero is True]
        drawn = _jaxprs.dependencies(program, [{"key"}])
        fixed = tuple(
            path
            for i, (path, by) in enumerate(zip(masks.leaf_paths(params), drawn, strict=True))
            if path in prunable and not by and i not in zero
        )
        if set(fixed) == set(prunable):
            raise ValueError(
                "network: its init ignores its key, so that weights drawn anew are always the same "
                f"({_listed(fixed)} fixed). Draw them from the key (in nnx, from the rngs that are "
                "given), or score the params as they are: ntk_sap(..., reinit=False), or a "
                "criterion without fresh_weights."
            )
        return Draws(_described(network, params, zero, prunable) if zero else (), fixed)

    return lambda mask: find(tuple(masks.leaf_paths(mask)))


def of_params(network: Network, params: Params) -> tuple[Zero, ...]:
    """Returns the factors that are zero in the given params; all factors if these are traced."""
    leaves = jax.tree.leaves(params)
    zero = list(range(len(leaves)))
    if not _placement.is_traced(leaves):
        zero = [i for i, some in enumerate(jax.device_get(_any(leaves))) if not some]
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
    return _described(network, shapes, zero, ())


@jax.jit
def _any(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jnp.any(leaf != 0) for leaf in leaves]


def _described(
    network: Network, params: Params, zero: Sequence[int], prunable: Collection[str]
) -> tuple[Zero, ...]:
    in_products = factors(network.apply, params, network.examples(2), zero)
    leaves = list(masks.leaf_paths(params).items())
    found = [
        i
        for i, (path, _) in enumerate(leaves)
        if i in in_products or (i in zero and path in prunable)
    ]
    words = axes.of(network) if any(in_products.get(i, True) for i in found) else {}
    return tuple(
        Zero(i, path, _kaiming(leaf.shape, words.get(path)) if in_products.get(i, True) else None)
        for i, (path, leaf) in [(i, leaves[i]) for i in found]
    )


def _kaiming(shape: tuple[int, ...], word: str | None) -> float:
    """The deviation of Kaiming-normal weights, by the number of inputs (NTK-SAP, released code).

    Where it is not known which axes are inputs, all but the last one are.
    """
    if word is None or "?" in word:
        return math.sqrt(2 / math.prod(shape[:-1]))
    form = _forms.Form(shape, word)
    return math.sqrt(2 / (math.prod(form.positions) * form.inputs))


# -- Programs --------------------------------------------------------------------------------------

# Operations whose result is the operand, but for a sign.
_MOVES = _jaxprs.MOVES | {"neg", "gather"}
# Functions that are zero at zero and rise there, such as a gate may be.
_ODD = {"tanh", "sin", "tan", "sinh", "asinh", "atan", "erf", "expm1", "log1p"}
# Operations that make zeros of zeros.
_ZERO_OF_ZEROS = {
    *_MOVES,
    *_ODD,
    *("add", "sub", "sqrt", "concatenate", "pad", "max", "min", "sign", "abs"),
}
_ELEMENTWISE_PRODUCTS = {"mul", "div"}
_PRODUCTS = {"dot_general", "conv_general_dilated", "conv2d", "ragged_dot_general"}


def _is_zero(value: Any) -> bool:
    """Whether a constant of a program is known to be zero."""
    if _placement.is_traced(value) or jnp.issubdtype(jnp.result_type(value), jax.dtypes.extended):
        return False
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return False
    return not np.any(np.asarray(value))


def _zero_step(eqn: Any, operands: list[bool], where: str) -> list[bool] | None:
    """Follows zeros through an operation."""
    name = eqn.primitive.name
    if name == "scan":  # As of layers that are stacked: what each iteration returns.
        fixed, carry, stacks = _jaxprs.scan_parts(eqn, operands)
        inner = fixed + [False] * len(carry + stacks)
        results = _jaxprs.walk(eqn.params["jaxpr"], inner, _zero_step, constant=_is_zero)
        return [False] * len(carry) + results[len(carry) :]
    if _jaxprs.called(eqn) is not None:
        return None
    zero = (
        (name in _ZERO_OF_ZEROS and all(operands))
        or (name == "mul" and any(operands))
        or (name == "div" and operands[0])
        or (name == "select_n" and all(operands[1:]))
    )
    return [zero] * len(eqn.outvars)


def factors(
    apply: ApplyFn, params: Params, inputs: Any, leaves: Collection[int]
) -> dict[int, bool]:
    """Finds out which leaves multiply something, rather than being added to it.

    Args:
        apply: `apply(params, inputs) -> outputs`.
        params: arrays, or their shapes.
        inputs: likewise.
        leaves: the leaves in question, by their place among those of the params.

    Returns:
        Those that do, and whether in an inner product, as a kernel does; otherwise entry by entry,
        as a scale does.
    """
    found: dict[int, bool] = {}

    def step(eqn: Any, operands: list[Any], where: str) -> list[Any] | None:
        """An operand is the place of the leaf that it is, `_CONSTANT`, or None: something else."""
        name, count = eqn.primitive.name, len(eqn.outvars)
        marked = [operand for operand in operands if isinstance(operand, int)]
        rest = len(operands) - len(marked) - operands.count(_CONSTANT)
        if not marked:
            return [None if rest else _CONSTANT] * count
        bodies = _jaxprs.bodies(eqn, operands, carried=None)
        for body, arguments in bodies:
            _jaxprs.walk(body, arguments, step, constant=lambda _: _CONSTANT)
        if bodies:
            return [None] * count
        if _jaxprs.called(eqn) is not None:
            return None
        alone = len(marked) == 1 and not rest
        if alone and name in _MOVES | _ODD | _ELEMENTWISE_PRODUCTS:
            return marked * count
        if name in _PRODUCTS or name in _ELEMENTWISE_PRODUCTS:
            sums = name in _PRODUCTS and not _is_elementwise(eqn)
            found.update({i: found.get(i, False) or sums for i in marked})
        return [None] * count

    program = jax.make_jaxpr(apply)(params, inputs)
    arguments: list[Any] = [i if i in leaves else None for i in range(len(jax.tree.leaves(params)))]
    arguments += [None] * len(jax.tree.leaves(inputs))
    _jaxprs.walk(program, arguments, step, constant=lambda _: _CONSTANT)
    return found


_CONSTANT = "constant"


def _is_elementwise(eqn: Any) -> bool:
    """Whether a product sums over nothing, as a scale that is written as an `einsum` does."""
    return eqn.primitive.name == "dot_general" and eqn.params["dimension_numbers"][0] == ((), ())


# -- What to do with them --------------------------------------------------------------------------


def fill(key: Key, params: Params, zeros: tuple[Zero, ...]) -> Params:
    """Returns params with numbers in the place of leaves that are zero: drawn for kernels, or ones.

    Args:
        key: PRNG key; each leaf has its own, whatever other leaves are zero.
        params: pytree of arrays.
        zeros: where to look; leaves that are not zero are left as they are.
    """
    if not zeros:
        return params
    leaves, structure = jax.tree.flatten(params)
    filled = _fill(key, [leaves[zero.place] for zero in zeros], zeros)
    for zero, leaf in zip(zeros, filled, strict=True):
        leaves[zero.place] = leaf
    return jax.tree.unflatten(structure, leaves)


@functools.partial(jax.jit, static_argnames="zeros")
def _fill(key: Key, leaves: list[jax.Array], zeros: tuple[Zero, ...]) -> list[jax.Array]:
    key = jax.random.fold_in(key, 0x2E05)  # Another one than that of the weights.

    def fill_leaf(leaf: jax.Array, zero: Zero) -> jax.Array:
        new = jnp.ones_like(leaf)
        if zero.std is not None:
            new = zero.std * normal(jax.random.fold_in(key, zero.place), leaf.shape, leaf.dtype)
        return jnp.where(jnp.any(leaf != 0), leaf, new.astype(leaf.dtype))

    return list(map(fill_leaf, leaves, zeros))


def notes(score: ScoreFn, mask: Mask) -> tuple[str, ...]:
    """What a search should say once of weights that its criterion does not draw by `init`."""
    draw = about(score).draws
    zeros, fixed = draw(mask) if draw is not None else ((), ())
    said = []
    if zeros:
        said.append(
            f"{_listed([zero.path for zero in zeros])} all zero at initialisation: scored with "
            "Kaiming-normal kernels and scales of 1 in such places."
        )
    if fixed:
        said.append(f"{_listed(fixed)} the same in every draw, since init does not use its key.")
    return tuple(said)


def cause(score: ScoreFn, params: Params, useless: Sequence[str]) -> str | None:
    """Says which zeros in the given params made scores vanish, and what to do; None if none did.

    Args:
        score: the criterion. If it does not say what network it evaluates, only the leaves of which
            all scores are zero are looked into.
        params: what it was given.
        useless: the paths of those leaves.
    """
    network, draws = about(score)
    if draws is not None:  # Then the given ones are not to blame.
        return None
    if network is not None:
        zero = [each.path for each in of_params(network, params)]
    else:
        zero = [path for path in useless if not jnp.any(masks.leaf_paths(params)[path])]
    if not zero:
        return None
    return (
        f"{_listed(zero)} all zero in the params, and so is what depends on it. Search with "
        "numbers in the place of such zeros, and train the params as they are: "
        "prune(key, criteria.fill_zeros(key, params, network), score, ...)."
    )


def _listed(paths: Sequence[str], most: int = 3) -> str:
    names = ", ".join(map(repr, paths[:most]))
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return f"Leaf {names} is" if len(paths) == 1 else f"Leaves {names}{more} are"
