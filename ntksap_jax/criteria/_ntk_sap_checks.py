"""Checks of what `ntk_sap` is given."""

from __future__ import annotations

import numbers
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from ntksap_jax import _checks, _networks, _placement, masks
from ntksap_jax.criteria import _batches, _inputs
from ntksap_jax.types import Network, Params


def check_options(
    network: Network,
    *,
    estimator: Any,
    inputs: Any,
    output_fn: Any,
    calibrate: str,
    num_samples: int,
    vmap_samples: int,
    batch_size: int,
    reinit: bool | float,
) -> None:
    """Raises a TypeError or ValueError that names the option unless they fit each other."""
    _batches.check_network(network)
    if not callable(estimator):
        raise TypeError(f"estimator: got {estimator!r}, expected a function such as ntk.jvp.")
    sizes = {"num_samples": num_samples, "vmap_samples": vmap_samples, "batch_size": batch_size}
    for name, size in sizes.items():
        _checks.integer(name, size)
    if num_samples % vmap_samples:
        raise ValueError(
            f"vmap_samples: got {vmap_samples}, expected a divisor of num_samples={num_samples}."
        )
    if not (isinstance(reinit, numbers.Real) and 0 <= reinit <= 1):
        raise ValueError(
            f"reinit: got {reinit!r}, expected True (fresh weights), False (the given ones), or a "
            "number between 0 and 1 (the share of fresh ones in the variance)."
        )
    _inputs.check(network, inputs)
    if output_fn is None:
        _networks.check_one_output(network)
    if calibrate not in ("one_pass", "two_pass"):
        raise ValueError(f"calibrate: got {calibrate!r}, expected 'one_pass' or 'two_pass'.")


def check_axes(shard_samples: NamedSharding, layout: _placement.Layout | None) -> None:
    """Raises if the devices that samples are spread over have no whole params."""
    wanted = _placement.axes_of(shard_samples)
    for placed in layout or ():
        if isinstance(placed, NamedSharding) and (shared := wanted & _placement.axes_of(placed)):
            raise ValueError(
                f"shard_samples: spreads samples over the axes {sorted(shared)}, which split the "
                "params too. Use another axis of the mesh for each: sharding.model_mesh(2) has "
                "'data' and 'model'."
            )


def check_fresh(network: Network, params: Params) -> None:
    """Raises unless `network.init` makes params like the given ones."""
    fresh = jax.eval_shape(network.init, jax.random.key(0))
    advice = "Pass params that network.init made, or score the given ones with reinit=False."
    wanted, given = masks.leaf_paths(fresh), masks.leaf_paths(params)
    for path in wanted | given:
        want, got = (
            None if tree.get(path) is None else (jnp.shape(tree[path]), jnp.result_type(tree[path]))
            for tree in (wanted, given)
        )
        if want != got:
            raise ValueError(f"params: leaf {path!r} is {got}, network.init makes {want}. {advice}")
