"""Exact selection, against a stable sort in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ntksap_jax import masks, selection

keep_top = jax.jit(selection.keep_top)

# Few distinct values make ties; the others reach into both tails, subnormal numbers and zeros.
VALUES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 1.0, 2.0, -1.0]),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)


def oracle(scores, mask, count):
    """Keeps the `count` best kept entries of a flat array, earlier ones first among equals."""
    order = [i for i in np.argsort(-scores, kind="stable") if mask[i]]
    new = np.zeros_like(mask)
    new[order[:count]] = True
    return new


@st.composite
def problems(draw):
    """Scores and a mask over two leaves, and how many to keep."""
    scores = draw(hnp.arrays(np.float32, 11, elements=VALUES))
    mask = draw(hnp.arrays(bool, 11, elements=st.booleans()))
    return scores, mask, draw(st.integers(0, 11))


def split(flat):
    return {"a": jnp.asarray(flat[:5]), "b": {"c": jnp.asarray(flat[5:]).reshape(2, 3), "d": None}}


def join(tree):
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])


@given(problems())
def test_global_selection_is_a_stable_sort(problem):
    scores, mask, count = problem
    new, threshold = keep_top(split(scores), split(mask), count)
    want = oracle(scores, mask, count)
    np.testing.assert_array_equal(join(new), want)
    assert threshold == (scores[want].min() if want.any() else np.inf)


@given(problems(), st.integers(0, 5), st.integers(0, 6))
def test_layer_selection_is_a_stable_sort_in_each_layer(problem, count_a, count_c):
    scores, mask, _ = problem
    counts = {"a": count_a, "b": {"c": count_c, "d": None}}
    new, _ = keep_top(split(scores), split(mask), counts)
    want = [oracle(scores[:5], mask[:5], count_a), oracle(scores[5:], mask[5:], count_c)]
    np.testing.assert_array_equal(join(new), np.concatenate(want))


@given(problems(), st.floats(0.05, 1.0))
def test_count_is_exact_and_masks_only_shrink(problem, density):
    scores, mask, _ = problem
    count = selection.kept_counts(split(mask), density)
    assert count == round(density * 11)
    new = join(keep_top(split(scores), split(mask), count)[0])
    assert new.sum() == min(count, mask.sum())
    assert not np.any(new & ~mask)


@given(problems())
def test_selecting_in_steps_is_selecting_at_once(problem):
    scores, mask, count = problem
    halfway, _ = keep_top(split(scores), split(mask), (11 + count) // 2)
    twice, _ = keep_top(split(scores), halfway, count)
    once, _ = keep_top(split(scores), split(mask), count)
    np.testing.assert_array_equal(join(twice), join(once))


def test_ties_go_by_position_across_leaves():
    scores = {"a": jnp.ones(4), "b": jnp.ones((2, 2))}
    new, _ = keep_top(scores, masks.create(scores, include="."), 6)
    assert new["a"].tolist() == [True] * 4
    assert new["b"].tolist() == [[True, True], [False, False]]


def test_large_arrays_are_exact():
    """Beyond 2^16 entries, with many ties: where a float count or threshold would be off."""
    scores = jnp.floor(jax.random.uniform(jax.random.key(0), (300_000,)) * 1000)
    new, _ = keep_top([scores], [jnp.ones(scores.shape, bool)], 123_457)
    want = oracle(np.asarray(scores), np.ones(scores.shape, bool), 123_457)
    np.testing.assert_array_equal(new[0], want)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_dtypes(dtype):
    with jax.enable_x64(dtype == "float64"):
        # These two differ in float64 only.
        scores = jnp.array([1.0, 1.0 + 1e-12, -3.0], dtype)
        new, threshold = selection.keep_top([scores], [jnp.ones(3, bool)], 1)
        best = 1 if dtype == "float64" else 0
        assert np.flatnonzero(new[0]).tolist() == [best]
        assert float(threshold) == float(scores[best])


def test_nan_ranks_lowest_and_infinity_highest():
    scores = [jnp.array([jnp.nan, -jnp.inf, 0.0, jnp.inf])]
    kept = [keep_top(scores, [jnp.ones(4, bool)], count)[0][0].tolist() for count in (1, 2, 3)]
    assert [np.flatnonzero(k).tolist() for k in kept] == [[3], [2, 3], [1, 2, 3]]


@pytest.mark.parametrize("density", [0.0, -0.1, 1.01, float("nan")])
def test_density_outside_the_unit_interval_is_an_error(density):
    with pytest.raises(ValueError, match=r"density: .*\(0, 1\]"):
        selection.kept_counts([jnp.ones(10, bool)], density)


def test_a_density_that_keeps_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"rounds to none.*density >= 0.1"):
        selection.kept_counts([jnp.ones(10, bool)], 0.04)


def test_an_unknown_scope_is_an_error():
    with pytest.raises(ValueError, match="scope: got 'locally'"):
        selection.kept_counts([jnp.ones(10, bool)], 0.5, scope="locally")


def test_a_density_above_what_is_left_is_an_error():
    mask = [jnp.arange(10) < 3]
    with pytest.raises(ValueError, match="asks for 5 weights to be kept, but the mask has only 3"):
        selection.select([jnp.ones(10)], mask, density=0.5)


def test_a_density_in_place_of_counts_is_an_error():
    with pytest.raises(TypeError, match="counts: got 0.5, expected numbers of weights"):
        selection.keep_top([jnp.ones(10)], [jnp.ones(10, bool)], 0.5)


DENSE = {"a": jnp.ones(3, bool), "b": jnp.ones(2, bool)}


@pytest.mark.parametrize(
    ("scores", "match"),
    [
        ({"a": jnp.array([1.0, jnp.nan, jnp.inf]), "b": jnp.ones(2)}, "2 of 3 entries of leaf 'a'"),
        ({"a": jnp.ones(3), "b": jnp.zeros(2)}, "all zero in leaf 'b'"),
        ({"a": jnp.zeros(3), "b": jnp.zeros(2)}, "all zero in leaf 'a'"),
        ({"a": jnp.ones(3), "b": jnp.ones(3)}, r"leaf 'b' has shape \(3,\), the mask \(2,\)"),
        ({"a": jnp.ones(3)}, "leaf 'b' has shape None"),
    ],
)
def test_useless_scores_are_errors_that_name_the_leaf(scores, match):
    with pytest.raises(ValueError, match=match):
        selection.select(scores, DENSE, density=0.5)


def test_a_layer_that_earlier_rounds_cut_off_may_score_zero():
    mask = {"a": jnp.ones(3, bool), "b": jnp.array([True, False])}
    new = selection.select({"a": jnp.ones(3), "b": jnp.zeros(2)}, mask, density=0.6)
    assert masks.layer_densities(new) == {"a": 1.0, "b": 0.0}
