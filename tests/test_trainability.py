"""Jacobian singular values and OrthP against recorded values, dense Jacobians and closed forms."""

import functools
import math

import golden_tpp as golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntksap_jax.structured import trainability

RECORDED = golden.load()
JSV = RECORDED["jsv"]
ORTHP = RECORDED["orthp"]


def apply(model):
    return lambda variables, inputs: model.apply(variables, inputs, train=False)


def singular_values(channels):
    return jax.jit(lambda params: trainability.linear_singular_values(params, channels))


# -- Singular values -----------------------------------------------------------------------------


summarise = jax.jit(trainability.summarise)


def test_linear_network_is_the_authors_and_the_product_of_its_kernels():
    case = JSV["mlp_linear"]
    with jax.enable_x64():
        params = golden.variables(case["params"], "float64")["params"]
        inputs = golden.array(case["x"], "float64")
        values = trainability.jacobian_singular_values(
            apply(golden.LinearNet()), {"params": params}, inputs
        )
        golden.assert_close(values, case["jsv"])
        exact = singular_values(golden.LINEAR_CHANNELS)(params)
        golden.assert_close(exact, case["product_matrix_svals"])
        spectrum = summarise(values)
        golden.assert_close(spectrum.mean, case["jsv_mean"])
        golden.assert_close(spectrum.std, case["jsv_std"])
        golden.assert_close(spectrum.squared_distance, case["jsv_diff_mean"])
        golden.assert_close(spectrum.condition_number, case["condition_number_mean"])
        golden.assert_close(summarise(exact).mean, case["jsv_mean"])


def test_convolutional_network_in_evaluation_mode_is_the_authors():
    case = JSV["conv_bn_eval"]
    with jax.enable_x64():
        variables = golden.variables(case["params"], "float64")
        inputs = golden.images(case["x"], "float64")
        of = apply(golden.ConvNet())
        values = trainability.jacobian_singular_values(of, variables, inputs)
        golden.assert_close(values, case["jsv"])
        golden.assert_close(summarise(values).mean, case["jsv_mean"])
        # Pieces of another size, the last one smaller, change nothing.
        pieces = trainability.jacobian_singular_values(of, variables, inputs, batch_size=3)
        golden.assert_close(pieces, case["jsv"])


def test_more_outputs_than_inputs_and_images():
    """As many values as the smaller side has, whichever that is."""
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(4, 7)), jnp.float32)
    values = trainability.jacobian_singular_values(
        lambda w, x: x.reshape(len(x), -1) @ w, matrix, jnp.ones((2, 2, 2, 1))
    )
    assert values.shape == (2, 4)
    np.testing.assert_allclose(values[1], np.linalg.svd(matrix)[1], rtol=1e-5)


def test_examples_without_a_condition_number_do_not_count():
    spectrum = summarise(jnp.array([[0.0, 0.0], [6.0, 2.0]]))
    assert float(spectrum.condition_number) == 3.0


# -- OrthP ---------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="gain")
def orthp(params, gain=1.0):
    """Of a single kernel."""
    return trainability.orthp(params, golden.one_layer(params["kernel"].shape[-1]), gain=gain)


MATRICES = [name for name in ORTHP if "weight" in ORTHP[name]]


@pytest.mark.parametrize("name", MATRICES)
def test_orthp_is_the_authors(name):
    case = ORTHP[name]
    with jax.enable_x64():
        kernel = golden.array(golden.kernel(case["weight"]), "float64")
        params = {"kernel": kernel, "bias": jnp.ones(3)}
        got = orthp(params, gain=case["gain"])
        golden.assert_close(got["kernel"], golden.kernel(case["out"]))
        np.testing.assert_array_equal(got["bias"], 1)
    assert case["gain"] == pytest.approx({"linear": 1, "relu": math.sqrt(2)}[case["act"]])


@pytest.mark.parametrize("shape", [(3, 3, 2, 4), (2, 2, 1, 8), (7, 3), (3, 7)])
def test_orthp_is_orthonormal_spans_the_same_and_is_stable(shape):
    kernel = np.random.default_rng(0).normal(size=shape)
    with jax.enable_x64():
        got = orthp({"kernel": kernel})["kernel"]
        rows, before = (np.asarray(k).reshape(-1, shape[-1]).T for k in (got, kernel))
        wide = rows.shape[0] < rows.shape[1]
        smaller = rows @ rows.T if wide else rows.T @ rows
        np.testing.assert_allclose(smaller, np.eye(len(smaller)), atol=1e-12)
        if wide:  # the same span of filters
            np.testing.assert_allclose(before @ rows.T @ rows, before, atol=1e-12)
        again = orthp({"kernel": got})["kernel"]
        np.testing.assert_allclose(again, got, atol=1e-12)


def test_orthp_of_a_kernel_without_full_rank_empties_no_filter():
    kernel = jnp.array([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    got = np.asarray(orthp({"kernel": kernel})["kernel"])
    np.testing.assert_allclose(got.T @ got, np.eye(2), atol=1e-6)


def mlp7(widths, rng):
    """torch's default initialisation: uniform of size 1 / sqrt(fan-in)."""
    params, layers = {}, []
    for index, (fan_in, fan_out) in enumerate(zip(widths, widths[1:], strict=False)):
        bound = 1 / math.sqrt(fan_in)
        params[f"fc{index}"] = {
            "kernel": rng.uniform(-bound, bound, size=(fan_in, fan_out)),
            "bias": rng.uniform(-bound, bound, size=fan_out),
        }
        layers.append(golden.dense(f"fc{index}", index, fan_out))
    return params, golden.untied(*layers)


def test_orthp_makes_the_seven_layer_linear_network_an_isometry():
    case = ORTHP["mlp7_linear_invariant"]
    with jax.enable_x64():
        params, channels = mlp7(case["widths"], np.random.default_rng(0))
        fresh = singular_values(channels)(params)
        orthogonal = jax.jit(lambda params: trainability.orthp(params, channels))(params)
        values = singular_values(channels)(orthogonal)
    np.testing.assert_allclose(values, 1, atol=1e-13)
    # Before, another draw of the same distribution as theirs.
    theirs = case["mean_jsv_default_torch_init_seed0"]
    assert np.asarray(fresh).mean() == pytest.approx(theirs, rel=0.2)


# -- Errors --------------------------------------------------------------------------------------


def test_bad_input_raises():
    def double(params, inputs):
        return 2 * inputs

    measure = trainability.jacobian_singular_values
    with pytest.raises(ValueError, match=r"inputs: got shape \(3,\), expected \(N, ...\)"):
        measure(double, None, jnp.ones(3))
    with pytest.raises(ValueError, match=r"inputs: got shape \(0, 3\)"):
        measure(double, None, jnp.ones((0, 3)))
    with pytest.raises(TypeError, match="inputs: got int32, expected floating point"):
        measure(double, None, jnp.ones((2, 3), int))
    with pytest.raises(ValueError, match="batch_size: got 0"):
        measure(double, None, jnp.ones((2, 3)), batch_size=0)
    kernel = jnp.ones((3, 3, 1, 2))
    with pytest.raises(
        ValueError, match=r"channels: 'kernel' has a kernel \(3, 3, 1, 2\), expected"
    ):
        trainability.linear_singular_values({"kernel": kernel}, golden.one_layer(kernel.shape[-1]))
    with pytest.raises(ValueError, match="gain: got 0"):
        trainability.orthp({"kernel": kernel}, golden.one_layer(kernel.shape[-1]), gain=0)
