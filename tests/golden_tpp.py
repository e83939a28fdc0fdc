"""Values recorded from TPP's authors' code (`data/tpp.json`), in our trees and layouts.

Their kernels are (out, in, H, W) and (out, in), their images NCHW. Inputs are rounded to 3 or 4
decimals, outputs are float64. The toy networks of the recording are linen modules here.
"""

import contextlib
import functools
import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ntksap_jax.structured import Channels, FilterLayer, trace

DTYPES = ("float64", "float32")


@functools.cache
def load() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "data" / "tpp.json").read_text())


def precision(dtype: str) -> contextlib.AbstractContextManager:
    """In which arrays are of this type."""
    return jax.enable_x64(dtype == "float64")


def assert_close(got: Any, want: Any, dtype: str = "float64") -> None:
    tolerance = {"float64": (1e-9, 1e-9), "float32": (1e-4, 1e-6)}[dtype]
    got = np.asarray(got)
    assert got.dtype == dtype, "computed in another precision than the test is for"
    np.testing.assert_allclose(got, want, rtol=tolerance[0], atol=tolerance[1])


def kernel(weight: Any) -> np.ndarray:
    """(out, in, H, W) to (H, W, in, out); (out, in) to (in, out)."""
    array = np.asarray(weight, np.float64)
    return array.transpose((2, 3, 1, 0) if array.ndim == 4 else (1, 0))


def array(values: Any, dtype: str) -> jax.Array:
    return jnp.asarray(np.asarray(values, dtype))


def images(values: Any, dtype: str) -> jax.Array:
    """NCHW to NHWC."""
    return array(np.asarray(values).transpose(0, 2, 3, 1), dtype)


def keep(num_filters: int, pruned: list[int]) -> np.ndarray:
    return ~np.isin(np.arange(num_filters), pruned)


def variables(recorded: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Their state dictionary, or gradients, as a tree: {"params": ..., "batch_stats": ...}."""
    tree: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for key, values in recorded.items():
        module, _, name = key.rpartition(".")
        values = np.asarray(values)
        is_norm = module.startswith("bn")
        leaf = {"weight": "scale" if is_norm else "kernel", "bias": "bias"}
        leaf |= {"running_mean": "mean", "running_var": "var"}
        collection = "batch_stats" if name.startswith("running") else "params"
        node = tree[collection].setdefault(module.replace(".", "_"), {})
        node[leaf[name]] = array(kernel(values) if values.ndim > 1 else values, dtype)
    return tree


class ConvNet(nn.Module):
    """conv1 - bn1 - relu - conv2 - bn2 - relu - average - fc."""

    features: tuple[int, int] = (6, 4)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for index, features in enumerate(self.features, start=1):
            padding = ((1, 1), (1, 1))
            x = nn.Conv(features, (3, 3), padding=padding, use_bias=False, name=f"conv{index}")(x)
            norm = nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                epsilon=1e-5,
                use_fast_variance=False,
                name=f"bn{index}",
            )
            x = nn.relu(norm(x))
        return nn.Dense(3, name="fc")(x.mean((1, 2)))


class LinearNet(nn.Module):
    """Three dense layers."""

    features: tuple[int, ...] = (5, 5, 3)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for index, features in enumerate(self.features):
            x = nn.Dense(features, name=f"net_{2 * index}")(x)
        return x


def dense(name: str, index: int, num_filters: int) -> FilterLayer:
    path, bias = f"{name}/kernel", f"{name}/bias"
    return FilterLayer(path, index, num_filters, bias, None, None, None, None, True)


def untied(*layers: FilterLayer) -> Channels:
    """Removable layers of which no two have a channel in common, as `trace` would find them."""
    starts = np.cumsum([0, *(layer.num_filters for layer in layers)])
    return Channels(
        layers={layer.kernel: layer for layer in layers},
        labels={
            f"params/{layer.kernel}": (np.arange(start, start + layer.num_filters),)
            for layer, start in zip(layers, starts[:-1], strict=True)
        },
        num_channels=int(starts[-1]),
        **dict.fromkeys(("reasons", "zeroed", "features", "sizes", "flops", "shapes"), {}),
        call=None,
        program=(),
    )


def one_layer(num_filters: int) -> Channels:
    """A single kernel at the path "kernel"."""
    return untied(dense("", 0, num_filters)._replace(kernel="kernel", bias=None))


CONV_CHANNELS = trace(ConvNet(), (4, 4, 2))
LINEAR_CHANNELS = trace(LinearNet(), (6,))


def keep_of(channels: Channels, pruned: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Their lists of pruned filters as a `Keep`; layers that lose none are left out."""
    paths = {f"{name.replace('.', '_')}/kernel": filters for name, filters in pruned.items()}
    return {
        path: keep(channels.layers[path].num_filters, filters)
        for path, filters in paths.items()
        if filters
    }
