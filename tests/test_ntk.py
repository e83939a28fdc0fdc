"""Trace estimators, against the dense Jacobian and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from ntksap_jax import masks, ntk
from ntksap_jax.criteria.ntk_sap import trace_and_gradient

# At this σ the finite difference of a smooth network is the directional derivative to 1e-3.
SMALL = 1e-3
ESTIMATORS = {
    "jvp": ntk.jvp,
    "vjp": ntk.vjp,
    "finite_difference": functools.partial(ntk.finite_difference, sigma=SMALL),
}
ALL = pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS.keys())


@pytest.fixture(scope="module")
def problem():
    """A smooth network, its inputs, and a function of its params alone."""
    network = oracles.smooth_mlp()
    params = network.init(jax.random.key(0))
    inputs = jax.random.normal(jax.random.key(1), (5, 4))
    return network, params, inputs, lambda p: network.apply(p, inputs)


def draws(estimator, fn, params, count):
    keys = jax.random.split(jax.random.key(7), count)
    return np.asarray(jax.jit(jax.vmap(lambda key: estimator(key, fn, params)))(keys))


@ALL
def test_mean_and_variance_over_draws(problem, estimator):
    """Mean tr Θ within four standard errors; variance 2 ‖Θ‖²_F, as for any Gaussian probe."""
    *_, params, _, fn = problem
    kernel = ntk.exact(fn, params)
    variance = 2 * jnp.sum(kernel**2)
    samples = draws(estimator, fn, params, count := 20_000)
    assert abs(samples.mean() - jnp.trace(kernel)) < 4 * np.sqrt(variance / count)
    np.testing.assert_allclose(samples.var(), variance, rtol=0.1)


def test_exact_kernel_is_the_dense_jacobian_contracted(problem):
    *_, params, _, fn = problem
    jacobian = np.concatenate(
        [np.asarray(j).reshape(15, -1) for j in jax.tree.leaves(jax.jacfwd(fn)(params))], axis=1
    )
    np.testing.assert_allclose(ntk.exact(fn, params), jacobian @ jacobian.T, rtol=1e-4, atol=1e-5)


def test_eigenvalues_descend_and_sum_to_the_trace(problem):
    *_, params, _, fn = problem
    kernel = ntk.exact(fn, params)
    values = np.asarray(ntk.eigenvalues(kernel))
    assert np.all(np.diff(values) <= 0)
    assert values[-1] > -1e-3
    np.testing.assert_allclose(values.sum(), jnp.trace(kernel), rtol=1e-5)


@ALL
def test_gradient_in_the_mask_agrees_with_that_of_the_exact_trace(problem, estimator):
    """For each mask entry the mean gradient of many draws lies within its own standard error."""
    network, params, inputs, _ = problem
    mask = oracles.random_mask(jax.random.key(2), params)
    relaxed = jax.tree.map(lambda m: m.astype(jnp.float32), mask)
    want = oracles.flat(
        jax.grad(lambda m: oracles.dense_trace(network, params, m, inputs))(relaxed)
    )

    def one(key):
        estimate = functools.partial(estimator, key)
        return trace_and_gradient(network, params, mask, inputs, estimate=estimate)[1]

    count = 8_000
    gradients = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(3), count))
    gradients = np.concatenate(
        [np.asarray(g).reshape(count, -1) for g in jax.tree.leaves(gradients)], axis=1
    )
    z = (gradients.mean(0) - want) / (gradients.std(0) / np.sqrt(count) + 1e-6)
    assert np.abs(z).max() < 4.5
    # The z-scores of an unbiased estimate are standard normal: a bias shows in their spread too.
    assert z.std() < 1.3


def test_trace_under_a_mask_agrees_with_the_dense_jacobian(problem):
    network, params, inputs, _ = problem
    mask = oracles.random_mask(jax.random.key(2), params)
    relaxed = jax.tree.map(lambda m: m.astype(jnp.float32), mask)

    def estimate(fn, weights):
        return jnp.trace(ntk.exact(fn, weights))

    trace, gradient = trace_and_gradient(network, params, mask, inputs, estimate=estimate)
    np.testing.assert_allclose(
        trace, oracles.dense_trace(network, params, relaxed, inputs), rtol=1e-5
    )
    want = jax.grad(lambda m: oracles.dense_trace(network, params, m, inputs))(relaxed)
    np.testing.assert_allclose(oracles.flat(gradient), oracles.flat(want), rtol=1e-3, atol=1e-4)


@ALL
def test_one_linear_layer_has_a_closed_form(estimator):
    """f(W) = x W with k outputs: Θ = (x xᵀ) ⊗ I, so tr Θ = k ‖x‖²; ∂/∂m_ij = 2 m_ij Σ_n x_ni²."""
    x = jax.random.normal(jax.random.key(0), (4, 3))
    weights = jax.random.normal(jax.random.key(1), (3, 2))
    np.testing.assert_allclose(
        ntk.exact(lambda w: x @ w, weights),
        np.kron(np.asarray(x @ x.T), np.eye(2)),
        atol=1e-5,
    )
    samples = draws(estimator, lambda w: x @ w, weights, count := 20_000)
    error = np.sqrt(2 * np.sum(np.kron(x @ x.T, np.eye(2)) ** 2) / count)
    assert abs(samples.mean() - 2 * np.sum(x**2)) < 4 * error

    def trace(mask):
        keys = jax.random.split(jax.random.key(5), count)
        return jnp.mean(jax.vmap(lambda k: estimator(k, lambda w: x @ (w * mask), weights))(keys))

    gradient = jax.jit(jax.grad(trace))(jnp.ones((3, 2)))
    want = np.repeat(2 * np.sum(x**2, axis=0)[:, None], 2, axis=1)
    np.testing.assert_allclose(gradient, want, rtol=0.1)


def test_finite_differences_converge_to_the_directional_derivative(problem):
    """The error falls like σ."""
    with jax.enable_x64():
        _, params, _, fn = problem
        network = oracles.smooth_mlp()
        params = jax.tree.map(lambda p: p.astype(jnp.float64), params)
        inputs = jax.random.normal(jax.random.key(1), (5, 4), jnp.float64)
        tangent = jax.tree.map(jnp.ones_like, params)
        fn = lambda p: network.apply(p, inputs)  # noqa: E731
        exact = ntk.tangent_norm(fn, params, tangent)

        errors = [
            abs(ntk.difference_norm(fn, params, tangent, sigma=sigma) - exact)
            for sigma in (2e-3, 1e-3)
        ]
        assert abs(np.log2(errors[0] / errors[1]) - 1) < 0.1


def test_cotangent_norm_is_the_norm_of_the_pulled_back_probe(problem):
    """Value and first derivative of the forward-over-reverse form equal those of ‖Jᵀu‖² itself."""
    *_, params, _, fn = problem
    probe = jax.random.normal(jax.random.key(4), (5, 3))

    def plain(scale):
        pulled = jax.vjp(lambda p: fn(jax.tree.map(lambda x: x * scale, p)), params)[1](probe)[0]
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(pulled))

    def ours(scale):
        return ntk.cotangent_norm(lambda p: fn(jax.tree.map(lambda x: x * scale, p)), params, probe)

    for got, want in zip(
        jax.value_and_grad(ours)(1.3), jax.value_and_grad(plain)(1.3), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-4)


def test_zero_outputs_have_zero_gradient():
    """A sum of squares has a gradient where a norm has none: a cut-off network scores 0."""
    weights = jnp.ones((3, 2))
    for estimator in ESTIMATORS.values():
        gradient = jax.grad(
            lambda m, e=estimator: e(
                jax.random.key(0), lambda w: jnp.zeros((4, 3)) @ (w * m), weights
            )
        )(jnp.ones((3, 2)))
        np.testing.assert_array_equal(gradient, 0)


def test_pytrees_of_outputs(problem):
    *_, params, _, fn = problem
    both = lambda p: {"a": fn(p), "b": [2 * fn(p)]}  # noqa: E731
    exact = jnp.trace(ntk.exact(fn, params))
    samples = draws(ntk.vjp, both, params, 4000)
    np.testing.assert_allclose(samples.mean(), 5 * exact, rtol=0.1)


def test_masks_keep_probes_off_pruned_and_unprunable_weights(problem):
    """With everything pruned but one entry, the trace is that entry's share alone."""
    network, params, inputs, _ = problem
    mask = jax.tree.map(jnp.zeros_like, masks.create(params))
    mask["Dense_1"]["kernel"] = mask["Dense_1"]["kernel"].at[2, 1].set(True)
    trace, _ = trace_and_gradient(
        network,
        params,
        mask,
        inputs,
        estimate=lambda fn, w: jnp.trace(ntk.exact(fn, w)),
    )
    # The first layer is pruned, so its activations are tanh(bias) = 0: the outputs feel nothing.
    np.testing.assert_allclose(trace, 0, atol=1e-9)
