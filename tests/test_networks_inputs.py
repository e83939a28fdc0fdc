"""What goes into a network and what comes out of it: several inputs, several outputs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ntksap_jax as nts
from ntksap_jax import connectivity, criteria, masks
from ntksap_jax.criteria import _inputs

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (4, 3))


# -- Outputs ---------------------------------------------------------------------------------------


class Both(nn.Module):
    """Returns its features beside the logits."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Dense(4)(x)))
        return {"features": x, "logits": nn.Dense(2)(x)}


BOTH = nts.linen(Both(), (3,))


def logits_of(outputs):
    return outputs["logits"]


NEED_OUTPUTS = {
    "ntk_sap": criteria.ntk_sap,
    "snip": criteria.snip,
    "iterative_snip": criteria.iterative_snip,
    "force": criteria.force,
    "grasp": criteria.grasp,
    "synflow": criteria.synflow,
    "synflow_l2": criteria.synflow_l2,
    "px": criteria.px,
    "connectivity": lambda network: connectivity.analyse(network, None),
}


@pytest.mark.parametrize("make", NEED_OUTPUTS.values(), ids=NEED_OUTPUTS)
def test_nothing_is_computed_of_all_outputs_together_unasked(make):
    match = r"'features': shape \(2, 4\).*'logits': shape \(2, 2\).*output_fn="
    with pytest.raises(ValueError, match=match):
        make(BOTH)


def test_output_fn_chooses_in_all_ways_to_normalise():
    network = BOTH
    chosen = nts.linen(Both(), (3,), output_fn=logits_of)
    params = network.init(KEY)

    @jax.jit
    def both(params):
        def functions(network):
            calibrated = network.calibrate(params, X)
            return network.apply, network.apply_train, network.apply_running, calibrated

        pairs = zip(functions(network), functions(chosen), strict=True)
        return [(logits_of(fn(params, X)), choosing(params, X)) for fn, choosing in pairs]

    for want, found in both(params):
        np.testing.assert_array_equal(found, want)
    for criterion in (criteria.ntk_sap(network, output_fn=logits_of), criteria.synflow(chosen)):
        assert callable(criterion)
    assert criteria.snip(network, loss_fn=lambda outputs, labels: outputs["logits"][:, 0])
    with pytest.raises(ValueError, match="output_fn: cannot be applied.*The model returns 'feat"):
        nts.linen(Both(), (3,), output_fn=lambda outputs: outputs["other"])
    with pytest.raises(TypeError, match="output_fn: got 'logits', expected a function"):
        nts.linen(Both(), (3,), output_fn="logits")


# -- Inputs ----------------------------------------------------------------------------------------


class Padded(nn.Module):
    """Takes token numbers, and which of them count."""

    @nn.compact
    def __call__(self, tokens, mask, train=True):
        x = nn.Embed(5, 4)(tokens) * mask[..., None]
        return nn.Dense(2)(x.sum(1))


TOKENS = jax.ShapeDtypeStruct((3,), jnp.int32)
PADDED = {"tokens": TOKENS, "mask": (3,)}


def tokens(key, count):
    return jax.random.randint(key, (count, 3), 0, 5)


class DiffusionStep(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x, time):
        return self.layer(x) * jnp.cos(time)[:, None]


def test_inputs_by_name_and_by_position():
    network = nts.linen(Padded(), PADDED, train=False)
    params = network.init(KEY)
    inputs = {"tokens": tokens(KEY, 4), "mask": X}
    got = jax.jit(network.apply)(params, inputs)
    want = Padded().apply({"params": params}, inputs["tokens"], inputs["mask"])
    np.testing.assert_allclose(got, want, 1e-5, 1e-6)
    network = nts.nnx(DiffusionStep, ((3,), ()))
    params = network.init(KEY)
    got = jax.jit(network.apply)(params, (X, jnp.zeros(4)))
    np.testing.assert_allclose(got, X @ params["layer"]["kernel"] + params["layer"]["bias"], 1e-5)
    assert nts.flops.count(network) == {"layer/kernel": 18}


def test_scores_from_noise_where_floating_and_functions_where_not():
    network = nts.linen(Padded(), PADDED)
    drawn = _inputs.draw(network, {"tokens": tokens}, KEY, 50)
    assert drawn["tokens"].dtype == jnp.int32 and int(drawn["tokens"].max()) == 4
    assert drawn["mask"].shape == (50, 3) and 0.8 < float(drawn["mask"].std()) < 1.2
    score = criteria.ntk_sap(network, inputs={"tokens": tokens}, batch_size=4)
    params = jax.eval_shape(network.init, KEY)
    scores, _ = jax.eval_shape(score, KEY, params, masks.create(params), None)
    assert scores["Dense_0"]["kernel"].shape == (4, 2)


def test_errors_about_several_inputs():
    network = nts.linen(Padded(), PADDED)
    with pytest.raises(ValueError, match="input 'tokens' is int32.*inputs={'tokens': lambda key"):
        criteria.ntk_sap(network)
    with pytest.raises(ValueError, match="takes no 'ids'; its inputs are tokens, mask"):
        criteria.ntk_sap(network, inputs={"ids": tokens})
    with pytest.raises(
        ValueError, match=r"'mask' is drawn with shape \(5, 3, 1\), expected \(5, 3\)"
    ):
        _inputs.draw(network, {"tokens": tokens, "mask": lambda k, n: jnp.ones((n, 3, 1))}, KEY, 5)
    with pytest.raises(ValueError, match=r"inputs: 'mask' is drawn with shape None"):
        _inputs.draw(network, lambda key, n: {"tokens": tokens(key, n)}, KEY, 5)
    params = jax.eval_shape(network.init, KEY)
    batch = ({"tokens": jnp.ones((2, 3), int), "mask": jnp.ones((2, 4))}, jnp.zeros(2, int))
    with pytest.raises(ValueError, match=r"batch: input 'mask' is of shape \('N', 4\), expected"):
        criteria.snip(network)(KEY, params, masks.create(params), batch)
    with pytest.raises(TypeError, match="input_shape: got 3, expected .* dict or a tuple of such"):
        nts.linen(Padded(), {"tokens": TOKENS, "mask": 3})
    by_position = nts.linen(Padded(), (TOKENS, (3,)))
    with pytest.raises(ValueError, match="input 0 is int32.*a function .* returns all inputs"):
        criteria.ntk_sap(by_position)


def test_px_on_tokens_says_what_to_do_next():
    """Not to make a network of tokens, which it is."""
    model = nn.Sequential([nn.Embed(5, 4), nn.Dense(2)])
    network = nts.linen(model, (3,), dtype=jnp.int32)
    params = jax.eval_shape(network.init, KEY)
    with pytest.raises(ValueError, match=r"embedded inputs: .*linen\(model, \(length, features\)"):
        criteria.px(network)(KEY, params, masks.create(params), (jnp.ones((2, 3), int), None))
