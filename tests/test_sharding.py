"""Placement on several (simulated) devices does not change results beyond rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from ntksap_jax import criteria, masks, sharding

NUM_DEVICES = 4


@pytest.fixture(scope="module")
def mesh():
    assert jax.device_count() == NUM_DEVICES  # set in conftest.py
    return sharding.data_mesh()


def test_batches_are_split_and_trees_are_copied(mesh):
    batch = sharding.shard_batch({"x": jnp.arange(8.0), "y": jnp.arange(16).reshape(8, 2)}, mesh)
    assert [s.data.tolist() for s in batch["x"].addressable_shards] == [
        [0, 1], [2, 3], [4, 5], [6, 7],
    ]  # fmt: skip
    copies = sharding.replicate(jnp.arange(3), mesh).addressable_shards
    assert [c.data.tolist() for c in copies] == [[0, 1, 2]] * NUM_DEVICES


def test_a_mesh_of_some_devices():
    assert sharding.data_mesh(jax.devices()[:2]).size == 2


def test_a_batch_that_cannot_be_split_is_an_error(mesh):
    with pytest.raises(ValueError, match="a batch of 6 cannot be split over 4 devices"):
        sharding.shard_batch(jnp.ones((6, 2)), mesh)


def test_scores_do_not_depend_on_where_the_batch_lies(mesh):
    """Batch statistics are those of the whole batch, wherever its parts are."""
    network = oracles.conv_bn()
    params = network.init(jax.random.key(0))
    mask = masks.create(params)
    inputs = jax.random.normal(jax.random.key(1), (8, 6, 6, 2))
    score = criteria.ntk_sap(network, num_samples=2, batch_size=8, inputs="data")
    single, _ = score(jax.random.key(2), params, mask, (inputs, None))
    several, _ = score(
        jax.random.key(2),
        sharding.replicate(params, mesh),
        sharding.replicate(mask, mesh),
        (sharding.shard_batch(inputs, mesh), None),
    )
    single, several = oracles.flat(single), oracles.flat(several)
    assert np.linalg.norm(single - several) <= 1e-4 * np.linalg.norm(single)
