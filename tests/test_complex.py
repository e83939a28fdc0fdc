"""Complex weights: scores are derivatives by a real mask, as of real and imaginary parts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import ntksap_jax as nts
from ntksap_jax import criteria, masks, ntk
from ntksap_jax._draws import random_like
from ntksap_jax.criteria.ntk_sap import trace_and_gradient

KEY = jax.random.key(0)
SHAPES = {"w": (3, 4), "v": (4, 2)}


def init(key):
    shapes = {name: jax.ShapeDtypeStruct(shape, jnp.complex64) for name, shape in SHAPES.items()}
    return random_like(key, shapes | {"bias": jax.ShapeDtypeStruct((2,), jnp.float32)})


def apply(params, x):
    return jnp.real(jnp.sin(0.5 * x @ params["w"]) @ params["v"]) + params["bias"]


def of_parts(parts, x):
    """The same network of pairs of real arrays."""
    joined = {name: jax.lax.complex(*pair) for name, pair in parts.items()}
    return apply(joined | {"bias": PARAMS["bias"]}, x)


NETWORK = nts.plain(init, apply, (3,))
PARAMS = NETWORK.init(KEY)
MASK = masks.create(PARAMS, include="w|v")
PARTS = {name: (PARAMS[name].real, PARAMS[name].imag) for name in SHAPES}
ONES = {name: jnp.ones(shape) for name, shape in SHAPES.items()}
INPUTS, LABELS = jax.random.normal(KEY, (5, 3)), jnp.arange(5) % 2


def masked(m):
    return {name: tuple(m[name] * part for part in pair) for name, pair in PARTS.items()}


def loss(parts, temperature=1.0):
    return criteria._batches.cross_entropy(of_parts(parts, INPUTS) / temperature, LABELS).mean()


def assert_close(scores, wanted):
    for name in SHAPES:
        assert scores[name].dtype == jnp.float32
        np.testing.assert_allclose(scores[name], wanted[name], rtol=1e-4, atol=1e-6)


def test_snip_and_force():
    wanted = jax.jit(jax.grad(lambda m: loss(masked(m))))(ONES)
    wanted = jax.tree.map(np.abs, wanted)
    for make in (criteria.snip, criteria.force):
        assert_close(make(NETWORK)(KEY, PARAMS, MASK, (INPUTS, LABELS))[0], wanted)


def test_grasp():
    """Half the derivative of the squared gradient's norm: what its score is."""

    def norm(m):
        gradient = jax.grad(functools.partial(loss, temperature=2.0))(masked(m))
        return sum(jnp.sum(part**2) for part in jax.tree.leaves(gradient)) / 2

    score = criteria.grasp(NETWORK, temperature=2.0)
    assert_close(score(KEY, PARAMS, MASK, (INPUTS, LABELS))[0], jax.jit(jax.grad(norm))(ONES))


def dense_trace(m):
    def outputs(parts):
        return of_parts({n: tuple(m[n] * part for part in parts[n]) for n in parts}, INPUTS)

    jacobian = jax.jacfwd(outputs)(PARTS)
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(jacobian))


def test_ntk_sap():
    def exact(fn, weights):
        return jnp.trace(ntk.exact(fn, weights))

    by_exact = functools.partial(trace_and_gradient, NETWORK, estimate=exact)
    trace, gradient = jax.jit(by_exact)(PARAMS, MASK, INPUTS)
    wanted, derivatives = jax.jit(jax.value_and_grad(dense_trace))(ONES)
    np.testing.assert_allclose(trace, wanted, rtol=1e-5)
    assert_close(gradient, derivatives)
    score = criteria.ntk_sap(NETWORK, num_samples=2, batch_size=3)
    mask, _ = nts.prune(KEY, PARAMS, score, schedule=[0.5], mask=MASK)
    assert masks.num_kept(mask) == 10


def test_estimators_contract_with_real_and_imaginary_parts():
    weights = {name: PARAMS[name] for name in SHAPES}
    fn = functools.partial(lambda w, x: apply(w | {"bias": PARAMS["bias"]}, x), x=INPUTS)
    tangent = random_like(KEY, weights)
    parts = {name: (leaf.real, leaf.imag) for name, leaf in tangent.items()}
    along = jax.jvp(lambda p: of_parts(p, INPUTS), (PARTS,), (parts,))[1]
    np.testing.assert_allclose(ntk.tangent_norm(fn, weights, tangent), jnp.sum(along**2), rtol=1e-5)
    cotangent = jax.random.normal(KEY, (5, 2))
    back = jax.vjp(lambda p: of_parts(p, INPUTS), PARTS)[1](cotangent)[0]
    wanted = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(back))
    np.testing.assert_allclose(ntk.cotangent_norm(fn, weights, cotangent), wanted, rtol=1e-5)


def test_probes_are_normal_in_both_parts():
    drawn = random_like(KEY, {"a": jax.ShapeDtypeStruct((5000,), jnp.complex64), "b": jnp.ones(5)})
    assert drawn["b"].dtype == jnp.float32
    both = np.stack([drawn["a"].real, drawn["a"].imag])
    np.testing.assert_allclose(np.cov(both), np.eye(2), atol=0.1)


def test_magnitude_is_the_absolute_value():
    scores, _ = criteria.magnitude()(KEY, PARAMS, MASK, None)
    np.testing.assert_allclose(oracles.flat(scores["w"]), np.abs(PARAMS["w"]).ravel(), rtol=1e-6)


@pytest.mark.parametrize("make", [criteria.synflow, criteria.synflow_l2, criteria.px])
def test_criteria_by_paths_say_that_they_take_real_weights(make):
    with pytest.raises(TypeError, match="leaf 'v' is complex64.* of real weights only"):
        make(NETWORK)


def test_the_kernel_of_a_pruned_network_too():
    with pytest.raises(TypeError, match="leaf 'v' is complex64"):
        ntk.pruned_kernel(NETWORK, PARAMS, MASK, INPUTS)
