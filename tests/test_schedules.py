"""Schedules: end points, shapes of the curves, errors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntksap_jax import schedules

BOTH = pytest.mark.parametrize("make", [schedules.exponential, schedules.linear])


@BOTH
@given(density=st.floats(1e-6, 1.0), rounds=st.integers(1, 200))
def test_schedules_fall_to_exactly_the_density(make, density, rounds):
    schedule = schedules.check(make(density, rounds=rounds))
    assert len(schedule) == rounds
    assert schedule[-1] == density
    assert np.all(schedule <= 1.0)


@given(density=st.floats(1e-6, 0.9), rounds=st.integers(2, 50))
def test_shapes(density, rounds):
    kept = np.concatenate([[1.0], schedules.exponential(density, rounds=rounds)])
    np.testing.assert_allclose(kept[1:] / kept[:-1], density ** (1 / rounds))
    kept = np.concatenate([[1.0], schedules.linear(density, rounds=rounds)])
    np.testing.assert_allclose(np.diff(kept), -(1 - density) / rounds)


@BOTH
@pytest.mark.parametrize("density", [0, -1, 1.5, float("nan")])
def test_density_errors(make, density):
    with pytest.raises(ValueError, match="density: got"):
        make(density, rounds=3)


@BOTH
def test_rounds_errors(make):
    with pytest.raises(ValueError, match="rounds: got 0"):
        make(0.5, rounds=0)


@BOTH
def test_rounds_type_errors(make):
    with pytest.raises(TypeError, match="rounds: got 2.5"):
        make(0.5, rounds=2.5)


@pytest.mark.parametrize("schedule", [[], 0.5, [[0.5]], [0.5, 0.0], [1.5], [0.5, 0.6]])
def test_check_rejects_what_no_search_can_follow(schedule):
    with pytest.raises(ValueError, match="schedule: got"):
        schedules.check(schedule)
