"""One contract for all criteria (list a new one and it is tested), and what sets each apart."""

import functools
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import ntksap_jax as nts
from ntksap_jax import _scores, criteria, masks, ntk, scopes
from ntksap_jax._draws import random_like
from ntksap_jax.criteria.ntk_sap import trace_and_gradient


@functools.cache  # Made once: its functions are compiled once.
def small(**options):
    return criteria.ntk_sap(oracles.conv_bn(), num_samples=2, batch_size=4, **options)


def user_criterion():
    """What a user writes: any function of this form is a criterion."""

    def score(key, params, mask, batch):
        del key, batch
        return masks.map_prunable(lambda m, p: m / (1 + jnp.abs(p)), mask, params), {}

    return score


def on_network(make, **options):
    return functools.partial(make, oracles.conv_bn(), **options)


LAYERS = {"Conv_0/kernel": 0.5, "Dense_0/kernel": 0.2}
CRITERIA = {
    "random": criteria.random,
    "erk": criteria.erk,
    "layerwise_random": functools.partial(criteria.layerwise_random, LAYERS),
    "magnitude": criteria.magnitude,
    "snip": on_network(criteria.snip),
    "snip micro-batches": on_network(criteria.snip, micro_batch_size=3),
    "iterative_snip": on_network(criteria.iterative_snip),
    "force": on_network(criteria.force),
    "grasp": on_network(criteria.grasp),
    "synflow": on_network(criteria.synflow),
    "synflow_l2": on_network(criteria.synflow_l2),
    "px": on_network(criteria.px),
    "inverted": lambda: criteria.inverted(criteria.magnitude()),
    "fresh_weights": lambda: criteria.fresh_weights(criteria.magnitude(), oracles.conv_bn()),
    "noise_inputs": lambda: criteria.noise_inputs(criteria.snip(oracles.conv_bn())),
    "ntk_sap": small,
    "ntk_sap finite_difference": functools.partial(
        small, estimator=ntk.finite_difference, calibrate="two_pass"
    ),
    "ntk_sap vjp": functools.partial(small, estimator=ntk.vjp),
    "ntk_sap vmap": functools.partial(small, vmap_samples=2),
    "ntk_sap given weights and data": functools.partial(small, reinit=False, inputs="data"),
    "user's own": user_criterion,
}
RANDOM = ("random", "erk", "ntk_sap", "fresh_weights", "noise_inputs")
"""Criteria that draw something at random; all others ignore the key."""
NEED_LABELS = ("snip", "iterative_snip", "force", "grasp")
NETWORK = oracles.conv_bn()
PARAMS = NETWORK.init(jax.random.key(0))
MASK = oracles.random_mask(jax.random.key(1), PARAMS)
BATCH = (jax.random.normal(jax.random.key(2), (4, 6, 6, 2)), jnp.arange(4) % 3)
KEY = jax.random.key(3)


@functools.cache  # Made once: compiled once.
def criterion(name):
    return CRITERIA[name]()


@pytest.fixture(params=CRITERIA)
def score(request):
    return criterion(request.param)


def test_scores_fit_the_mask_and_are_zero_where_pruned(score, request):
    scores, metrics = score(KEY, PARAMS, MASK, BATCH)
    _scores.check(scores, MASK)
    assert jax.tree.structure(scores) == jax.tree.structure(MASK)
    for path, leaf in masks.leaf_paths(scores).items():
        assert leaf.dtype == jnp.float32
        pruned = np.asarray(leaf)[~np.asarray(masks.leaf_paths(MASK)[path])]
        # FORCE ranks pruned weights too: they may come back.
        assert np.any(pruned) == ("[force]" in request.node.name), path
    assert all(jnp.shape(value) == () for value in metrics.values())


def test_the_key_decides(score, request):
    """Old-style keys are as good."""
    keys = (KEY, KEY, jax.random.PRNGKey(3), jax.random.key(4))
    first, again, legacy, other = (oracles.flat(score(k, PARAMS, MASK, BATCH)[0]) for k in keys)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, legacy)
    is_random = any(name in request.node.name for name in RANDOM)
    assert np.array_equal(first, other) != is_random


def test_arguments_are_left_alone(score):
    before = jax.tree.map(np.array, (PARAMS, MASK, BATCH))
    score(KEY, PARAMS, MASK, BATCH)
    chex.assert_trees_all_equal(before, (PARAMS, MASK, BATCH))


JITTED = [
    *("random", "layerwise_random", "snip micro-batches", "grasp", "synflow", "px"),
    *("noise_inputs", "ntk_sap finite_difference", "ntk_sap vmap"),
]


@pytest.mark.parametrize("name", JITTED)
def test_jit_gives_the_same_scores(name):
    score = criterion(name)
    eager, _ = score(KEY, PARAMS, MASK, BATCH)
    jitted, _ = jax.jit(score)(KEY, PARAMS, MASK, BATCH)
    eager, jitted = oracles.flat(eager), oracles.flat(jitted)
    # Two compilations round differently, and a finite difference feels it where a ReLU flips.
    assert np.linalg.norm(eager - jitted) <= 1e-3 * np.linalg.norm(eager)


TRACED = [
    *("random", "layerwise_random", "snip", "synflow", "px", "fresh_weights", "noise_inputs"),
    *("ntk_sap finite_difference", "ntk_sap vmap"),
]


@pytest.mark.parametrize("name", TRACED)
def test_the_search_is_traced_wherever_the_caller_wants_it(name):
    """Under `jit`, `vmap`, `shard_map` with its check and without, `pmap`; with x64 enabled."""
    score = criterion(name)

    def find(key, params):
        """Closes over the labels, as callers do."""
        return nts.find_mask(key, params, score, schedule=[0.5, 0.3], batch=BATCH)[0]

    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    spread = functools.partial(jax.shard_map, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    keys = jax.random.split(KEY, 2)
    stacked = jax.tree.map(lambda p: jnp.stack([p, p]), PARAMS)
    checked = jax.eval_shape(spread(jax.vmap(find)), keys, stacked)
    unchecked = jax.eval_shape(
        spread(jax.vmap(lambda key: find(key, PARAMS)), check_vma=False), keys
    )
    with jax.enable_x64(True):
        mapped = jax.eval_shape(jax.pmap(lambda key: find(key, PARAMS)), keys)
    wanted = jax.tree.map(lambda m: ((2, *m.shape), m.dtype), MASK)
    for mask in (checked, unchecked, mapped):
        assert jax.tree.map(lambda m: (m.shape, m.dtype), mask) == wanted


def test_count_is_exact_after_selection(score):
    dense = masks.create(PARAMS)
    scores, _ = score(KEY, PARAMS, dense, BATCH)
    mask = scopes.Global().select(scores, dense, density=0.3)
    assert masks.num_kept(mask) == round(0.3 * masks.num_prunable(mask))


@pytest.mark.parametrize("name", ["snip", "force", "grasp", "synflow", "px", "ntk_sap"])
def test_products_are_of_float32_unless_the_caller_chooses(name):
    """On TPUs, where products are of bfloat16 otherwise."""
    score = criterion(name)
    for chosen, expected in ((None, "HIGHEST"), ("high", "HIGH")):
        with jax.default_matmul_precision(chosen):
            program = jax.make_jaxpr(lambda *a: score(*a))(KEY, PARAMS, MASK, BATCH)
        found = re.findall(r"Precision\.(\w+)|precision=(high\w*)", str(program))
        assert {(one or other).upper() for one, other in found} == {expected}


@pytest.mark.parametrize(
    ("batch", "error", "match"),
    [
        (None, ValueError, r"batch: got None, expected \(inputs, labels\)"),
        ((BATCH[0], None), ValueError, "batch: labels are None, but needed"),
        ((BATCH[0], BATCH[1][:3]), ValueError, r"lengths \[3, 4\], expected one label for each"),
        ((BATCH[0], BATCH[1] + 1), ValueError, "labels range from 1 to 3, expected 0 to 2"),
        ((BATCH[0], jnp.ones((4, 3))), ValueError, "labels are float32 of shape"),
        ((BATCH[0], [0, 1, 2, 0]), TypeError, "batch: holds 0, expected arrays with an axis"),
        ((BATCH[0][:0], BATCH[1][:0]), ValueError, "batch: has no examples"),
    ],
)
def test_labels_that_are_none_or_no_class_numbers(batch, error, match):
    for name in NEED_LABELS:
        with pytest.raises(error, match=match):
            criterion(name)(KEY, PARAMS, MASK, batch)


@pytest.mark.parametrize("name", ["snip", "grasp", "px", "synflow"])
def test_scores_of_half_precision_params_are_float32(name):
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    scores, _ = criterion(name)(KEY, half, MASK, BATCH)
    whole, _ = criterion(name)(KEY, PARAMS, MASK, BATCH)
    scores, whole = oracles.flat(scores).astype(np.float32), oracles.flat(whole)
    scores, whole = (leaf / np.linalg.norm(leaf) for leaf in (scores, whole))
    assert np.linalg.norm(scores - whole) < 0.2


def test_px_needs_inputs_but_no_labels():
    score = criterion("px")
    with pytest.raises(ValueError, match="batch: got None"):
        score(KEY, PARAMS, MASK, None)
    with pytest.raises(ValueError, match=r"batch: inputs have shape \(4, 6, 6\)"):
        score(KEY, PARAMS, MASK, (BATCH[0][..., 0], None))
    without, _ = score(KEY, PARAMS, MASK, (BATCH[0], None))
    np.testing.assert_array_equal(
        oracles.flat(without), oracles.flat(score(KEY, PARAMS, MASK, BATCH)[0])
    )


@pytest.mark.parametrize("name", ["snip", "force", "grasp", "px", "synflow", "ntk_sap"])
def test_option_errors_of_all_criteria(name):
    make = getattr(criteria, name)
    with pytest.raises(TypeError, match="network: got ConvBN, expected a Network"):
        make(oracles.ConvBN())
    for size in (0, 2.5) if name not in ("synflow", "ntk_sap") else ():
        with pytest.raises(ValueError, match=f"micro_batch_size: got {size}"):
            make(NETWORK, micro_batch_size=size)
    if name in ("snip", "force", "grasp"):
        with pytest.raises(ValueError, match="statistics: got 'batch', expected one of"):
            make(NETWORK, statistics="batch")


def test_a_search_compiles_once(score):
    """Rounds, masks, densities and weights are arguments: the first round compiles for all."""
    schedule = np.geomspace(0.8, 0.3, 4)
    nts.prune(KEY, PARAMS, score, schedule=schedule[:1], batch=BATCH)
    with oracles.count_compilations() as compiled:
        nts.prune(KEY, PARAMS, score, schedule=schedule, batch=BATCH)
    assert compiled == []


def test_compilations_are_counted():
    with oracles.count_compilations() as compiled:
        jax.jit(lambda x: x * 3 - 1)(jnp.ones(7))
    assert compiled


@pytest.mark.parametrize("name", ["ntk_sap", "ntk_sap finite_difference"])
def test_ntk_sap_is_the_absolute_sum_of_its_samples(name):
    """|Σ| over samples, not Σ| |; one `vmap` of all samples is the loop over them."""
    scores, metrics = criterion(name)(KEY, PARAMS, MASK, None)
    estimator = ntk.jvp if name == "ntk_sap" else ntk.finite_difference

    @jax.jit
    def sample(weights, inputs, key):
        estimate, unbiased = functools.partial(estimator, key), name != "ntk_sap"
        return trace_and_gradient(
            NETWORK, weights, MASK, inputs, estimate=estimate, unbiased=unbiased
        )

    traces, gradients = [], []
    for keys in jax.random.split(KEY, (2, 3)):
        inputs = random_like(keys[1], jax.ShapeDtypeStruct((4, 6, 6, 2), jnp.float32))
        trace, gradient = sample(NETWORK.init(keys[0]), inputs, keys[2])
        traces.append(trace)
        gradients.append(oracles.flat(gradient))
    want = np.abs(np.sum(gradients, axis=0)) * oracles.flat(MASK)
    tolerance = {"rtol": 1e-3, "atol": 1e-4 * want.max()}
    np.testing.assert_allclose(oracles.flat(scores), want, **tolerance)
    np.testing.assert_allclose(metrics["trace"], np.mean(traces), rtol=1e-4)
    if name == "ntk_sap":
        together, _ = criterion("ntk_sap vmap")(KEY, PARAMS, MASK, None)
        np.testing.assert_allclose(oracles.flat(together), want, **tolerance)


def test_reinit_ignores_the_given_weights_and_its_absence_uses_them():
    other = jax.tree.map(lambda p: 2 * p + 1, PARAMS)
    for score, same in ((small(), True), (small(reinit=False, inputs="data"), False)):
        scores = [oracles.flat(score(KEY, params, MASK, BATCH)[0]) for params in (PARAMS, other)]
        assert np.array_equal(*scores) == same


@pytest.mark.parametrize("vmap_samples", [1, 2])
def test_reinit_by_a_number_mixes_fresh_and_given_kernels(vmap_samples):
    """√r · fresh + √(1 - r) · given at the kernels: an "estimator" that sums them shows it."""

    def init(key):
        noise = 1e-9 * jax.random.normal(key, (2, 3))
        return {"kernel": 3 + noise, "bias": 5 + noise[0]}

    network = nts.plain(init, lambda p, x: x @ p["kernel"] + p["bias"], (2,))
    given = {"kernel": jnp.full((2, 3), 7.0), "bias": jnp.zeros(3)}
    score = criteria.ntk_sap(
        network,
        estimator=lambda key, fn, weights: jnp.sum(weights["kernel"]) + 100 * jnp.sum(fn(weights)),
        inputs=lambda key, size: jnp.zeros((size, 2)),
        batch_size=1,
        num_samples=2,
        vmap_samples=vmap_samples,
        reinit=0.2,
    )
    _, metrics = score(KEY, given, masks.create(given), None)
    mixed = np.sqrt(0.2) * 3 + np.sqrt(0.8) * 7
    # Biases are not prunable, and fresh.
    np.testing.assert_allclose(metrics["trace"], 6 * mixed + 100 * 3 * 5, rtol=1e-5)


def test_inputs_may_be_data_or_a_function():
    of_data = small(reinit=False, inputs="data")
    of_function = small(reinit=False, inputs=lambda key, size: BATCH[0][:size])
    data, function = (oracles.flat(s(KEY, PARAMS, MASK, BATCH)[0]) for s in (of_data, of_function))
    np.testing.assert_array_equal(data, function)
    other, _ = of_data(KEY, PARAMS, MASK, (BATCH[0][::-1] ** 2, None))
    assert not np.allclose(data, oracles.flat(other), rtol=0.1)


def test_half_precision_sums_in_float32():
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    scores, metrics = small(reinit=False, inputs="data")(KEY, half, MASK, BATCH)
    assert {leaf.dtype for leaf in jax.tree.leaves((scores, metrics))} == {jnp.dtype("float32")}


def test_output_fn_decides_what_the_ntk_is_of():
    """The NTK of 3 f has nine times the trace; that of one logit is not that of all."""
    _, one = small()(KEY, PARAMS, MASK, None)
    _, three = small(output_fn=lambda logits: 3 * logits)(KEY, PARAMS, MASK, None)
    np.testing.assert_allclose(three["trace"], 9 * one["trace"], rtol=1e-4)
    _, first = small(output_fn=lambda logits: logits[:, 0])(KEY, PARAMS, MASK, None)
    assert first["trace"] < one["trace"]


def test_random_is_uniform():
    dense = {"a": jnp.ones((300, 200), bool), "b": jnp.ones((400, 100), bool)}
    scores, _ = criteria.random()(KEY, None, dense, None)
    values = oracles.flat(scores)
    assert values.min() > 0
    np.testing.assert_allclose(np.histogram(values, 10, (0, 1))[0], 10_000, rtol=0.05)
    for density in masks.layer_densities(
        scopes.Global().select(scores, dense, density=0.2)
    ).values():
        assert density == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_samples": 0}, "num_samples"),
        ({"batch_size": 0}, "batch_size"),
        ({"vmap_samples": 2}, "vmap_samples: got 2, expected a divisor of num_samples=5"),
        ({"num_samples": 2.0}, "num_samples: got 2.0"),
        ({"inputs": "nose"}, "inputs: got 'nose'"),
        ({"inputs": None}, "inputs: got None"),
        ({"inputs": np.ones(3)}, "inputs: got array"),
        ({"reinit": 1.5}, "reinit: got 1.5"),
        ({"reinit": None}, "reinit: got None"),
        ({"calibrate": "none"}, "calibrate: got 'none'"),
    ],
)
def test_ntk_sap_option_errors(options, match):
    with pytest.raises(ValueError, match=match):
        criteria.ntk_sap(NETWORK, **options)


def test_ntk_sap_argument_type_errors():
    with pytest.raises(TypeError, match="estimator: got 'jvp'"):
        criteria.ntk_sap(NETWORK, estimator="jvp")
    tokens = nts.linen(nn.Embed(10, 4), (5,), dtype=jnp.int32)
    with pytest.raises(ValueError, match="'noise' is Gaussian, but the network takes int32"):
        criteria.ntk_sap(tokens)


def test_ntk_sap_call_errors():
    with pytest.raises(ValueError, match="batch: got None"):
        small(reinit=False, inputs="data")(KEY, PARAMS, MASK, None)
    with pytest.raises(TypeError, match=r"batch: got .*expected \(inputs, labels\)"):
        small(reinit=False, inputs="data")(KEY, PARAMS, MASK, BATCH[0])
    with pytest.raises(ValueError, match="params: leaf 'BatchNorm_0/bias' is .*bfloat16"):
        half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
        small()(KEY, half, MASK, None)
    with pytest.raises(ValueError, match="'Dense_0/kernel' has shape"):
        wrong = PARAMS | {"Dense_0": {"kernel": jnp.ones((1, 1)), "bias": jnp.ones(1)}}
        small()(KEY, wrong, MASK, None)
    with pytest.raises(ValueError, match="outputs are not finite"):
        small()(KEY, jax.tree.map(lambda p: p * jnp.nan, PARAMS), MASK, None)
