"""What the examples share: a training loop under a mask, and a transformer's block."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

from ntksap_jax import constrain_to_mask, masks, prune
from ntksap_jax.types import Key, Mask, Params, ScoreFn

Train = Callable[..., tuple[Params, Any, jax.Array]]


class Run(NamedTuple):
    """A network that was pruned (or not) and trained.

    Attributes:
        method: what pruned it.
        mask: of the weights that are left.
        params: after training.
        losses: of every step.
        results: what was measured in the end, by name.
    """

    method: str
    mask: Mask
    params: Params
    losses: np.ndarray
    results: dict[str, float]


def make_train(
    loss_fn: Callable[[Params, Any, Key], tuple[jax.Array, Any]],
    make_optimizer: Callable[[Any], optax.GradientTransformation],
    *,
    steps: int,
) -> Train:
    """Makes `train(key, params, mask, rate, state=None) -> (params, state, losses)`.

    It is compiled once for all masks and rates.

    Args:
        loss_fn: `loss_fn(params, state, key) -> (loss, state)`; it draws its batch from the key.
        make_optimizer: makes the optimiser for a learning rate.
        steps: number of steps.
    """

    @jax.jit
    def train(
        key: Key, params: Params, mask: Mask, rate: Any, state: Any = None
    ) -> tuple[Params, Any, jax.Array]:
        optimizer = constrain_to_mask(make_optimizer(rate), mask)
        params = masks.apply(mask, params)

        def step(carry: Any, key: Key) -> tuple[Any, jax.Array]:
            params, state, opt_state = carry
            (loss, state), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params, state, key)
            updates, opt_state = optimizer.update(gradients, opt_state, params)
            return (optax.apply_updates(params, updates), state, opt_state), loss

        carry = (params, state, optimizer.init(params))
        (params, state, _), losses = jax.lax.scan(step, carry, jax.random.split(key, steps))
        return params, state, losses

    return train


def make_masks(
    key: Key, params: Params, scores: Mapping[str, ScoreFn], **options: Any
) -> dict[str, Mask]:
    """Prunes by each score, with options for `prune`; "dense" is the mask that keeps everything."""
    pruned = {name: prune(key, params, score, **options)[0] for name, score in scores.items()}
    return {"dense": masks.create(params), **pruned}


def train_each(
    train: Train,
    key: Key,
    params: Params,
    to_train: Mapping[str, Mask],
    rate: float,
    *,
    state: Any = None,
    measure: Callable[[Params, Any], dict[str, float]],
) -> list[Run]:
    """Trains from the same params under each mask; `measure(params, state)` says how well."""
    runs = []
    for method, mask in to_train.items():
        trained, trained_state, losses = train(key, params, mask, rate, state)
        results = measure(trained, trained_state)
        runs.append(Run(method, mask, trained, np.asarray(losses), results))
    return runs


def density_of(pattern: str, mask: Mask) -> float:
    """Returns the fraction kept of all weights whose path has a match of a regular expression."""
    leaves = [leaf for path, leaf in masks.leaf_paths(mask).items() if re.search(pattern, path)]
    return sum(int(leaf.sum()) for leaf in leaves) / sum(leaf.size for leaf in leaves)


def adamw_with_warmup(rate: Any, *, steps: int) -> optax.GradientTransformation:
    """AdamW with weight decay 0.05; the rate rises for a while and falls as a cosine."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, min(steps // 10, 50), steps)
    return optax.adamw(lambda count: rate * schedule(count), weight_decay=0.05)


class Block(nn.Module):
    """Attention (to what came before, if causal), then an MLP; both added to what came in."""

    num_heads: int
    causal: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, length, features) to the same shape."""
        mask = nn.make_causal_mask(jnp.ones(x.shape[:2])) if self.causal else None
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(self.num_heads, name="attention")(y, mask=mask)
        y = nn.LayerNorm()(x)
        y = nn.gelu(nn.Dense(4 * x.shape[-1], name="mlp_in")(y))
        return x + nn.Dense(x.shape[-1], name="mlp_out")(y)


def show(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints a table."""
    table = Table(*columns)
    for row in rows:
        table.add_row(*map(str, row))
    Console().print(table)
