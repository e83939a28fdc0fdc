"""Exported programs compute what the pruned network computes, for any batch, on any platform."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import ntksap_jax as nts
from ntksap_jax import exchange, masks, models

SHAPE = (6, 6, 3)


@functools.cache
def pruned_network():
    model = models.ResNet(blocks=(1,), width=4, num_classes=3)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *SHAPE)))
    stats = jax.tree.map(lambda leaf: leaf + 0.3, variables["batch_stats"])
    network = nts.linen(model, SHAPE, batch_stats=stats, train=False)
    return network, variables["params"], random_mask(variables["params"])


def random_mask(params):
    return oracles.random_mask(jax.random.key(0), params, 0.5)


def images(size, shape=SHAPE):
    return np.random.default_rng(1).normal(size=(size, *shape)).astype(np.float32)


@functools.cache
def wanted(size):
    """What the pruned network computes."""
    network, params, mask = pruned_network()
    return jax.jit(network.apply_running)(masks.apply(mask, params), images(size))


def assert_same(exported, wanted):
    """To the rounding of another compilation."""
    np.testing.assert_allclose(exported, wanted, rtol=1e-5, atol=1e-5)


def test_with_its_weights_in_it():
    network, params, mask = pruned_network()
    exported = exchange.export(network, params, mask=mask)
    for size in (2, 5):
        assert_same(exported.call(images(size)), wanted(size))


def test_with_its_weights_as_an_argument_the_mask_still_holds():
    network, params, mask = pruned_network()
    exported = exchange.export(network, mask=mask)
    assert_same(exported.call(params, images(2)), wanted(2))
    dense = exchange.export(network).call(params, images(2))
    assert_same(dense, jax.jit(network.apply_running)(params, images(2)))
    assert np.max(np.abs(dense - wanted(2))) > 1e-2


def test_serialised_for_cpu_and_tpu_and_loaded_again():
    pytest.importorskip("flatbuffers", reason="needs flatbuffers: pip install '.[exchange]'")
    network, params, mask = pruned_network()
    exported = exchange.export(network, params, mask=mask, platforms=("cpu", "tpu"))
    again = jax.export.deserialize(exported.serialize())
    assert again.platforms == ("cpu", "tpu")
    assert_same(jax.jit(again.call)(images(2)), wanted(2))


def test_each_platform_gets_its_own_convolution():
    """On CPU a 1x1 kernel with strides is a subsampling first; elsewhere the convolution has it."""
    model = nn.Conv(2, (1, 1), strides=(2, 2))
    network = nts.linen(model, SHAPE)
    params = network.init(jax.random.key(0))
    programs = {
        platform: exchange.export(network, params, platforms=[platform]).mlir_module()
        for platform in ("cpu", "tpu", "cuda")
    }
    assert {platform: "slice" in text for platform, text in programs.items()} == {
        **{"cpu": True, "tpu": False, "cuda": False}
    }
    both = exchange.export(network, params, platforms=("cpu", "tpu")).mlir_module()
    assert "stablehlo.case" in both


@pytest.mark.parametrize("platforms", [("cpu",), ("cpu", "tpu")])
def test_images_smaller_than_the_kernel(platforms):
    """There the convolution on CPU is a sum over the kernel's taps."""
    network = nts.linen(nn.Conv(6, (5, 5), feature_group_count=3), (2, 2, 3))
    params = network.init(jax.random.key(0))
    mask = random_mask(params)
    exported = exchange.export(network, params, mask=mask, platforms=platforms)
    x = images(4, (2, 2, 3))
    assert_same(exported.call(x), jax.jit(network.apply_running)(masks.apply(mask, params), x))


def test_other_networks_than_linens():
    network = nts.plain(lambda key: {"w": jnp.ones((3, 2))}, lambda p, x: x @ p["w"], (3,))
    params = network.init(jax.random.key(0))
    assert_same(
        exchange.export(network, params).call(np.ones((4, 3), np.float32)), np.full((4, 2), 3)
    )


def test_a_mask_of_other_params_is_an_error():
    network, params, mask = pruned_network()
    wrong = mask | {"fc": mask["fc"] | {"kernel": jnp.ones((2, 2), bool)}}
    for given in (params, None):
        with pytest.raises(ValueError, match="'fc/kernel' has shape"):
            exchange.export(network, given, mask=wrong)
