"""Masks: roles, structure, application, measures and files."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from ntksap_jax import masks

PARAMS = {
    "conv": {"kernel": jnp.ones((3, 3, 1, 4)), "bias": jnp.zeros(4)},
    "bn": {"scale": jnp.ones(4), "bias": jnp.zeros(4)},
    "embed": {"embedding": jnp.ones((7, 4))},
    "head": {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)},
}


def random_mask(key, params=PARAMS):
    return oracles.random_mask(key, params, 0.5)


def test_kernels_are_prunable_and_nothing_else():
    assert list(masks.leaf_paths(masks.create(PARAMS))) == ["conv/kernel", "head/kernel"]


def test_patterns_override_roles():
    assert list(masks.leaf_paths(masks.create(PARAMS, include="embedding$"))) == ["embed/embedding"]
    assert list(masks.leaf_paths(masks.create(PARAMS, exclude=["^head/"]))) == ["conv/kernel"]
    both = masks.create(PARAMS, include=["kernel", "embed"], exclude="conv")
    assert list(masks.leaf_paths(both)) == ["embed/embedding", "head/kernel"]


def test_what_leaves_nothing_to_prune_is_an_error_that_lists_the_paths():
    for argument in ("include", "exclude"):
        match = rf"{argument}: pattern 'hed' matches no leaf.*head/kernel"
        with pytest.raises(ValueError, match=match):
            masks.create(PARAMS, **{argument: ["kernel", "hed"]})
    with pytest.raises(ValueError, match=r"no leaf is left to prune.*include=.*layers/0"):
        masks.create({"layers": [jnp.ones((2, 2))]})


def test_lists_tuples_and_abstract_params_work():
    params = ({"w": jax.ShapeDtypeStruct((2, 3), jnp.float32)}, [{"w": jnp.ones((3, 1))}])
    mask = masks.create(params)
    assert list(masks.leaf_paths(mask)) == ["0/w", "1/0/w"]
    assert masks.num_prunable(mask) == masks.num_kept(mask) == 9


def test_apply_zeroes_exactly_the_pruned_weights_even_if_nan():
    mask = random_mask(jax.random.key(1))
    params = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), PARAMS)
    params["head"]["bias"] = jnp.array([5.0, 6.0])
    result = masks.apply(mask, params)
    np.testing.assert_array_equal(jnp.isnan(result["conv"]["kernel"]), mask["conv"]["kernel"])
    np.testing.assert_array_equal(result["head"]["bias"], [5.0, 6.0])


def test_a_relaxed_mask_multiplies_and_is_differentiable():
    relaxed = {"kernel": jnp.array([0.5, 2.0]), "bias": None}
    params = {"kernel": jnp.array([3.0, 5.0]), "bias": jnp.ones(1)}
    np.testing.assert_array_equal(masks.apply(relaxed, params)["kernel"], [1.5, 10.0])
    gradient = jax.grad(lambda m: jnp.sum(masks.apply(m, params)["kernel"] ** 2))(relaxed)
    np.testing.assert_allclose(gradient["kernel"], [2 * 0.5 * 9, 2 * 2 * 25])
    assert gradient["bias"] is None


def test_measures_agree_with_numpy():
    mask = random_mask(jax.random.key(2))
    leaves = {path: np.asarray(leaf) for path, leaf in masks.leaf_paths(mask).items()}
    kept, total = sum(m.sum() for m in leaves.values()), sum(m.size for m in leaves.values())
    assert (masks.num_kept(mask), masks.num_prunable(mask)) == (kept, total)
    assert masks.density(mask) == kept / total
    assert masks.layer_densities(mask) == {p: pytest.approx(m.mean()) for p, m in leaves.items()}


shuffle = jax.jit(masks.shuffle)


def test_shuffling_moves_weights_and_keeps_the_count_of_every_leaf():
    mask = random_mask(jax.random.key(2))
    before = masks.digest(mask)
    shuffled = shuffle(jax.random.key(3), mask)
    masks.check(shuffled, PARAMS)
    with pytest.raises(TypeError, match="expected one PRNG key"):
        masks.shuffle(0, mask)
    for leaf, new in zip(jax.tree.leaves(mask), jax.tree.leaves(shuffled), strict=True):
        assert np.sum(leaf) == np.sum(new)
    assert len({before, masks.digest(shuffled)}) == 2
    assert masks.digest(shuffle(jax.random.key(4), mask)) != masks.digest(shuffled)
    assert masks.digest(mask) == before
    eager = masks.shuffle(jax.random.key(3), mask)
    assert masks.digest(eager) == masks.digest(shuffled)


def test_shuffling_is_uniform_over_positions_and_over_leaves():
    """Kept share of each place, and of each pair of places, over many shuffles: within 5 sigma."""
    mask = {"a": {"w": jnp.arange(10) < 3}, "b": {"w": jnp.arange(10) < 3}}
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.jit(jax.vmap(masks.shuffle, (0, None)))(keys, mask)
    places = np.concatenate([drawn["a"]["w"], drawn["b"]["w"]], axis=1).astype(float)
    together = places.T @ places / len(keys)
    want = np.full((20, 20), 0.3 * 0.3)  # the leaves are shuffled independently of each other
    want[:10, :10] = want[10:, 10:] = 3 / 10 * 2 / 9
    np.fill_diagonal(want, 0.3)
    np.testing.assert_array_less(
        np.abs(together - want), 5 * np.sqrt(want * (1 - want) / len(keys))
    )


def replaced(path, leaf):
    """The dense mask of PARAMS with another leaf at `path`."""
    mask = masks.create(PARAMS)
    module, name = path.split("/")
    return mask | {module: mask[module] | {name: leaf}}


@pytest.mark.parametrize(
    ("mask", "error", "match"),
    [
        (replaced("head/kernel", jnp.ones((2, 4), bool)), ValueError, r"'head/kernel' has shape"),
        (replaced("head/kernel", jnp.ones((4, 2))), TypeError, r"'head/kernel' is float32"),
        (replaced("head/extra", jnp.ones(2, bool)), ValueError, r"'head/extra' does not exist"),
        ({k: v for k, v in masks.create(PARAMS).items() if k != "bn"}, ValueError, r"bn/scale"),
        (jax.tree.map(lambda p: None, PARAMS), ValueError, r"no prunable leaf"),
    ],
)
def test_a_mask_that_does_not_fit_is_an_error_that_names_the_leaf(mask, error, match):
    with pytest.raises(error, match=match):
        masks.check(mask, PARAMS)


def test_digest_feels_every_bit_path_and_shape():
    leaves = ([True, False], [False, True], [[True, False]], [True, False, False])
    different = [*({"w": jnp.array(leaf)} for leaf in leaves), {"v": jnp.array(leaves[0])}]
    assert len(set(map(masks.digest, different))) == 5
