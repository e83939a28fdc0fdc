"""SynFlow: conservation, exactness at any depth, and agreement with the plain derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import ntksap_jax as nts
from ntksap_jax import criteria, masks, models, schedules


def deep_linear(depth, width=16):
    def init(key):
        drawn = 10 * jax.random.normal(key, (depth, width, width))
        return {f"w{i:03}": {"kernel": kernel} for i, kernel in enumerate(drawn)}

    def apply(params, x):
        for name in sorted(params):
            x = jax.nn.relu(x @ params[name]["kernel"])
        return x

    return nts.plain(init, apply, (width,))


def scores_in_float64(params, factor):
    """s_l = f(W_l) ⊙ (row sums arriving) (column sums leaving), by plain matrix products."""
    kernels = [factor(np.asarray(params[name]["kernel"], np.float64)) for name in sorted(params)]
    arriving = [np.ones(len(kernels[0]))]
    for kernel in kernels:
        arriving.append(arriving[-1] @ kernel)
    leaving = [np.ones(kernels[-1].shape[1])]
    for kernel in reversed(kernels):
        leaving.append(kernel @ leaving[-1])
    leaving = leaving[::-1]
    return [
        kernel * np.outer(before, after)
        for kernel, before, after in zip(kernels, arriving, leaving[1:], strict=False)
    ]


@pytest.mark.parametrize(
    ("make", "factor", "depth"),
    [(criteria.synflow, np.abs, 3), (criteria.synflow_l2, np.square, 20)],
)
def test_exact_at_any_depth(make, factor, depth):
    """At 20 layers R is far beyond float32."""
    network = deep_linear(depth)
    params = network.init(jax.random.key(0))
    want = scores_in_float64(params, factor)
    if depth > 3:
        assert want[0].sum() > 1e60
    got, _ = make(network)(None, params, masks.create(params), None)
    got = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(got)]
    scale = got[0].sum() / want[0].sum()
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, scale * theirs, rtol=1e-4)


def test_layer_sums_are_conserved():
    """Every path passes each layer of a plain stack once: all layers' scores add up to R."""
    network = oracles.conv_bn()
    params = network.init(jax.random.key(0))
    mask = oracles.random_mask(jax.random.key(1), params)
    for make in (criteria.synflow, criteria.synflow_l2):
        scores, _ = make(network)(None, params, mask, None)
        sums = [float(jnp.sum(leaf)) for leaf in jax.tree.leaves(scores)]
        np.testing.assert_allclose(sums, sums[0], rtol=1e-5)


def test_residual_networks_agree_with_the_plain_derivative():
    """Scaling layer by layer would not do here: a branch would be weighed against its shortcut."""
    network = nts.linen(models.ResNet((1, 1), 4, 5), (8, 8, 3), train=False)
    params = network.init(jax.random.key(0))
    mask = oracles.random_mask(jax.random.key(1), params)

    def strength(params):
        positive = jax.tree.map(jnp.abs, masks.apply(mask, params))
        return jnp.sum(network.apply_running(positive, jnp.ones((1, 8, 8, 3))))

    gradient = jax.jit(jax.grad(strength))(params)
    want = masks.map_prunable(lambda m, p, g: jnp.abs(p * g) * m, mask, params, gradient)
    got, _ = criteria.synflow(network)(None, params, mask, None)
    got, want = oracles.flat(got), oracles.flat(want)
    np.testing.assert_allclose(got / got.sum(), want / want.sum(), rtol=1e-4, atol=1e-9)


def test_no_layer_collapses_before_the_last_weights():
    """What the authors prove for many rounds: to density 0.02 each layer keeps a weight."""
    network = oracles.conv_bn()
    params = network.init(jax.random.key(0))
    schedule = schedules.exponential(0.02, rounds=20)
    mask, _ = nts.prune(jax.random.key(0), params, criteria.synflow(network), schedule=schedule)
    assert all(count > 0 for count in masks.layer_densities(mask).values())


def test_running_statistics_of_a_pretrained_network_count():
    model = oracles.ConvBN()
    plain = nts.linen(model, (6, 6, 2), train=False)
    params = plain.init(jax.random.key(0))
    variance = jnp.array([1.0, 4.0, 9.0, 16.0])
    stats = {"BatchNorm_0": {"mean": jnp.ones(4), "var": variance}}
    trained = nts.linen(model, (6, 6, 2), batch_stats=stats, train=False)
    before = criteria.synflow(plain)(None, params, masks.create(params), None)[0]
    after = criteria.synflow(trained)(None, params, masks.create(params), None)[0]
    ratio = np.asarray(after["Conv_0"]["kernel"] / before["Conv_0"]["kernel"])
    np.testing.assert_allclose(
        ratio / ratio[..., :1],
        np.broadcast_to(jnp.sqrt(variance[0] / variance), ratio.shape),
        rtol=1e-4,
    )
