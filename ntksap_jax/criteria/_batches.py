"""What the criteria that look at data share: checks, micro-batches, batch statistics, the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ntksap_jax import _checks, masks
from ntksap_jax._placement import is_traced
from ntksap_jax.types import ApplyFn, Batch, Inputs, Mask, Network, Params

LossFn = Callable[[Any, Any], jax.Array]
"""`loss_fn(outputs, labels) -> losses`, one for each example."""

Statistics = Literal["train", "constant", "running"]
"""How batch normalisation works in a score: by the batch's own statistics, with derivatives through
them (`"train"`) or not (`"constant"`), or by the network's running averages (`"running"`)."""


def cross_entropy(logits: Any, labels: jax.Array) -> jax.Array:
    """Softmax cross-entropy with one integer label for each example.

    Logits may come alone in a dict or the like.
    """
    [logits] = jax.tree.leaves(logits)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def check_network(network: Any) -> None:
    """Raises a TypeError unless given a `Network`."""
    if not isinstance(network, Network):
        raise TypeError(
            f"network: got {type(network).__name__}, expected a Network, as ntksap_jax.linen, "
            "ntksap_jax.nnx and ntksap_jax.plain make one of a model."
        )


def check_is_real(network: Network) -> None:
    """Raises a TypeError for a network with complex weights, for criteria by paths."""
    params = jax.eval_shape(network.init, jax.random.key(0))
    _checks.real(params, why="Sums over paths are of the sizes of")


def check_micro_batch_size(size: int | None) -> None:
    """Raises a ValueError unless `size` is None or an integer of at least 1."""
    if size is not None:
        _checks.integer("micro_batch_size", size)


def apply_with(network: Network, statistics: Statistics) -> ApplyFn:
    """Returns the network's function under one treatment of batch statistics.

    Raises:
        ValueError: an unknown one.
    """
    functions = {
        "train": network.apply_train,
        "constant": network.apply,
        "running": network.apply_running,
    }
    if statistics not in functions:
        raise ValueError(f"statistics: got {statistics!r}, expected one of {sorted(functions)}.")
    return functions[statistics]


def check_batch(network: Network, batch: Batch, *, labels: bool, why: str) -> None:
    """Raises unless the batch is (inputs, labels) as the network and the criterion need them.

    Args:
        network: the model.
        batch: what the criterion was given.
        labels: whether it needs them; they may be None otherwise.
        why: what needs the data, for the message.
    """
    several = isinstance(network.input_dtype, (dict, tuple))
    shape = ", ".join(map(str, () if several else network.input_shape))
    of_shape = "as the network takes them" if several else f"of shape (N, {shape})"
    expected = f"(inputs, labels) with inputs {of_shape}"
    if batch is None:
        raise ValueError(f"batch: got None, expected {expected}: {why}. Pass batch=.")
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise TypeError(
            f"batch: got {type(batch).__name__}, expected {expected}"
            + ("." if labels else "; labels may be None.")
        )
    examples, answers = batch
    for leaf in jax.tree.leaves((examples, answers if labels else None)):
        if np.ndim(leaf) == 0:
            raise TypeError(f"batch: holds {leaf!r}, expected arrays with an axis of examples.")
    _check_several(network, examples)
    if isinstance(examples, (jax.Array, np.ndarray)) and examples.shape[1:] != network.input_shape:
        raise ValueError(f"batch: inputs have shape {examples.shape}, expected {expected}.")
    if num_examples(examples) == 0:
        raise ValueError(f"batch: has no examples, expected {expected}, N at least 1.")
    if not labels:
        return
    if answers is None:
        raise ValueError(f"batch: labels are None, but needed: {why}. Pass batch=(inputs, labels).")
    lengths = {len(leaf) for leaf in jax.tree.leaves((examples, answers))}
    if len(lengths) != 1:
        raise ValueError(
            f"batch: inputs and labels are of lengths {sorted(lengths)}, expected one label for "
            "each input."
        )


def _check_several(network: Network, inputs: Inputs) -> None:
    """Raises a ValueError unless inputs are those that a network of several takes."""
    if not isinstance(network.input_dtype, (dict, tuple)):
        return
    wanted, given = masks.leaf_paths(network.examples(1)), masks.leaf_paths(inputs)
    if wanted.keys() != given.keys():
        raise ValueError(f"batch: got inputs {sorted(given)}, expected {sorted(wanted)}.")
    for path in wanted:
        want, got = (("N", *jnp.shape(tree[path])[1:]) for tree in (wanted, given))
        if want != got:
            raise ValueError(f"batch: input {path!r} is of shape {got}, expected {want}.")


def check_labels(network: Network, params: Params, batch: Batch, loss_fn: LossFn) -> None:
    """Raises unless the labels are class numbers, where the loss is the cross-entropy of them.

    Raises:
        ValueError: labels that are not one integer for each example, or that are out of range (if
            their values are known): cross-entropy itself would accept them.
    """
    if loss_fn is not cross_entropy:
        return
    inputs, labels = batch
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.ndim != 1:
        raise ValueError(
            f"batch: labels are {labels.dtype} of shape {labels.shape}, expected one class number "
            "(integer) for each input. For others pass loss_fn."
        )
    [logits] = jax.tree.leaves(jax.eval_shape(network.apply, params, inputs))
    num_classes = logits.shape[-1]
    if is_traced(labels):
        return
    with jax.ensure_compile_time_eval():  # The caller's `jit` may close over them.
        lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= num_classes:
        raise ValueError(
            f"batch: labels range from {lowest} to {highest}, expected 0 to {num_classes - 1} for "
            f"a network of {num_classes} outputs."
        )


def micro_batches(batch: Any, size: int | None) -> Iterator[Any]:
    """Cuts a pytree of arrays along axis 0 into pieces of `size`; the last one may be smaller."""
    length = len(jax.tree.leaves(batch)[0])
    size = length if size is None else size
    for start in range(0, length, size):
        yield jax.tree.map(lambda leaf, i=start: leaf[i : i + size], batch)


def num_examples(inputs: Inputs) -> int:
    """Returns the length of the batch axis."""
    return len(jax.tree.leaves(inputs)[0])


def kept_weights(mask: Mask, params: Params) -> Any:
    """Returns θ ⊙ m at the prunable leaves and None elsewhere: what gradients are taken for."""
    return masks.map_prunable(lambda m, p: jnp.where(m, p, jnp.zeros_like(p)), mask, params)


def loss_gradient(
    apply: ApplyFn,
    weights: Any,
    params: Params,
    batch: Batch,
    *,
    loss_fn: LossFn,
    total: int,
) -> Any:
    """Returns the gradient with respect to the prunable weights of (sum of losses) / total.

    In float32 at least: half precision is for the network, not for sums of gradients.

    Args:
        apply: from `apply_with`.
        weights: prunable weights, from `kept_weights`.
        params: supplies the other leaves.
        batch: (inputs, labels).
        loss_fn: see `LossFn`.
        total: size of the batch of which this one is a part, so that the parts' gradients add up.
    """
    inputs, labels = batch

    def loss(weights: Any) -> jax.Array:
        outputs = apply(masks.merge(weights, params), inputs)
        losses = loss_fn(outputs, labels)
        if jnp.shape(losses) != (num_examples(inputs),):
            raise ValueError(
                f"loss_fn: returned shape {jnp.shape(losses)}, expected one loss for each of the "
                f"{num_examples(inputs)} examples. Do not take the mean."
            )
        return jnp.sum(losses) / total

    gradient = jax.grad(loss)(weights)
    return jax.tree.map(lambda g: g.astype(jnp.promote_types(g.dtype, jnp.float32)), gradient)


def add(left: Any, right: Any) -> Any:
    """Adds two pytrees; `None` counts as zero."""
    return right if left is None else jax.tree.map(jnp.add, left, right)
