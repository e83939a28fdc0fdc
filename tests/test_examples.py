"""The examples, at a tiny size: what they prune stays pruned, what they train learns."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntksap_jax as nts
from experiments.examples import language_model, physics, pretrained, shared, vision_transformer
from ntksap_jax import criteria, masks, ntk


@pytest.fixture(autouse=True, scope="module")
def compile_quickly():
    """Networks of a few weights take hundreds of times longer to compile than to run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def check(runs, density):
    """What holds of every example: exact counts, zeros where pruned, a loss that falls."""
    for run in runs:
        num_prunable = masks.num_prunable(run.mask)
        kept = num_prunable if run.method == "dense" else round(density * num_prunable)
        assert masks.num_kept(run.mask) == kept, run.method
        leaves = masks.leaf_paths(run.params)
        for path, mask in masks.leaf_paths(run.mask).items():
            weights, mask = np.asarray(leaves[path]), np.asarray(mask)
            assert np.all(weights[~mask] == 0), (run.method, path)
            assert np.all(weights[mask] != 0), (run.method, path)
        fifth = len(run.losses) // 5
        assert np.mean(run.losses[-fifth:]) < np.mean(run.losses[:fifth]), run.method
    pruned = [run for run in runs if run.method != "dense"]
    for one, other in itertools.combinations(pruned, 2):
        assert masks.digest(one.mask) != masks.digest(other.mask), (one.method, other.method)
    return {run.method: run for run in runs}


# -- Physics ---------------------------------------------------------------------------------------


@pytest.mark.long
def test_physics(capsys):
    runs = physics.main(
        width=16, depth=1, density=0.5, rounds=2, steps=500, num_points=40, seeds=(0, 1)
    )
    check(runs, 0.5)
    assert [run.method for run in runs[:4]] == [run.method for run in runs[4:]]
    assert all(0 < run.results["error"] < 10 for run in runs)
    assert "NTK of u" in capsys.readouterr().out


def test_the_solution_solves_the_equation_and_points_lie_where_they_should():
    point = jnp.array([0.3, 0.8])
    x, y = np.pi * point
    expected = -5 * np.pi**2 * np.sin(x) * np.sin(2 * y)
    laplacian = jax.jit(lambda point: physics.laplacian(physics.solution, point))
    np.testing.assert_allclose(laplacian(point), expected, rtol=1e-4)
    points = jax.jit(physics.draw_points, static_argnums=1)(jax.random.key(0), 500)
    inside, boundary = points[:400], points[400:]
    assert np.all((inside > 0) & (inside < 1))
    on_a_side = (boundary == 0) | (boundary == 1)
    assert np.all(on_a_side.any(axis=1))
    assert np.all(on_a_side.any(axis=0))  # of both directions


def test_physics_prunes_by_the_kernel_of_the_residual():
    """Trace and scores against those of the dense Jacobian of r, written out anew."""
    network = physics.make_network(4, 1)
    params = jax.jit(network.init)(jax.random.key(0))
    points = jax.jit(physics.draw_points, static_argnums=1)(jax.random.key(1), 10)
    random = np.random.default_rng(2)
    mask = jax.tree.map(lambda m: random.random(m.shape) < 0.7, masks.create(params))

    def u(kernels, biases, point):
        hidden = jnp.tanh((2 * point - 1) @ kernels[0] + biases[0])
        return (hidden @ kernels[1] + biases[1])[0]

    def residual(kernels):
        biases = [params[f"Dense_{i}"]["bias"] for i in range(2)]

        def equation(point):
            return jnp.trace(jax.jacrev(jax.jacrev(lambda p: u(kernels, biases, p)))(point))

        inside = jax.vmap(equation)(points[:8]) / np.sqrt(8)
        around = jax.vmap(lambda p: u(kernels, biases, p))(points[8:])
        return jnp.concatenate([inside, np.sqrt(physics.BOUNDARY_WEIGHT / 2) * around])

    def trace(relaxed):
        kernels = [params[f"Dense_{i}"]["kernel"] for i in range(2)]
        jacobian = jax.jacrev(residual)([k * m for k, m in zip(kernels, relaxed, strict=True)])
        return sum(jnp.sum((j * m) ** 2) for j, m in zip(jacobian, relaxed, strict=True))

    relaxed = [mask[f"Dense_{i}"]["kernel"].astype(jnp.float32) for i in range(2)]
    expected, gradient = jax.jit(jax.value_and_grad(trace))(relaxed)

    score = criteria.ntk_sap(
        network,
        estimator=lambda key, fn, params: jnp.trace(ntk.exact(fn, params)),
        num_samples=1,
        reinit=False,
        inputs="data",
        output_fn=physics.residual,
    )
    scores, metrics = jax.jit(score)(jax.random.key(3), params, mask, (points, None))
    np.testing.assert_allclose(metrics["trace"], expected, rtol=1e-4)
    for i in range(2):
        wanted = np.abs(gradient[i]) * relaxed[i]
        found = scores[f"Dense_{i}"]["kernel"]
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


# -- Language model --------------------------------------------------------------------------------

SMALL_LM = {"length": 8, "features": 8, "depth": 1, "num_heads": 2}


@pytest.mark.long
def test_language_model(capsys):
    runs = language_model.main(
        **SMALL_LM, density=0.5, rounds=2, num_samples=1, score_size=4, steps=60, test_windows=32
    )
    by_method = check(runs, 0.5)
    assert by_method["dense"].results["nats"] < np.log(language_model.VOCABULARY) - 0.5
    printed = capsys.readouterr().out
    assert all(f"{run.results['nats']:.3f}" in printed for run in runs)


def test_the_text_is_all_there_and_its_end_is_kept_for_testing():
    train, test = language_model.read_text()
    assert len(train) > 8 * len(test) > 100_000
    assert int(train.min()) >= 0
    assert int(train.max()) < language_model.VOCABULARY
    text = bytes(np.asarray(train).tolist()).decode()
    assert 'The "assert" statement' in text
    windows = language_model.draw_windows(jax.random.key(0), train, 3, 20)
    assert all(bytes(window.tolist()).decode() in text for window in np.asarray(windows))


def test_no_character_sees_the_next_and_noise_goes_in_behind_the_embedding():
    model = language_model.LanguageModel(8, 1, 2)
    network = nts.linen(model, (6,), dtype=jnp.int32)
    params = jax.jit(network.init)(jax.random.key(0))
    characters = jax.random.randint(jax.random.key(1), (2, 6), 0, language_model.VOCABULARY)
    apply = jax.jit(network.apply)
    logits = apply(params, characters)
    changed = apply(params, characters.at[:, 3].add(1) % language_model.VOCABULARY)
    np.testing.assert_array_equal(logits[:, :3], changed[:, :3])
    assert not np.allclose(logits[:, 3:], changed[:, 3:])
    embedded = params["characters"]["embedding"][characters]
    np.testing.assert_allclose(apply(params, embedded), logits, rtol=1e-5, atol=1e-6)


# -- Vision transformer ----------------------------------------------------------------------------

SMALL_VIT = {"patch_size": 8, "features": 8, "depth": 1, "num_heads": 2}


@pytest.mark.long
def test_vision_transformer(capsys):
    runs = vision_transformer.main(
        **SMALL_VIT, density=0.5, rounds=2, num_samples=1, score_size=4, steps=60, batch_size=32
    )
    by_method = check(runs, 0.5)
    assert by_method["dense"].results["accuracy"] > 0.2
    assert {"ERK", "NTK-SAP", "balanced", "NTK-SAP by layer"} < by_method.keys()
    shown = capsys.readouterr().out
    assert all(f"{run.results['accuracy']:.1%}" in shown for run in runs)


def test_every_prunable_weight_has_one_role_and_attention_kernels_have_three_axes():
    model = vision_transformer.VisionTransformer(10, **SMALL_VIT)
    params = jax.eval_shape(nts.linen(model, (32, 32, 1)).init, jax.random.key(0))
    mask = masks.create(params)
    for path, leaf in masks.leaf_paths(mask).items():
        roles = vision_transformer.ROLES.values()
        assert sum(bool(re.search(pattern, path)) for pattern in roles) == 1, path
        assert leaf.ndim == (3 if "attention" in path else leaf.ndim), path
        assert shared.density_of(f"^{path}$", mask) == 1.0


# -- Pretrained ------------------------------------------------------------------------------------


@pytest.mark.long
def test_pretrained(capsys):
    runs = pretrained.main(
        channels=(8, 16), density=0.5, rounds=2, num_samples=1, per_class=2, steps=60
    )
    by_method = check(runs, 0.5)
    dense = by_method["dense"].results
    assert dense["trained on"] > 0.4
    # Nothing was pruned, so averages measured anew change little.
    assert dense["averages anew"] == pytest.approx(dense["just pruned"], abs=0.1)
    assert f"{by_method['magnitude'].results['just pruned']:.1%}" in capsys.readouterr().out
