"""The convolution: against a float64 sum over taps, against `lax` in every derivative, in loops."""

import functools
import itertools
import re
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import ntksap_jax as nts
from ntksap_jax import ops
from ntksap_jax.ops import _cpu, _onednn
from ntksap_jax.ops._convolution import _plain_input_gradient, _plain_kernel_gradient
from ntksap_jax.ops._geometry import CANONICAL, Geometry, forward

needs_onednn = pytest.mark.skipif(
    not ops.cpu_convolution().startswith("oneDNN"), reason=ops.cpu_convolution()
)


@pytest.fixture
def without_onednn(monkeypatch):
    monkeypatch.setattr(_onednn, "applies", lambda *_: False)


def pairs(smallest, largest):
    return st.tuples(st.integers(smallest, largest), st.integers(smallest, largest))


@st.composite
def geometries(draw):
    return Geometry(
        strides=draw(pairs(1, 3)),
        padding=(draw(pairs(0, 3)), draw(pairs(0, 3))),
        dilation=draw(pairs(1, 2)),
        groups=draw(st.sampled_from([1, 1, 2, 3])),
        input_size=draw(pairs(1, 7)),
        kernel_size=draw(pairs(1, 4)),
    )


def sum_over_taps(inputs, kernel, geometry):
    """The definition, in float64: one tap of the kernel after the other."""
    padded = np.pad(inputs, [(0, 0), *geometry.padding, (0, 0)])
    channels, features = kernel.shape[2], kernel.shape[3] // geometry.groups
    (rows, columns), (down, right) = geometry.output_size, geometry.strides
    outputs = np.zeros((len(inputs), rows, columns, kernel.shape[3]))
    for a, b, group in itertools.product(*map(range, geometry.kernel_size), range(geometry.groups)):
        shifted = padded[:, a * geometry.dilation[0] :, b * geometry.dilation[1] :]
        pixels = shifted[:, : rows * down : down, : columns * right : right]
        seen = slice(group * channels, (group + 1) * channels)
        own = slice(group * features, (group + 1) * features)
        outputs[..., own] += pixels[..., seen] @ kernel[a, b, :, own]
    return outputs


def draw_arrays(geometry, batch, channels=2, features=1):
    rng = np.random.default_rng(0)
    groups = geometry.groups
    inputs = rng.standard_normal((batch, *geometry.input_size, groups * channels))
    kernel = rng.standard_normal((*geometry.kernel_size, channels, groups * features))
    cotangent = rng.standard_normal((batch, *geometry.output_size, groups * features))
    return inputs, kernel, cotangent


def close(found, expected, *, scale=0.0):
    scale = 1 + max(scale, np.max(np.abs(expected)))
    np.testing.assert_allclose(found, expected, atol=2e-6 * scale)


def xla_sums(x, w, y, geometry):
    return (
        _cpu.outputs(x, w, geometry),
        _cpu.input_gradient(y, w, geometry),
        _cpu.kernel_gradient(x, y, geometry),
    )


def onednn_sums(x, w, y, geometry):
    return (
        _onednn.convolve(0, y.shape, x, w, geometry),
        _onednn.convolve(1, x.shape, y, w, geometry),
        _onednn.convolve(2, w.shape, x, y, geometry),
    )


@given(geometries(), st.integers(1, 3), st.sampled_from([0.0, 1e9]))
@settings(max_examples=10)
def test_the_three_sums_on_cpu_are_those_of_the_definition(geometry, batch, large):
    with mock.patch.object(_cpu, "_LARGE_WORK", large):  # 0: all layers are large
        check_three_sums(xla_sums, geometry, batch)


@needs_onednn
@given(geometries(), st.integers(1, 5), st.sampled_from([(2, 1), (8, 16), (3, 11)]))
@settings(max_examples=40)
def test_the_three_sums_by_onednn_are_those_of_the_definition(geometry, batch, channels):
    """Batches that the threads share evenly or not; channels that fill vectors or not."""
    check_three_sums(onednn_sums, geometry, batch, *channels)


def check_three_sums(sums, geometry, batch, *channels):
    if min(geometry.output_size) < 1:
        return
    inputs, kernel, cotangent = draw_arrays(geometry, batch, *channels)
    outputs = sum_over_taps(inputs, kernel, geometry)
    x, w, y = (jnp.float32(a) for a in (inputs, kernel, cotangent))
    found, input_gradient, kernel_gradient = jax.jit(lambda *a: sums(*a, geometry))(x, w, y)
    close(found, outputs)
    # Transposes of a bilinear map: every entry of them by a basis vector would be slow; the maps
    # are linear, so that agreement with a second direction each, drawn at random, is enough.
    rng = np.random.default_rng(1)
    for _ in range(3):
        direction = rng.standard_normal(inputs.shape)
        expected = np.vdot(cotangent, sum_over_taps(direction, kernel, geometry))
        scale = np.linalg.norm(input_gradient)  # terms of a product may cancel
        close(np.vdot(input_gradient, direction), expected, scale=scale)
        direction = rng.standard_normal(kernel.shape)
        expected = np.vdot(cotangent, sum_over_taps(inputs, direction, geometry))
        scale = np.linalg.norm(kernel_gradient)
        close(np.vdot(kernel_gradient, direction), expected, scale=scale)


@pytest.mark.parametrize("other", [np.nan, np.inf, -np.inf, 0.0])
def test_to_wait_for_a_number_changes_nothing(other):
    x = jnp.array([-np.inf, -1.5, 0.0, 2.5, np.inf, np.nan])
    np.testing.assert_array_equal(jax.jit(_cpu._computed_after)(x, jnp.full((2, 2), other)), x)


@given(geometries(), st.integers(1, 2))
@settings(max_examples=5)
def test_elsewhere_the_sums_are_those_of_lax(geometry, batch):
    """The forms of TPU and GPU: the same shapes, and transposes of one another."""
    if min(geometry.output_size) < 1:
        return
    x, w, y = (jnp.float32(a) for a in draw_arrays(geometry, batch))
    outputs = forward(x, w, geometry)
    expected = np.vdot(y, outputs)
    close(np.vdot(_plain_input_gradient(y, w, geometry), x), expected)
    close(np.vdot(_plain_kernel_gradient(x, y, geometry), w), expected)


CASES = {
    "strided": ((2, 7, 6, 3), (3, 3, 3, 4), {"strides": (2, 2), "padding": [(1, 1), (1, 1)]}),
    "dilated, grouped": ((2, 9, 8, 4), (3, 2, 2, 6), {"dilation": (2, 2), "groups": 2}),
    "tiny": ((3, 2, 2, 4), (3, 3, 4, 5), {"padding": [(1, 1), (1, 1)]}),
    "wide padding": ((1, 2, 3, 2), (2, 2, 2, 2), {"padding": [(3, 2), (0, 4)], "strides": (1, 2)}),
}


def with_lax(x, w, *, strides=(1, 1), padding="SAME", dilation=(1, 1), groups=1):
    return lax.conv_general_dilated(
        x, w, strides, padding, None, dilation, CANONICAL, feature_group_count=groups
    )


def derivatives(convolve, x, w, dx, dw, *, higher):
    """The value and the gradient, and with `higher` all that pruning and training take."""

    def loss(x, w):
        return jnp.sum(jnp.sin(convolve(x, w)))

    def tangent_norm(x, w):
        return jnp.sum(jax.jvp(convolve, (x, w), (dx, dw))[1] ** 2)

    def cotangent_norm(x, w):
        return sum(jnp.sum(g**2) for g in jax.grad(loss, (0, 1))(x, w))

    gradient = jax.grad(loss, (0, 1))
    first = {"value": convolve(x, w), "gradient": gradient(x, w)}
    if not higher:
        return first
    return first | {
        "forward over reverse": jax.jvp(gradient, (x, w), (dx, dw))[1],
        "reverse over forward": jax.grad(tangent_norm, (0, 1))(x, w),
        "reverse over reverse": jax.grad(cotangent_norm, (0, 1))(x, w),
    }


@pytest.mark.parametrize("name", CASES)
def test_derivatives_agree_with_lax(name):
    """To first order in every case; the higher orders, made of the same sums, in two of them."""
    input_shape, kernel_shape, options = CASES[name]
    higher = name in ("strided", "tiny")
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = (input_shape, kernel_shape) * 2
    arrays = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
    ours, theirs = jax.jit(
        lambda *arrays: [
            derivatives(functools.partial(f, **options), *arrays, higher=higher)
            for f in (ops.conv2d, with_lax)
        ]
    )(*arrays)
    for which in theirs:
        for found, expected in zip(
            jax.tree.leaves(ours[which]), jax.tree.leaves(theirs[which]), strict=True
        ):
            scale = float(jnp.max(jnp.abs(expected)))
            np.testing.assert_allclose(found, expected, atol=1e-5 * (1 + scale), err_msg=which)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (2, 3)])
def test_vmap_agrees_with_one_after_the_other(axes):
    x = jax.random.normal(jax.random.key(0), (2, 5, 4, 3))
    w = jax.random.normal(jax.random.key(1), (3, 3, 3, 2))
    xs, ws = (
        a if axis is None else jnp.stack([a, -2 * a, a**2], axis)
        for a, axis in zip((x, w), axes, strict=True)
    )

    @jax.jit
    def gradients(x, w):
        return jax.grad(lambda x, w: jnp.sum(jnp.sin(ops.conv2d(x, w))), (0, 1))(x, w)

    together = jax.jit(jax.vmap(gradients, axes))(xs, ws)
    of_x, of_w = (
        itertools.repeat(a, 3) if i is None else jnp.moveaxis(a, i, 0)
        for a, i in zip((xs, ws), axes, strict=True)
    )
    for index, pair in enumerate(zip(of_x, of_w, strict=True)):
        for found, expected in zip(together, gradients(*pair), strict=True):
            np.testing.assert_allclose(found[index], expected, rtol=1e-5, atol=1e-5)


def test_nested_vmap():
    x = jax.random.normal(jax.random.key(0), (2, 3, 1, 4, 4, 2))  # images for each of two kernels
    w = jax.random.normal(jax.random.key(1), (2, 3, 3, 2, 2))
    inner = jax.vmap(ops.conv2d, (0, None))
    found = jax.jit(jax.vmap(inner))(x, w)
    crossed = jax.jit(jax.vmap(jax.vmap(ops.conv2d, (None, 0)), (0, None)))(x[0], w)
    for i in range(2):
        for j in range(3):
            np.testing.assert_allclose(found[i, j], with_lax(x[i, j], w[i]), atol=1e-5)
            np.testing.assert_allclose(crossed[j, i], with_lax(x[0, j], w[i]), atol=1e-5)


def loop_convolutions(compiled):
    """The convolutions of a compiled program outside of its entry computation, as text."""
    text = compiled.as_text()
    entry = text[text.index("\nENTRY ") :].split("\n}", 1)[0]
    return re.findall(r".* convolution\(.*", text.replace(entry, ""))


def is_canonical(convolution):
    slow = ("rhs_reversal", "batch_group_count")
    return "dim_labels=b01f_01io->b01f" in convolution and not any(s in convolution for s in slow)


class SmallNetwork(nn.Module):
    """A convolution of each kind that the papers' networks have."""

    @nn.compact
    def __call__(self, x, train=False):
        conv = functools.partial(nn.Conv, use_bias=False, padding=1)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(conv(4, (3, 3))(x)))
        x = nn.relu(conv(6, (3, 3), strides=2)(x)) + conv(6, (1, 1), strides=2, padding=0)(x)
        x = nn.relu(conv(6, (3, 3), strides=2)(x))  # 2x2: smaller than the kernel
        x = nn.relu(conv(6, (3, 3))(x))
        return nn.Dense(3)(x.mean((1, 2)))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="reads the program that CPU runs")
def test_no_slow_convolution_inside_of_a_loop(without_onednn):
    """The whole search, with what is random in it fixed: random draws take long to compile."""
    network = nts.linen(SmallNetwork(), (8, 8, 3))
    score = nts.criteria.ntk_sap(
        network,
        estimator=lambda key, fn, w: nts.ntk.tangent_norm(fn, w, jax.tree.map(jnp.ones_like, w)),
        num_samples=2,
        reinit=False,
        inputs=lambda key, batch_size: jnp.ones((3, 8, 8, 3)),
    )

    def search(params):
        return nts.find_mask(jax.random.key(1), params, score, schedule=[0.5, 0.2])

    params = jax.eval_shape(network.init, jax.random.key(0))
    in_loops = loop_convolutions(jax.jit(search).lower(params).compile())
    assert len(in_loops) > 10
    assert [line for line in in_loops if not is_canonical(line)] == []


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="reads the program that CPU runs")
@pytest.mark.parametrize("convolve", [ops.conv2d, with_lax])
def test_gradients_of_lax_would_be_slow_inside_of_a_loop(convolve, without_onednn):
    def descend(w, x):
        gradient = jax.grad(lambda w: jnp.sum(convolve(x, w) ** 2))(w)
        return w - gradient, None

    compiled = jax.jit(lambda w, xs: lax.scan(descend, w, xs))
    compiled = compiled.lower(jnp.ones((3, 3, 4, 4)), jnp.ones((5, 2, 8, 8, 4))).compile()
    in_loops = loop_convolutions(compiled)
    assert in_loops
    assert all(map(is_canonical, in_loops)) == (convolve is ops.conv2d)


def test_networks_bring_the_fast_convolution_into_a_users_model():
    model = nn.Sequential([nn.Conv(4, (3, 3)), nn.relu, lambda x: x.mean((1, 2)), nn.Dense(2)])
    network = nts.linen(model, (6, 6, 3))
    plain = nts.linen(model, (6, 6, 3), conv_general_dilated=lax.conv_general_dilated)
    params, images = network.init(jax.random.key(0)), jnp.ones((2, 6, 6, 3))

    def names(network):
        return {eqn.primitive.name for eqn in jax.make_jaxpr(network.apply)(params, images).eqns}

    assert "conv2d" in names(network)
    assert "conv2d" not in names(plain)
    found, expected = network.apply(params, images), plain.apply(params, images)
    np.testing.assert_allclose(found, expected, rtol=1e-5)  # oneDNN's are not to the bit


def test_a_models_own_choice_of_convolution_is_kept():
    calls = []

    def own(*args, **kwargs):
        calls.append(args)
        return lax.conv_general_dilated(*args, **kwargs)

    model = nn.Sequential([nn.Conv(2, (3, 3), conv_general_dilated=own)])
    network = nts.linen(model, (4, 4, 1))
    assert calls
    calls.clear()
    network.apply(network.init(jax.random.key(0)), jnp.ones((1, 4, 4, 1)))
    assert calls


@pytest.mark.parametrize(
    "options",
    [
        {"lhs_dilation": (2, 2), "padding": [(1, 1), (1, 1)]},
        {"dimension_numbers": ("NCHW", "OIHW", "NCHW")},
        {"padding": [(-1, 1), (0, 0)]},
        {"batch_group_count": 2},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_it_does_not_cover_is_left_to_lax(options):
    x, w = jnp.ones((4, 4, 4, 4)), jnp.ones((4, 4, 4, 4))
    options = {"padding": "SAME", "dimension_numbers": CANONICAL, **options}
    # The programs, not their results: XLA on CPU reads past its inputs where padding is negative.
    ours, of_lax = (
        str(jax.make_jaxpr(lambda x, w, f=f: f(x, w, (1, 1), **options))(x, w))
        for f in (ops.conv_general_dilated, lax.conv_general_dilated)
    )
    assert ours == of_lax


def test_half_precision_and_integers():
    x = jnp.arange(32).reshape(1, 4, 4, 2)
    w = jnp.ones((3, 3, 2, 1), x.dtype)
    expected = with_lax(x, w)
    np.testing.assert_array_equal(ops.conv2d(x, w), expected)
    half = ops.conv2d(x.astype(jnp.bfloat16), w.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(half), expected, rtol=1e-2)


@pytest.mark.parametrize("argument", [None, "highest", lax.Precision.HIGHEST])
def test_precision_is_that_of_where_it_was_called(argument):
    """As `criteria.ntk_sap` asks for it, traced by a caller's `jit` that is lowered later."""

    def loss(w, x):
        if argument is not None:
            return jnp.sum(ops.conv2d(x, w, precision=argument) ** 2)
        with jax.default_matmul_precision("highest"):
            return jnp.sum(ops.conv2d(x, w) ** 2)

    traced = jax.jit(jax.grad(loss, (0, 1))).trace(jnp.ones((3, 3, 2, 2)), jnp.ones((1, 4, 4, 2)))
    for platform in ("cpu", "tpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        convolutions = re.findall(r"stablehlo.convolution.*?\n", text)
        assert len(convolutions) == 3
        assert all("precision HIGHEST" in line for line in convolutions)


def test_bad_shapes_are_refused_by_name():
    with pytest.raises((TypeError, ValueError), match=r"rhs|feature"):
        ops.conv2d(jnp.ones((1, 4, 4, 3)), jnp.ones((3, 3, 2, 1)))
    with pytest.raises((TypeError, ValueError), match="dtype"):
        ops.conv2d(jnp.ones((1, 4, 4, 3)), jnp.ones((3, 3, 3, 1), jnp.bfloat16))


@pytest.mark.parametrize("manual", [False, True])
def test_gradients_over_a_sharded_batch(manual):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    x = jax.random.normal(jax.random.key(0), (4, 5, 5, 2))
    w = jax.random.normal(jax.random.key(1), (3, 3, 2, 2))

    def gradient(w, x):
        return jax.grad(lambda w: jnp.sum(jnp.sin(ops.conv2d(x, w))))(w)

    spec = PartitionSpec("data")
    sharded = jax.device_put(x, NamedSharding(mesh, spec))
    function = gradient
    if manual:
        function = jax.shard_map(
            gradient, mesh=mesh, in_specs=(PartitionSpec(), spec), out_specs=PartitionSpec()
        )
    np.testing.assert_allclose(jax.jit(function)(w, sharded), gradient(w, x), atol=1e-5)
