"""Random numbers: distributed as they should be, independent, the same for the same key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ntksap_jax import _draws

SIZE = 200_001


@pytest.fixture(scope="module")
def numbers():
    return np.asarray(_draws.normal(jax.random.key(3), (SIZE,)))


def test_normal_numbers_are_normal(numbers):
    assert stats.kstest(numbers, "norm").pvalue > 1e-3
    assert abs(stats.kurtosis(numbers)) < 6 * np.sqrt(24 / SIZE)
    # Tails: 200,001 draws reach four standard deviations and none is infinite.
    assert 4 < np.max(np.abs(numbers)) < 6.1


def test_the_two_words_of_a_block_are_independent(numbers):
    first, second = numbers[: SIZE // 2], numbers[-(SIZE // 2) :]
    for lag in range(-2, 3):
        correlation = np.corrcoef(first, np.roll(second, lag))[0, 1]
        assert abs(correlation) < 5 / np.sqrt(SIZE / 2)
    assert abs(np.corrcoef(first**2, second**2)[0, 1]) < 5 / np.sqrt(SIZE / 2)
    assert np.unique(numbers).size > 0.98 * SIZE


@pytest.mark.parametrize("shape", [(), (1,), (2,), (3,), (2, 3, 5), (0, 4)])
def test_shapes(shape):
    found = _draws.normal(jax.random.key(0), shape)
    assert found.shape == shape and found.dtype == jnp.float32


def test_same_key_same_numbers_in_jit_and_out_of_it():
    key = jax.random.key(1)
    alone = _draws.normal(key, (7, 3))
    np.testing.assert_allclose(jax.jit(lambda k: _draws.normal(k, (7, 3)))(key), alone, rtol=1e-6)
    legacy = _draws.normal(jax.random.PRNGKey(1), (7, 3))
    np.testing.assert_array_equal(legacy, alone)
    assert not np.allclose(_draws.normal(jax.random.key(2), (7, 3)), alone)


@pytest.mark.parametrize("impl", ["rbg", "threefry2x32"])
def test_other_generators_and_types_are_left_to_jax(impl):
    key = jax.random.key(0, impl=impl)
    half = _draws.normal(key, (4, 4), jnp.bfloat16)
    np.testing.assert_array_equal(half, jax.random.normal(key, (4, 4), jnp.bfloat16))
    if impl == "rbg":
        found = _draws.normal(key, (4, 4))
        np.testing.assert_array_equal(found, jax.random.normal(key, (4, 4)))
