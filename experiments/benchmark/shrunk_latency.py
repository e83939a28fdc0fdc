"""The case shrunk-latency: how fast shrunk networks are.

The networks are untrained, and filters are pruned at random, with the same probability in every
layer: for time it only matters how many are left.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.benchmark.results import Table
from experiments.tpp.measure import Network, latency
from ntksap_jax import models, structured
from ntksap_jax.structured import filters

INPUT_SHAPE = (32, 32, 3)
SHARES_OF_FLOPS = (0.5, 0.1)
REPEATS = 30


def shrink(
    model: nn.Module, shares: Sequence[float] = SHARES_OF_FLOPS
) -> dict[str, tuple[Network, int]]:
    """Returns the dense network and those shrunk to shares of its FLOPs, by name, with theirs."""
    images = jnp.zeros((1, *INPUT_SHAPE))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    channels = structured.trace(model, INPUT_SHAPE)
    scores = uniform_scores(channels)
    shrunk = {"dense": (Network(model, variables), structured.cost(channels).flops)}
    for share in shares:
        keep = structured.select_global(scores, channels, density=share, cost="flops")
        network = Network(*structured.shrink(model, variables, channels, keep))
        shrunk[f"{share:g} of the FLOPs"] = (network, structured.cost(channels, keep).flops)
    return shrunk


def uniform_scores(channels: structured.Channels) -> dict[str, jax.Array]:
    """Returns a number from [0, 1) for every filter, the same for those that go together."""
    keys = jax.random.split(jax.random.key(1), len(channels.layers))
    draws = {
        path: jax.random.uniform(key, (layer.num_filters,))
        for key, (path, layer) in zip(keys, channels.layers.items(), strict=True)
    }
    # Tied filters get the sum of several numbers; its fractional part is uniform too.
    return {path: total % 1 for path, total in filters.tie(draws, channels).items()}


def table() -> Table:
    """Makes the table, with a row for each network and batch size."""
    rows: list[tuple[str, ...]] = []
    for name, model in (("ResNet-56", models.resnet56()), ("VGG-16-BN", models.vgg16_bn())):
        shrunk = shrink(model)
        networks = {kind: network for kind, (network, _) in shrunk.items()}
        for batch, seconds in latency(networks, INPUT_SHAPE, repeats=REPEATS).items():
            for kind, (low, median, high) in seconds.items():
                milliseconds = f"{1e3 * median:.3g} ({1e3 * low:.3g} to {1e3 * high:.3g})"
                faster = f"{seconds['dense'][1] / median:.2f}"
                flops = f"{shrunk[kind][1]:,}"
                rows.append((f"{name}, {kind}", flops, batch, milliseconds, faster))
    header = ("network", "FLOPs", "batch", "ms", "times as fast")
    legend = "Medians, and in brackets quartiles, of forward passes in evaluation mode."
    return Table("Latency of shrunk networks", header, rows, legend)
