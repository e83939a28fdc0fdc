"""Masks in jaxpruner's form, used as its code uses them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntksap_jax import exchange, masks


@st.composite
def params_and_masks(draw):
    sizes = st.lists(st.integers(1, 5), min_size=2, max_size=4).map(tuple)
    shapes = draw(st.lists(sizes, min_size=1, max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    params = [
        {"kernel": rng.normal(size=shape).astype(np.float32), "bias": np.ones(shape[-1])}
        for shape in shapes
    ]
    return params, [{"kernel": rng.random(shape) < 0.5, "bias": None} for shape in shapes]


@settings(max_examples=4)
@given(params_and_masks(), st.booleans())
def test_jaxpruner_keeps_the_same_weights_and_gives_back_the_same_mask(given_, is_packed):
    params, mask = given_
    theirs = exchange.to_jaxpruner(mask)
    assert {leaf.dtype for leaf in jax.tree.leaves(theirs)} == {jnp.dtype(jnp.uint8)}
    assert all(layer["bias"] is None for layer in theirs)
    # As its `apply_mask` does: the parameter where the mask is None, else their product.
    pruned = jax.tree.map(
        lambda m, p: p if m is None else p * m, theirs, params, is_leaf=lambda m: m is None
    )
    jax.tree.map(np.testing.assert_array_equal, pruned, masks.apply(mask, params))
    if is_packed:  # its `use_packed_masks`
        theirs = jax.tree.map(jnp.packbits, theirs)
    again = exchange.from_jaxpruner(theirs, like=params)
    assert masks.digest(again) == masks.digest(mask)
    masks.check(again, params)


@pytest.mark.parametrize(
    ("theirs", "match"),
    [
        ({"kernel": np.full((2, 3), 2, np.uint8), "bias": None}, "'kernel' has entries other than"),
        ({"kernel": np.ones((3, 2), np.uint8), "bias": None}, r"'kernel' has shape \(3, 2\)"),
        ({"kernel": np.ones((2, 3), np.uint8), "b": None}, "its tree differs from params"),
        ({"kernel": None, "bias": None}, "no prunable leaf"),
    ],
)
def test_masks_that_do_not_fit_are_errors(theirs, match):
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    with pytest.raises(ValueError, match=match):
        exchange.from_jaxpruner(theirs, like=params)


def test_numbers_are_no_mask():
    with pytest.raises(TypeError, match="'kernel' is float32"):
        exchange.to_jaxpruner({"kernel": jnp.ones((2, 3))})
