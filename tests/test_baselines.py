"""Orthogonality penalties against recorded values, loops over filters, and calculus."""

import functools
import itertools

import golden_tpp as golden
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ntksap_jax.structured import baselines, tpp

CASES = golden.load()["baseline_penalties"]
kernel_orthogonality = jax.jit(jax.value_and_grad(baselines.kernel_orthogonality))
OF_KERNELS = [name for name in CASES if name.startswith("kernorth")]
RECORDED_CONV = CASES["orthconv_deconv_orth_dist_conv_4x2x3x3"]


@pytest.mark.parametrize("name", OF_KERNELS)
def test_kernel_orthogonality_is_the_authors(name):
    case = CASES[name]
    with jax.enable_x64():
        kernel = golden.array(golden.kernel(case["weight"]), "float64")
        loss, gradient = kernel_orthogonality(kernel)
        golden.assert_close(loss, case["loss"])
        golden.assert_close(gradient, golden.kernel(case["grad"]))


@pytest.mark.parametrize(
    "case", [RECORDED_CONV, CASES["orthconv_stride1_same_kernel"]], ids=["stride2", "stride1"]
)
def test_conv_orthogonality_is_the_authors(case):
    with jax.enable_x64():
        kernel = golden.array(golden.kernel(RECORDED_CONV["weight"]), "float64")
        of = functools.partial(
            baselines.conv_orthogonality, stride=case["stride"], padding=case["padding"]
        )
        loss, gradient = jax.jit(jax.value_and_grad(of))(kernel)
        golden.assert_close(loss, case["loss"])
        golden.assert_close(gradient, golden.kernel(case["grad"]))


@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (2, 1), (3, 2)])
def test_conv_orthogonality_is_a_loop_over_pairs_and_shifts(stride, padding):
    """Sums of products of one filter with another that is shifted by so many pixels."""
    kernel = np.random.default_rng(0).normal(size=(3, 3, 2, 3))
    size = (3 + 2 * padding - 3) // stride + 1
    padded = np.pad(kernel, [(padding, padding)] * 2 + [(0, 0)] * 2)
    total = 0.0
    for i, j, a, b in itertools.product(range(3), range(3), range(size), range(size)):
        window = padded[a * stride : a * stride + 3, b * stride : b * stride + 3, :, i]
        target = float(i == j and a == b == size // 2)
        total += (np.sum(window * kernel[..., j]) - target) ** 2
    with jax.enable_x64():
        of = functools.partial(baselines.conv_orthogonality, stride=stride, padding=padding)
        got = jax.jit(of)(kernel)
    np.testing.assert_allclose(got, np.sqrt(total), rtol=1e-12)


@pytest.mark.parametrize("shape", [(6, 4), (3, 7)])
def test_orthonormal_kernels_have_no_penalty_and_a_finite_gradient(shape):
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(max(shape), min(shape))))
    assert kernel_orthogonality(np.float32(q if shape[0] >= shape[1] else q.T))[0] < 1e-5
    loss, gradient = kernel_orthogonality(np.eye(*shape, dtype=np.float32))
    assert loss == 0 and not np.any(gradient)


def test_sums_over_the_network_and_which_layers_they_leave_out():
    rng = np.random.default_rng(0)
    shapes = {"conv1": (3, 3, 2, 6), "conv2": (3, 3, 6, 4), "fc": (4, 3)}
    params = {n: {"kernel": np.float32(rng.normal(size=s))} for n, s in shapes.items()}
    channels = golden.CONV_CHANNELS

    @jax.jit
    def found_and_wanted(params):
        kernels = [layer["kernel"] for layer in params.values()]
        layers = [*map(baselines.kernel_orthogonality, kernels)]
        of_conv = functools.partial(baselines.conv_orthogonality, kernels[1])
        strides = {stride: layers[2] + of_conv(stride=stride) for stride in (1, 2)}
        return [
            (baselines.kernorth(params, channels), sum(layers)),
            (baselines.orthconv(params, channels), strides[2]),  # as published
            (baselines.orthconv(params, channels, stride=1), strides[1]),
            (baselines.orthconv(params, channels, stride={"conv2/kernel": 1}), strides[1]),
        ]

    for found, wanted in found_and_wanted(params):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
    with pytest.raises(ValueError, match="stride: has none for the convolution 'conv2/kernel'"):
        baselines.orthconv(params, channels, stride={})
    with pytest.raises(ValueError, match=r"kernel: got shape \(3, 3, 3, 2, 2\), expected"):
        baselines.conv_orthogonality(jnp.ones((3, 3, 3, 2, 2)), stride=1)


def test_added_penalty_is_a_term_of_the_loss():
    """The same steps, whether the penalty is in the loss or in the optimiser."""
    channels = golden.one_layer(3)
    start = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)}

    def loss(params):
        return jnp.sum(jnp.sin(params["kernel"]))

    def penalty(params):
        return baselines.ORTHOGONALITY_WEIGHT * baselines.kernorth(params, channels)

    def train(optimizer, objective):
        @jax.jit
        def step(params, state):
            updates, state = optimizer.update(jax.grad(objective)(params), state, params)
            return optax.apply_updates(params, updates), state

        params, state = start, optimizer.init(start)
        for _ in range(3):
            params, state = step(params, state)
        return params["kernel"]

    sgd = optax.sgd(0.1, momentum=0.9)
    np.testing.assert_allclose(
        train(optax.chain(baselines.add_penalty(penalty), sgd), loss),
        train(sgd, lambda params: loss(params) + penalty(params)),
        rtol=1e-5,
    )
    optimizer = baselines.add_penalty(penalty)
    with pytest.raises(ValueError, match="params: got None"):
        optimizer.update(start, optimizer.init(start))


def test_growing_regularisation_is_l2_on_pruned_weights_alone():
    params = golden.variables(golden.load()["apply_reg_mlp_bias"]["params"], "float32")["params"]
    keep = {"net_0/kernel": golden.keep(5, [1, 4])}
    value = jax.jit(
        lambda params: tpp.penalty(
            params, golden.LINEAR_CHANNELS, keep, strength=0.5, settings=baselines.GREG1
        )
    )(params)
    want = 0.25 * np.sum(np.asarray(params["net_0"]["kernel"])[:, [1, 4]] ** 2)
    np.testing.assert_allclose(value, want, rtol=1e-6)
    tpp.regularise(optax.sgd(0.1), golden.LINEAR_CHANNELS, keep, baselines.GREG1)
    assert baselines.GREG1.zero_out_interval is None
