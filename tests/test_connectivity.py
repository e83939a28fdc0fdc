"""Live channels and effective density against a search of all paths in the graph."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ntksap_jax as nts
from ntksap_jax import connectivity, masks, models

MLP = nts.linen(oracles.ReluMLP((5, 4), outputs=3), (6,))
MLP_PARAMS = MLP.init(jax.random.key(0))


def effective_by_matrix_products(kernels):
    """Keeps entry (i, j) of layer l if something arrives at i and something leaves j."""
    arrives = [np.ones(len(kernels[0]), bool)]
    for kernel in kernels:
        arrives.append(arrives[-1] @ kernel)
    leaves = [np.ones(kernels[-1].shape[1], bool)]
    for kernel in reversed(kernels):
        leaves.append(kernel @ leaves[-1])
    leaves = leaves[::-1]
    return [
        kernel & before[:, None] & after
        for kernel, before, after in zip(kernels, arrives, leaves[1:], strict=False)
    ]


@given(st.integers(0, 10_000), st.sampled_from([0.02, 0.1, 0.2, 0.4]))
def test_effective_mask_of_a_stack(seed, density):
    mask = oracles.random_mask(jax.random.key(seed), MLP_PARAMS, density=density)
    kernels = [np.asarray(mask[f"Dense_{i}"]["kernel"]) for i in range(3)]
    want = effective_by_matrix_products(kernels)
    found = connectivity.analyse(MLP, mask)
    for i, leaf in enumerate(want):
        np.testing.assert_array_equal(found.effective[f"Dense_{i}"]["kernel"], leaf)
        assert found.live_channels[f"Dense_{i}/kernel"] == np.mean(leaf.any(axis=0))
        assert (f"Dense_{i}/kernel" in found.dead_layers) == (not leaf.any())
    assert found.effective_density == sum(leaf.sum() for leaf in want) / masks.num_prunable(mask)
    assert found.is_collapsed == (not want[-1].any())
    assert found.dead_outputs == 3 - want[-1].any(axis=0).sum()


def without(mask, path):
    """The mask with no weight kept of the leaf at `path`."""
    parts = tuple(jax.tree_util.DictKey(part) for part in path.split("/"))
    return jax.tree_util.tree_map_with_path(lambda p, leaf: leaf & (p != parts), mask)


def test_a_layer_bypassed_by_a_shortcut_is_dead_but_the_network_is_not():
    model = models.ResNet((1, 1), 4, 5)
    network = nts.linen(model, (8, 8, 3), train=False)
    dense = masks.create(jax.eval_shape(network.init, jax.random.key(0)))
    found = connectivity.analyse(network, without(dense, "block_0/conv1/kernel"))
    # Nothing arrives at its second convolution either.
    assert found.dead_layers == ["block_0/conv1/kernel", "block_0/conv2/kernel"]
    assert not found.is_collapsed and found.dead_outputs == 0
    assert all(
        share == 1.0 for path, share in found.live_channels.items() if path not in found.dead_layers
    )

    stem = connectivity.analyse(network, without(dense, "conv/kernel"))
    assert stem.is_collapsed and stem.effective_density == 0 and stem.dead_outputs == 5


def test_channels_that_lead_nowhere_are_not_live():
    network = oracles.conv_bn(4, 4)
    mask = masks.create(jax.eval_shape(network.init, jax.random.key(0)))
    mask["Conv_1"]["kernel"] = mask["Conv_1"]["kernel"].at[:, :, 1:, :].set(False)
    found = connectivity.analyse(network, mask)
    live = {"Conv_0/kernel": 0.25, "Conv_1/kernel": 1.0, "Dense_0/kernel": 1.0}
    assert found.live_channels == live
    assert masks.num_kept(found.effective) == 9 * 2 + 9 * 4 + 4 * 3


def test_the_dense_network_is_all_alive_whatever_its_weights():
    """Max pooling, strides, a scale that starts at zero: still every weight is on a path."""

    class Zero(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.max_pool(nn.relu(nn.Conv(3, (3, 3))(x)), (2, 2), (2, 2))
            y = nn.BatchNorm(use_running_average=True, scale_init=nn.initializers.zeros)(
                nn.Conv(3, (3, 3), strides=2)(x)
            )
            return nn.Dense(2)(y.reshape(len(y), -1))

    network = nts.linen(Zero(), (9, 9, 1))
    dense = masks.create(jax.eval_shape(network.init, jax.random.key(0)))
    found = connectivity.analyse(network, dense)
    assert found.effective_density == 1.0 and not found.dead_layers and not found.is_collapsed


class Branches(nn.Module):
    """Depthwise and strided convolutions, padding, joins, a difference, maxima, two outputs."""

    positive: bool = False

    @nn.compact
    def __call__(self, x):
        sign = 1 if self.positive else -1
        longest = jnp.add if self.positive else jnp.maximum
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(6, (3, 3))(x)))
        y = nn.Conv(6, (3, 3), feature_group_count=6, strides=2)(x)
        y = nn.relu(nn.Conv(8, (1, 1))(y))
        z = jnp.pad(nn.avg_pool(x, (2, 2), (2, 2)), ((0, 0), (0, 0), (0, 0), (0, 2)))
        y = y + sign * z
        y = jnp.concatenate([y, sign * nn.Conv(3, (1, 1))(y)], axis=-1)
        y = longest(y, nn.Conv(11, (1, 1))(y))
        pooled = jnp.sum(y, axis=(1, 2)) if self.positive else jnp.max(y, axis=(1, 2))
        return {"a": nn.Dense(3)(pooled), "b": nn.Dense(2)(y.reshape(len(y), -1))}


def both_outputs(outputs):
    return jnp.concatenate([outputs["a"], outputs["b"]], axis=-1)


def test_branches_of_all_kinds():
    """Against the derivative of the same network with positive weights, signs and sums."""
    shape = (6, 6, 2)
    network, positive = (
        nts.linen(Branches(positive=p), shape, output_fn=both_outputs) for p in (False, True)
    )
    random = np.random.default_rng(0)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.float32(
            random.uniform(0.1, 1, leaf.shape) if path[-1].key != "bias" else np.zeros(leaf.shape)
        ),
        jax.eval_shape(network.init, jax.random.key(0)),
    )

    @jax.jit
    def derivative(weights):
        def total(weights):
            outputs = positive.apply_running(masks.merge(weights, params), jnp.ones((1, *shape)))
            return jnp.sum(outputs), outputs

        return jax.grad(total, has_aux=True)(weights)

    for density in (0.08, 0.08, 0.08, 0.2, 0.2, 0.2):
        mask = masks.map_prunable(
            lambda m, d=density: random.random(m.shape) < d, masks.create(params)
        )
        gradient, outputs = derivative(masks.map_prunable(lambda m, p: m * p, mask, params))
        want = masks.map_prunable(lambda m, g: m & (np.asarray(g) > 0), mask, gradient)
        found = connectivity.analyse(network, mask)
        assert masks.digest(found.effective) == masks.digest(want)
        assert found.dead_outputs == np.sum(np.asarray(outputs) == 0)


def in_a_scan(change):
    """Two layers in one kernel, each of which is changed before use."""

    def apply(params, x):
        turn = lambda x, kernel: (jax.nn.relu(x @ change(kernel)), None)  # noqa: E731
        return jax.lax.scan(turn, x, params["kernel"])[0]

    return nts.plain(lambda key: {"kernel": jnp.ones((2, 3, 3))}, apply, (3,))


def test_layers_in_a_scan():
    kernels = np.zeros((2, 3, 3), bool)
    kernels[0, 0, 1] = kernels[1, 1, 2] = kernels[1, 0, 0] = True  # The last one begins nowhere.
    found = connectivity.analyse(in_a_scan(lambda kernel: kernel), {"kernel": jnp.array(kernels)})
    kernels[1, 0, 0] = False
    np.testing.assert_array_equal(found.effective["kernel"], kernels)
    assert found.live_channels == pytest.approx({"kernel[0]": 1 / 3, "kernel[1]": 1 / 3})


def test_kernels_that_are_changed_before_use_are_refused():
    def apply(params, x):
        return x @ (params["kernel"] - params["kernel"].mean())

    network = nts.plain(lambda key: {"kernel": jnp.ones((3, 2))}, apply, (3,))
    with pytest.raises(ValueError, match="'reduce_sum' of the kernel 'kernel'.*as they are"):
        connectivity.analyse(network, {"kernel": jnp.ones((3, 2), bool)})
    network = in_a_scan(lambda kernel: kernel - kernel.mean())
    with pytest.raises(ValueError, match="'reduce_sum' of the kernel 'kernel'.*as they are"):
        connectivity.analyse(network, {"kernel": jnp.ones((2, 3, 3), bool)})


def test_a_mask_of_another_network():
    with pytest.raises(ValueError, match="mask: leaf"):
        connectivity.analyse(MLP, masks.create(oracles.conv_bn().init(jax.random.key(0))))
