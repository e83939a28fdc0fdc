"""The networks that README's table of latencies is of."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark import shrunk_latency
from ntksap_jax import models


def test_networks_are_as_large_as_said_and_run():
    model = models.VGG((16, "M", 16, "M", 16, "M", 16, "M", 16, "M"), num_classes=4)
    found = shrunk_latency.shrink(model, shares=(0.5, 0.2))
    assert list(found) == ["dense", "0.5 of the FLOPs", "0.2 of the FLOPs"]
    dense, half, fifth = (shrunk.flops for shrunk in found.values())
    assert 0.3 * dense < half <= 0.5 * dense
    assert 0.05 * dense < fifth <= 0.2 * dense
    kernels = [
        leaf.shape[-1]
        for leaf in jax.tree.leaves(found["0.2 of the FLOPs"].network.variables["params"])
        if leaf.ndim == 4
    ]
    assert all(2 <= filters <= 11 for filters in kernels), kernels  # of 16: no layer is spared
    for network, _ in found.values():
        images = jnp.ones((2, *shrunk_latency.INPUT_SHAPE))
        outputs = jax.jit(lambda v, x, m=network.model: m.apply(v, x, train=False))(
            network.variables, images
        )
        assert outputs.shape == (2, 4)
        assert np.isfinite(outputs).all()
