"""Placement on several (simulated) devices does not change results beyond rounding."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ntksap_jax import _placement, criteria, masks, ntk, sharding

NUM_DEVICES = 4


@pytest.fixture(scope="module")
def mesh():
    return sharding.data_mesh(jax.devices()[:NUM_DEVICES])


def over(shards):
    return NamedSharding(sharding.data_mesh(jax.devices()[:shards]), PartitionSpec("data"))


def test_batches_are_split_and_trees_are_copied(mesh):
    batch = sharding.shard_batch({"x": jnp.arange(8.0), "y": jnp.arange(16).reshape(8, 2)}, mesh)
    assert [s.data.tolist() for s in batch["x"].addressable_shards] == [
        [0, 1], [2, 3], [4, 5], [6, 7],
    ]  # fmt: skip
    copies = sharding.replicate(jnp.arange(3), mesh).addressable_shards
    assert [c.data.tolist() for c in copies] == [[0, 1, 2]] * NUM_DEVICES


def test_a_batch_that_cannot_be_split_is_an_error(mesh):
    with pytest.raises(ValueError, match="a batch of 6 cannot be split over 4 devices"):
        sharding.shard_batch(jnp.ones((6, 2)), mesh)


NETWORK = oracles.conv_bn()
PARAMS = NETWORK.init(jax.random.key(0))


def test_scores_do_not_depend_on_where_the_batch_lies(mesh):
    """Batch statistics are those of the whole batch, wherever its parts are."""
    mask = masks.create(PARAMS)
    inputs = jax.random.normal(jax.random.key(1), (8, 6, 6, 2))
    score = criteria.ntk_sap(NETWORK, num_samples=2, batch_size=8, inputs="data", reinit=False)
    single, _ = score(jax.random.key(2), PARAMS, mask, (inputs, None))
    several, _ = score(
        jax.random.key(2),
        sharding.replicate(PARAMS, mesh),
        sharding.replicate(mask, mesh),
        (sharding.shard_batch(inputs, mesh), None),
    )
    single, several = oracles.flat(single), oracles.flat(several)
    assert np.linalg.norm(single - several) <= 1e-4 * np.linalg.norm(single)


# -- The samples of a score ------------------------------------------------------------------------


@functools.cache
def scores_on(**options):
    """Scores of one key, by placement: the flat scores and the trace."""
    score = criteria.ntk_sap(NETWORK, num_samples=6, batch_size=8, **options)
    scores, metrics = score(jax.random.key(1), PARAMS, masks.create(PARAMS), None)
    return oracles.flat(scores), float(metrics["trace"])


def over_samples_and_inputs():
    mesh = jax.make_mesh((2, 2), ("sample", "input"), axis_types=(AxisType.Auto,) * 2)
    return {f"shard_{name}s": NamedSharding(mesh, PartitionSpec(name)) for name in mesh.axis_names}


@pytest.mark.parametrize(
    ("placement", "estimator"),
    [
        pytest.param(lambda: {"shard_samples": over(4)}, ntk.jvp, id="more shards than some need"),
        pytest.param(lambda: {"shard_inputs": over(4)}, ntk.jvp, id="inputs"),
        pytest.param(over_samples_and_inputs, ntk.jvp, id="samples and inputs"),
        *(
            pytest.param(over_samples_and_inputs, e, marks=pytest.mark.long, id=e.__name__)
            for e in (ntk.finite_difference, ntk.vjp)
        ),
    ],
)
def test_scores_do_not_depend_on_the_devices(placement, estimator):
    """The same draws, so the same scores to rounding; a finite difference divides it by σ."""
    expected, expected_trace = scores_on(estimator=estimator)
    scores, trace = scores_on(**placement(), estimator=estimator)
    tolerance = 1e-4 if estimator is ntk.finite_difference else 1e-5
    assert np.linalg.norm(scores - expected) <= tolerance * np.linalg.norm(expected)
    assert trace == pytest.approx(expected_trace, rel=tolerance)


def test_each_shard_may_vectorise_its_samples():
    expected, _ = scores_on(estimator=ntk.jvp)
    scores, _ = scores_on(shard_samples=over(2), vmap_samples=3)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5 * expected.max())


def test_one_all_reduce_however_many_samples():
    score = criteria.ntk_sap(NETWORK, num_samples=11, batch_size=8, shard_samples=over(4))
    lowered = jax.jit(score).lower(jax.random.key(1), PARAMS, masks.create(PARAMS), None)
    text = lowered.compile().as_text()
    assert len(re.findall(r" all-reduce(?:-start)?\(", text)) == 1
    assert not re.findall(r" (?:all-gather|all-to-all|collective-permute)(?:-start)?\(", text)


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_sums_over_shards(count):
    total = _placement.sum_over(
        lambda item: {"square": item["x"] ** 2, "one": jnp.ones(())},
        {"x": jnp.arange(2.0 * count).reshape(count, 2)},
        over(4),
    )
    x = np.arange(2.0 * count).reshape(count, 2)
    np.testing.assert_array_equal(total["square"], (x**2).sum(axis=0))
    assert float(total["one"]) == count


@pytest.mark.parametrize("spec", [PartitionSpec(), PartitionSpec(None, "data")])
def test_a_sharding_that_does_not_split_the_items_is_an_error(mesh, spec):
    with pytest.raises(ValueError, match=r"sharding: got .* expected a PartitionSpec that splits"):
        _placement.sum_over(jnp.square, jnp.arange(4.0), NamedSharding(mesh, spec))
