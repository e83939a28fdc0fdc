"""Trace estimators, against the dense Jacobian and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from ntksap_jax import ntk
from ntksap_jax.criteria.ntk_sap import trace_and_gradient

# At this σ the finite difference of a smooth network is the directional derivative to 1e-3.
SMALL = 1e-3
ESTIMATORS = {
    "jvp": ntk.jvp,
    "vjp": ntk.vjp,
    "finite_difference": functools.partial(ntk.finite_difference, sigma=SMALL),
}
ALL = pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS.keys())


NETWORK = oracles.smooth_mlp()
PARAMS = NETWORK.init(jax.random.key(0))
INPUTS = jax.random.normal(jax.random.key(1), (5, 4))
MASK = oracles.random_mask(jax.random.key(2), PARAMS)
RELAXED = jax.tree.map(lambda m: m.astype(jnp.float32), MASK)


def fn(params):
    return NETWORK.apply(params, INPUTS)


def exact_trace(fn, params):
    return jnp.trace(ntk.exact(fn, params))


@functools.cache
def dense_trace_and_gradient():
    """Of the masked network, through its dense Jacobian."""
    trace = lambda relaxed: oracles.dense_trace(NETWORK, PARAMS, relaxed, INPUTS)  # noqa: E731
    return tuple(map(oracles.flat, jax.jit(jax.value_and_grad(trace))(RELAXED)))


@functools.cache
def exact_kernel():
    return jax.jit(functools.partial(ntk.exact, fn))(PARAMS)


def draws(estimator, fn, params, count):
    keys = jax.random.split(jax.random.key(7), count)
    return np.asarray(jax.jit(jax.vmap(lambda key: estimator(key, fn, params)))(keys))


@ALL
def test_mean_and_variance_over_draws(estimator):
    """Mean tr Θ within four standard errors; variance 2 ‖Θ‖²_F, as for any Gaussian probe."""
    kernel = np.asarray(exact_kernel())
    variance = 2 * np.sum(kernel**2)
    samples = draws(estimator, fn, PARAMS, count := 20_000)
    assert abs(samples.mean() - np.trace(kernel)) < 4 * np.sqrt(variance / count)
    np.testing.assert_allclose(samples.var(), variance, rtol=0.1)


def test_exact_kernel_is_the_dense_jacobian_contracted():
    """Its eigenvalues descend and sum to the trace."""
    leaves = jax.tree.leaves(jax.jit(jax.jacfwd(fn))(PARAMS))
    jacobian = np.concatenate([np.asarray(j).reshape(15, -1) for j in leaves], axis=1)
    kernel = exact_kernel()
    np.testing.assert_allclose(kernel, jacobian @ jacobian.T, rtol=1e-4, atol=1e-5)
    values = np.asarray(ntk.eigenvalues(kernel))
    assert np.all(np.diff(values) <= 0)
    assert values[-1] > -1e-3
    np.testing.assert_allclose(values.sum(), jnp.trace(kernel), rtol=1e-5)


@ALL
def test_gradient_in_the_mask_agrees_with_that_of_the_exact_trace(estimator):
    """For each mask entry the mean gradient of many draws lies within its own standard error."""
    _, want = dense_trace_and_gradient()

    def one(key):
        estimate = functools.partial(estimator, key)
        return trace_and_gradient(NETWORK, PARAMS, MASK, INPUTS, estimate=estimate)[1]

    count = 8_000
    leaves = jax.tree.leaves(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(3), count)))
    gradients = np.concatenate([np.asarray(g).reshape(count, -1) for g in leaves], axis=1)
    z = (gradients.mean(0) - want) / (gradients.std(0) / np.sqrt(count) + 1e-6)
    assert np.abs(z).max() < 4.5
    # The z-scores of an unbiased estimate are standard normal: a bias shows in their spread too.
    assert z.std() < 1.3


@jax.jit
def exact_trace_and_gradient(mask):
    return trace_and_gradient(NETWORK, PARAMS, mask, INPUTS, estimate=exact_trace)


def test_trace_under_a_mask_agrees_with_the_dense_jacobian():
    trace, gradient = exact_trace_and_gradient(MASK)
    want, want_gradient = dense_trace_and_gradient()
    np.testing.assert_allclose(trace, want[0], rtol=1e-5)
    np.testing.assert_allclose(oracles.flat(gradient), want_gradient, rtol=1e-3, atol=1e-4)


def test_one_linear_layer_has_a_closed_form():
    """f(W) = x W with k outputs: Θ = (x xᵀ) ⊗ I, so tr Θ = k ‖x‖²; ∂/∂m_ij = 2 m_ij Σ_n x_ni²."""
    x = np.float32(np.random.default_rng(0).normal(size=(4, 3)))
    weights = jnp.ones((3, 2))
    kernel = jax.jit(lambda w: ntk.exact(lambda w: x @ w, w))(weights)
    np.testing.assert_allclose(kernel, np.kron(x @ x.T, np.eye(2)), atol=1e-5)
    trace = jax.jit(jax.grad(lambda m: exact_trace(lambda w: x @ (w * m), weights)))
    want = np.repeat(2 * np.sum(x**2, axis=0)[:, None], 2, axis=1)
    np.testing.assert_allclose(trace(jnp.ones((3, 2))), want, rtol=1e-4)


def test_finite_differences_converge_to_the_directional_derivative():
    """The error falls like σ."""
    with jax.enable_x64():
        params = jax.tree.map(lambda p: p.astype(jnp.float64), PARAMS)
        inputs = jax.random.normal(jax.random.key(1), (5, 4), jnp.float64)
        tangent = jax.tree.map(jnp.ones_like, params)
        fn = lambda p: NETWORK.apply(p, inputs)  # noqa: E731
        exact, *found = jax.jit(
            lambda: [
                ntk.tangent_norm(fn, params, tangent),
                *(ntk.difference_norm(fn, params, tangent, sigma=s) for s in (2e-3, 1e-3)),
            ]
        )()
        errors = [abs(float(norm) - float(exact)) for norm in found]
        assert abs(np.log2(errors[0] / errors[1]) - 1) < 0.1


@pytest.mark.parametrize(
    "norm, of_leaf", [(ntk.cotangent_norm, lambda x: x), (ntk.log_cotangent_norm, jnp.log)]
)
def test_cotangent_norms_are_those_of_the_pulled_back_probe(norm, of_leaf):
    """Value and first derivative of the forward-over-reverse form equal those of ‖Jᵀu‖² itself."""
    probe = jax.random.normal(jax.random.key(4), (5, 3))

    def plain(fn, params, probe):
        jacobian = jax.jacrev(fn)(params)
        squares = jax.tree.map(lambda j: jnp.sum(jnp.tensordot(probe, j, 2) ** 2), jacobian)
        return sum(map(of_leaf, jax.tree.leaves(squares)))

    def of_scale(norm):
        def value(scale):
            return norm(lambda p: fn(jax.tree.map(lambda x: jnp.sin(x * scale), p)), PARAMS, probe)

        return jax.jit(jax.value_and_grad(value))(1.3)

    np.testing.assert_allclose(of_scale(norm), of_scale(plain), rtol=1e-4)


def test_zero_outputs_have_zero_gradient():
    """A sum of squares has a gradient where a norm has none: a cut-off network scores 0."""
    weights = jnp.ones((3, 2))
    for estimator in ESTIMATORS.values():

        def estimate(m, estimator=estimator):
            return estimator(jax.random.key(0), lambda w: jnp.zeros((4, 3)) @ (w * m), weights)

        np.testing.assert_array_equal(jax.jit(jax.grad(estimate))(weights), 0)


def test_a_leaf_without_influence_is_left_out_of_the_logarithms():
    """Σ log ‖J_lᵀu‖² of f = a + 0 b: log u², not minus infinity, and no NaN in the derivative."""
    fn = lambda p: p["a"] ** 2 + 0 * p["b"]  # noqa: E731
    params = {"a": jnp.array(3.0), "b": jnp.array(1.0)}
    norm = jax.value_and_grad(ntk.log_cotangent_norm, argnums=1)
    value, slope = norm(fn, params, jnp.array(1.0))
    np.testing.assert_allclose([value, slope["a"], slope["b"]], [np.log(36), 2 / 3, 0], rtol=1e-6)


def test_pytrees_of_outputs():
    both = lambda p: {"a": fn(p), "b": [2 * fn(p)]}  # noqa: E731
    samples = draws(ntk.vjp, both, PARAMS, 4000)
    np.testing.assert_allclose(samples.mean(), 5 * np.trace(exact_kernel()), rtol=0.1)


def test_masks_keep_probes_off_pruned_and_unprunable_weights():
    """With everything pruned but one entry, the trace is that entry's share alone."""
    mask = jax.tree.map(jnp.zeros_like, MASK)
    mask["Dense_1"]["kernel"] = mask["Dense_1"]["kernel"].at[2, 1].set(True)
    trace, _ = exact_trace_and_gradient(mask)
    # The first layer is pruned, so its activations are tanh(bias) = 0: the outputs feel nothing.
    np.testing.assert_allclose(trace, 0, atol=1e-9)
