r"""GraSP: keep the connections whose removal would weaken the gradient flow most.

    s = θ ⊙ H g,    g = ∂L/∂θ,  H = ∂²L/∂θ²,    L the mean loss of logits / T, T = 200.

Removing weight j changes ‖g‖² by about -2 s_j. **Sign**: the highest s are kept, those whose
removal would *lower* the gradient norm; weights with negative s go first, since the gradient norm
grows without them. (The paper writes S(-θ) = -θ ⊙ H g and prunes its highest values: the same.)

Source: Wang, Zhang, Grosse, "Picking winning tickets before training by preserving gradient flow",
ICLR 2020, one shot, in training mode; temperature and sign as in their code and NTK-SAP's.
Their division by the sum of all scores changes no ranking and is left out: the sum nearly cancels.
Needs weights, data and labels.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ntksap_jax import _networks, _zeros, masks
from ntksap_jax._precision import scoring_precision
from ntksap_jax.criteria import _batches
from ntksap_jax.types import Batch, Key, Mask, Metrics, Network, Params, ScoreFn, Scores


def grasp(
    network: Network,
    *,
    temperature: float = 200.0,
    loss_fn: _batches.LossFn = _batches.cross_entropy,
    statistics: _batches.Statistics = "train",
    micro_batch_size: int | None = None,
) -> ScoreFn:
    """Makes the GraSP criterion: θ H g on the given weights and batch.

    The product H g is a forward-mode derivative of the gradient, at the cost of about two gradients
    and without the memory of reverse over reverse.

    Args:
        network: the model, from `ntksap_jax.linen`, `nnx` or `plain`.
        temperature: T, which the outputs are divided by.
        loss_fn: `loss_fn(outputs, labels) -> losses`, one for each example; by default softmax
            cross-entropy with integer labels.
        statistics: treatment of batch statistics, `"train"` in the source.
        micro_batch_size: examples at once, to save memory: g is of the whole batch, and H g the sum
            over micro-batches. The score is that of the whole batch (but for batch statistics).

    Returns:
        The criterion; it ignores the key.

    Raises:
        ValueError, TypeError: an option out of range. When called: no labelled batch.

    >>> import jax, jax.numpy as jnp
    >>> import ntksap_jax as nts
    >>> params, x = {"w": jnp.array([[3.0], [1.0]])}, jnp.array([[1.0, 2.0]])
    >>> network = nts.plain(lambda key: params, lambda p, x: x @ p["w"], (2,))
    >>> square = lambda outputs, labels: 0.5 * outputs[:, 0] ** 2
    >>> score = grasp(network, temperature=1.0, loss_fn=square)
    >>> scores, _ = score(None, params, masks.create(params), (x, jnp.zeros(1)))
    >>> scores["w"].ravel().tolist()  # θ x |x|² (x θ)
    [75.0, 50.0]
    """
    _batches.check_network(network)
    if loss_fn is _batches.cross_entropy:
        _networks.check_one_output(network)
    _batches.check_micro_batch_size(micro_batch_size)
    if not temperature > 0:
        raise ValueError(f"temperature: got {temperature!r}, expected a positive number.")
    apply = _batches.apply_with(network, statistics)

    def cooled(outputs: Any, labels: Any) -> jax.Array:
        return loss_fn(jax.tree.map(lambda leaf: leaf / temperature, outputs), labels)

    def gradient(weights: Any, params: Params, batch: Batch, total: int) -> Any:
        return _batches.loss_gradient(apply, weights, params, batch, loss_fn=cooled, total=total)

    @jax.jit
    def part_of_gradient(params: Params, mask: Mask, batch: Batch, total: int) -> Any:
        return gradient(_batches.kept_weights(mask, params), params, batch, total)

    @jax.jit
    def part_of_product(params: Params, mask: Mask, g: Any, batch: Batch, total: int) -> Any:
        weights = _batches.kept_weights(mask, params)
        return jax.jvp(lambda w: gradient(w, params, batch, total), (weights,), (g,))[1]

    def score(key: Key, params: Params, mask: Mask, batch: Batch) -> tuple[Scores, Metrics]:
        del key
        masks.check(mask, params)
        _batches.check_batch(network, batch, labels=True, why="the score is of a loss")
        _batches.check_labels(network, params, batch, loss_fn)
        total = _batches.num_examples(batch[0])
        g = hg = None
        with scoring_precision():
            for part in _batches.micro_batches(tuple(batch), micro_batch_size):
                g = _batches.add(g, part_of_gradient(params, mask, part, total))
            # Only directions within the pruned network count: a pruned weight does not move.
            # (JAX's gradient of complex weights is the conjugate of their direction.)
            g = masks.map_prunable(
                lambda m, p, leaf: jnp.conj(leaf * m).astype(p.dtype), mask, params, g
            )
            for part in _batches.micro_batches(tuple(batch), micro_batch_size):
                hg = _batches.add(hg, part_of_product(params, mask, g, part, total))
        return masks.map_prunable(lambda m, p, h: jnp.real(p * h) * m, mask, params, hg), {}

    return _zeros.says(score, network)
