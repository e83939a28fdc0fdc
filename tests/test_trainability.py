"""Jacobian singular values and OrthP against recorded values, dense Jacobians and closed forms."""

import math

import golden_tpp as golden
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from ntksap_jax.structured import trainability

RECORDED = golden.load()
JSV = RECORDED["jsv"]
ORTHP = RECORDED["orthp"]
both_precisions = pytest.mark.parametrize("dtype", golden.DTYPES)


def apply(model):
    return lambda variables, inputs: model.apply(variables, inputs, train=False)


# -- Singular values -----------------------------------------------------------------------------


@both_precisions
def test_linear_network_is_the_authors_and_the_product_of_its_kernels(dtype):
    case = JSV["mlp_linear"]
    with golden.precision(dtype):
        variables = golden.variables(case["params"], dtype)
        inputs = golden.array(case["x"], dtype)
        values = trainability.jacobian_singular_values(
            apply(golden.LinearNet()), {"params": variables["params"]}, inputs
        )
        golden.assert_close(values, case["jsv"], dtype)
        exact = trainability.linear_singular_values(variables["params"], golden.LINEAR_CHANNELS)
        golden.assert_close(exact, case["product_matrix_svals"], dtype)
        spectrum = trainability.summarise(values)
        golden.assert_close(spectrum.mean, case["jsv_mean"], dtype)
        golden.assert_close(spectrum.std, case["jsv_std"], dtype)
        golden.assert_close(spectrum.squared_distance, case["jsv_diff_mean"], dtype)
        golden.assert_close(spectrum.condition_number, case["condition_number_mean"], dtype)
        of_one = trainability.summarise(exact)
        golden.assert_close(of_one.mean, case["jsv_mean"], dtype)


def test_convolutional_network_in_evaluation_mode_is_the_authors():
    case = JSV["conv_bn_eval"]
    with jax.enable_x64():
        variables = golden.variables(case["params"], "float64")
        inputs = golden.images(case["x"], "float64")
        of = apply(golden.ConvNet())
        values = trainability.jacobian_singular_values(of, variables, inputs)
        golden.assert_close(values, case["jsv"])
        golden.assert_close(trainability.summarise(values).mean, case["jsv_mean"])
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
    spectrum = trainability.summarise(jnp.array([[0.0, 0.0], [6.0, 2.0]]))
    assert float(spectrum.condition_number) == 3.0


# -- OrthP ---------------------------------------------------------------------------------------

MATRICES = [name for name in ORTHP if "weight" in ORTHP[name]]


@pytest.mark.parametrize("name", MATRICES)
def test_orthp_is_the_authors(name):
    case = ORTHP[name]
    with jax.enable_x64():
        kernel = golden.array(golden.kernel(case["weight"]), "float64")
        params = {"kernel": kernel, "bias": jnp.ones(3)}
        got = trainability.orthp(params, golden.one_layer(kernel.shape[-1]), gain=case["gain"])
        golden.assert_close(got["kernel"], golden.kernel(case["out"]))
        np.testing.assert_array_equal(got["bias"], 1)
    assert case["gain"] == pytest.approx({"linear": 1, "relu": math.sqrt(2)}[case["act"]])


@hypothesis.given(
    st.integers(0, 2**31 - 1),
    st.sampled_from([(3, 3, 2, 4), (2, 2, 1, 8), (1, 1, 2, 6), (7, 3), (3, 7)]),
)
@hypothesis.settings(max_examples=10)
def test_orthp_is_orthonormal_spans_the_same_and_is_stable(seed, shape):
    rng = np.random.default_rng(seed)
    with jax.enable_x64():
        kernel = jnp.asarray(rng.normal(size=shape))
        got = trainability.orthp({"kernel": kernel}, golden.one_layer(kernel.shape[-1]))["kernel"]
        rows, before = (np.asarray(k).reshape(-1, shape[-1]).T for k in (got, kernel))
        wide = rows.shape[0] < rows.shape[1]
        smaller = rows @ rows.T if wide else rows.T @ rows
        np.testing.assert_allclose(smaller, np.eye(len(smaller)), atol=1e-12)
        if wide:  # the same span of filters
            np.testing.assert_allclose(before @ rows.T @ rows, before, atol=1e-12)
        again = trainability.orthp({"kernel": got}, golden.one_layer(kernel.shape[-1]))["kernel"]
        np.testing.assert_allclose(again, got, atol=1e-12)


def test_orthp_of_a_kernel_without_full_rank_empties_no_filter():
    kernel = jnp.array([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    got = np.asarray(
        trainability.orthp({"kernel": kernel}, golden.one_layer(kernel.shape[-1]))["kernel"]
    )
    np.testing.assert_allclose(got.T @ got, np.eye(2), atol=1e-6)


def mlp7(widths, rng):
    """torch's default initialisation: uniform of size 1 / sqrt(fan-in)."""
    params, layers = {}, []
    for index, (fan_in, fan_out) in enumerate(zip(widths, widths[1:], strict=False)):
        bound = 1 / math.sqrt(fan_in)
        params[f"fc{index}"] = {
            "kernel": jnp.asarray(rng.uniform(-bound, bound, size=(fan_in, fan_out))),
            "bias": jnp.asarray(rng.uniform(-bound, bound, size=fan_out)),
        }
        layers.append(golden.dense(f"fc{index}", index, fan_out))
    return params, golden.untied(*layers)


def test_orthp_makes_the_seven_layer_linear_network_an_isometry():
    case = ORTHP["mlp7_linear_invariant"]
    with jax.enable_x64():
        params, channels = mlp7(case["widths"], np.random.default_rng(0))
        fresh = trainability.linear_singular_values(params, channels)
        values = trainability.linear_singular_values(trainability.orthp(params, channels), channels)
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
