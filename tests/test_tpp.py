"""TPP's penalties, schedule and training against its authors' recorded arithmetic."""

import functools
import math

import flax.linen as nn
import golden_tpp as golden
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

from experiments.training import steps as training
from ntksap_jax import masks, structured
from ntksap_jax.structured import baselines, gram, tpp, tpp_presets

RECORDED = golden.load()
GRAMS = RECORDED["gram_penalty"]
PENALTIES = {
    "v5_tpp": jax.jit(jax.value_and_grad(gram.gram_penalty)),
    "v5_2_kernorth_for_pruning": jax.jit(jax.value_and_grad(baselines.orthogonality_for_pruning)),
}
gram_and_gradient = PENALTIES["v5_tpp"]


def penalty_of(channels, settings):
    return lambda params, keep, strength: tpp.penalty(
        params, channels, keep, strength=strength, settings=settings
    )


both_precisions = pytest.mark.parametrize("dtype", golden.DTYPES)
DOUBLE = "float64"
"""In which each formula is tested; the penalty and the schedule in single precision too."""


def double():
    return golden.precision(DOUBLE)


# -- Gram penalty --------------------------------------------------------------------------------


@both_precisions
@pytest.mark.parametrize("form", PENALTIES)
@pytest.mark.parametrize("name", GRAMS)
def test_gram_penalty_and_gradient_are_the_authors(name, form, dtype):
    case = GRAMS[name]
    with golden.precision(dtype):
        kernel = golden.array(golden.kernel(case["weight"]), dtype)
        keep = golden.keep(kernel.shape[-1], case["pruned"])
        loss, gradient = PENALTIES[form](kernel, keep)
        golden.assert_close(loss, case[form]["loss"], dtype)
        golden.assert_close(gradient, golden.kernel(case[form]["grad"]), dtype)


@pytest.mark.parametrize("name", GRAMS)
def test_paper_form_gram_matrix_and_decomposition(name):
    case = GRAMS[name]
    with double():
        kernel = golden.array(golden.kernel(case["weight"]), DOUBLE)
        keep = golden.keep(kernel.shape[-1], case["pruned"])
        golden.assert_close(jax.jit(gram.gram_matrix)(kernel, keep), case["gram"])
        of_sum = functools.partial(gram.gram_penalty, normalise="sum")
        paper = jax.jit(of_sum)(kernel, keep)
        golden.assert_close(paper, case["paper_form_frobenius_sq_unnormalised"])
        # What is penalised: exactly these entries, as the derivative with respect to G shows.
        squares = np.asarray(case["gram"]) ** 2 * np.asarray(case["mask_entries_penalised"])
        golden.assert_close(paper, squares.sum())
        mean, _ = gram_and_gradient(kernel, keep)
        golden.assert_close(mean, sum(case["decomposition"].values()))


def test_several_layers_add_up_under_one_weight():
    case = RECORDED["gram_penalty_multilayer"]
    with double():
        kernels = [golden.array(golden.kernel(c["weight"]), DOUBLE) for c in case["layers"]]
        params = {f"layer_{i}": {"kernel": k} for i, k in enumerate(kernels)}
        channels = golden.untied(
            *(golden.dense(f"layer_{i}", i, kernel.shape[-1]) for i, kernel in enumerate(kernels))
        )
        pruned = {f"layer_{i}": c["pruned"] for i, c in enumerate(case["layers"])}
        settings = tpp.Settings(gram_weight=case["lw_opp"], l2=())
        of = functools.partial(
            penalty_of(channels, settings), keep=golden.keep_of(channels, pruned)
        )
        value_and_gradient = jax.jit(jax.value_and_grad(of))
        value, gradient = value_and_gradient(params, strength=case["reg_now"])
        golden.assert_close(value, case["weighted"])
        unweighted, _ = value_and_gradient(params, strength=1 / case["lw_opp"])
        golden.assert_close(unweighted, case["sum_unweighted"])
        for got, want in zip(jax.tree.leaves(gradient), case["grads"], strict=True):
            golden.assert_close(got, golden.kernel(want))


kernels_and_keeps = st.tuples(
    st.integers(0, 2**31 - 1),
    st.sampled_from([(3, 3, 2, 5), (1, 1, 4, 3), (7, 6), (2, 9)]),
    st.lists(st.booleans(), min_size=9, max_size=9),
)


def draw(case):
    seed, shape, keep = case
    return np.random.default_rng(seed).normal(size=shape), np.array(keep[: shape[-1]])


@hypothesis.given(kernels_and_keeps)
@hypothesis.settings(max_examples=25)
def test_closed_form_gradient_and_invariances(case):
    """4/N² (M ∘ G) W; permuting filters with the mask, or flattening otherwise, changes nothing."""
    kernel, keep = draw(case)
    with jax.enable_x64():
        value, gradient = gram_and_gradient(kernel, keep)
        columns = kernel.reshape(-1, len(keep))
        penalised = 1.0 - np.outer(keep, keep)
        closed = 4 / len(keep) ** 2 * columns @ (penalised * (columns.T @ columns))
        np.testing.assert_allclose(gradient.reshape(closed.shape), closed, rtol=1e-9, atol=1e-12)
        order = np.random.default_rng(1).permutation(len(keep))
        rows = np.random.default_rng(2).permutation(len(columns))
        permuted = columns[rows][:, order].reshape(kernel.shape)
        np.testing.assert_allclose(gram_and_gradient(permuted, keep[order])[0], value, rtol=1e-12)
        assert gram_and_gradient(kernel * keep, keep)[0] == 0
        assert (value > 0) == (not keep.all())


# -- L2 and normalisation ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "channels"),
    [("apply_reg_conv_bn", golden.CONV_CHANNELS), ("apply_reg_mlp_bias", golden.LINEAR_CHANNELS)],
)
def test_applied_regularisation_is_the_authors(section, channels):
    case = RECORDED[section]
    with double():
        params, before, after = (
            golden.variables(case[name], DOUBLE)["params"]
            for name in ("params", "grads_before", "grads_after")
        )
        keep = golden.keep_of(channels, case["pruned"])
        gradient = jax.jit(jax.grad(penalty_of(channels, tpp.Settings(gram_weight=0.0))))(
            params, keep, case["reg_value"]
        )
        assert jax.tree.structure(gradient) == jax.tree.structure(after)
        jax.tree.map(golden.assert_close, jax.tree.map(jnp.add, before, gradient), after)


def test_penalty_in_half_precision_is_summed_in_float32():
    kernel = jnp.ones((3, 3, 8, 4), jnp.bfloat16)
    keep = {"kernel": np.array([True, False, True, True])}
    settings = tpp.Settings(gram_weight=1.0)
    of = functools.partial(penalty_of(golden.one_layer(4), settings), keep=keep, strength=1.0)
    value, gradient = jax.jit(jax.value_and_grad(of))({"kernel": kernel})
    assert value.dtype == jnp.float32 and gradient["kernel"].dtype == jnp.bfloat16
    assert float(value) == 7 * 72**2 / 16 + 36


# -- Schedule ------------------------------------------------------------------------------------


@both_precisions
@pytest.mark.parametrize("case", RECORDED["schedule"])
def test_schedule_is_the_authors(case, dtype):
    settings = tpp.Settings(
        update_interval=case["update_reg_interval"],
        increment=case["granularity"],
        ceiling=case["limit"],
    )
    end = case["first_stabilise_iter"]
    assert tpp.growth_steps(settings) == end
    with golden.precision(dtype):
        for step, want in case["samples_[iter,reg]"]:
            got = tpp.strength(step, settings)
            assert got.dtype == dtype
            np.testing.assert_allclose(got, want, rtol=1e-6)
            if step + 1 < end:  # held between refreshes
                assert tpp.strength(step + 1, settings) == got
        assert tpp.strength(end - 1, settings) < tpp.strength(end, settings)
        assert tpp.strength(end + 123_456, settings) == tpp.strength(end, settings)


def test_presets_take_as_many_steps_as_the_authors():
    steps = {name: tpp.num_steps(p.settings) for name, p in tpp_presets.PRESETS.items()}
    assert steps.pop("resnet50-imagenet") == 90_001
    assert set(steps.values()) == {110_001}


# -- Optimiser -----------------------------------------------------------------------------------


def test_sgd_arithmetic():
    case = RECORDED["sgd"]
    with double():
        optimizer = tpp_presets.sgd(
            case["lr"], momentum=case["momentum"], weight_decay=case["weight_decay"]
        )
        params = golden.array(case["p0"], DOUBLE)
        state = optimizer.init(params)
        for step in case["steps"]:
            gradient = golden.array(step["grad"], DOUBLE)
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            golden.assert_close(params, step["param_after"])
            [buffer] = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == params.shape]
            golden.assert_close(buffer, step["momentum_buf"])


def test_accuracy_is_the_authors_top_1():
    case = RECORDED["accuracy"]
    logits, labels = jnp.asarray(case["logits"], jnp.float32), jnp.asarray(case["target"])

    class Identity(nn.Module):
        def __call__(self, x, train=False):
            return x

    state = training.init_state({"params": {"kernel": jnp.ones((1, 1))}}, optax.sgd(0.1))
    eval_step = training.make_eval_step(Identity(), lambda images: images)
    totals = eval_step(state, logits, labels, jnp.ones(len(labels), bool))
    assert 100 * int(totals.num_correct) / len(labels) == pytest.approx(case["top1"])


@pytest.mark.parametrize("text", RECORDED["lr_schedule"])
def test_learning_rates_by_epoch(text):
    rates = {int(e): float(r) for e, r in (entry.split(":") for entry in text.split(","))}
    schedule = training.drops(rates[0], list(rates)[1:], steps_per_epoch=1)
    for epoch, want in RECORDED["lr_schedule"][text]:
        assert float(schedule(epoch)) == pytest.approx(want)
    recipes = tpp_presets.PRESETS.values()
    assert rates in [r.fine_tune_rates for r in recipes] + [
        r.fine_tune_rates_small for r in recipes
    ]


# -- The whole stage -----------------------------------------------------------------------------

CONV = RECORDED["trajectory_conv_bn"]
LINEAR = RECORDED["trajectory_mlp_linear_no_zero_out"]
BASE = tpp.Settings(
    gram_weight=CONV["hyper"]["lw_opp"],
    update_interval=CONV["hyper"]["update_reg_interval"],
    increment=CONV["hyper"]["granularity"],
    ceiling=CONV["hyper"]["limit"],
    stabilise_steps=CONV["hyper"]["stabilize_reg_interval"],
    zero_out_interval=CONV["hyper"]["zero_out_interval"],
)
VARIANTS = {
    "greg1_like_lw0_nobnreg": BASE._replace(gram_weight=0.0, l2=("kernel", "bias")),
    "no_bn_reg": BASE._replace(l2=("kernel", "bias")),
    "gram_only_no_weight_reg_no_bn_reg": BASE._replace(l2=()),
    "kernorth_for_pruning_scheme_5_2": BASE._replace(gram=baselines.orthogonality_for_pruning),
}


def train(case, settings):
    """Yields (t, variables after the forward pass, gradients of the loss, after the step).

    In double precision.
    """
    if case is CONV:
        model, channels, to_inputs = golden.ConvNet(), golden.CONV_CHANNELS, golden.images
    else:
        model, channels, to_inputs = golden.LinearNet(), golden.LINEAR_CHANNELS, golden.array
    variables = golden.variables(case["init"], DOUBLE)
    keep = golden.keep_of(channels, case["pruned"])
    hyper = case["hyper"]
    optimizer = tpp.regularise(
        tpp_presets.sgd(
            hyper["lr_prune"], momentum=hyper["momentum"], weight_decay=hyper["weight_decay"]
        ),
        channels,
        keep,
        settings,
    )
    batches = [(to_inputs(b["x"], DOUBLE), jnp.asarray(b["y"])) for b in case["batches"]]

    @jax.jit
    def step(variables, state, inputs, labels):
        def loss(params):
            logits, changed = model.apply(
                variables | {"params": params}, inputs, train=True, mutable=["batch_stats"]
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), changed.get("batch_stats", {})

        gradients, stats = jax.grad(loss, has_aux=True)(variables["params"])
        updates, state = optimizer.update(gradients, state, variables["params"])
        params = optax.apply_updates(variables["params"], updates)
        forward = {"params": variables["params"], "batch_stats": stats}
        return forward, gradients, {"params": params, "batch_stats": stats}, state

    state = optimizer.init(variables["params"])
    for t in range(case["last_iter"] + 1):
        forward, gradients, variables, state = step(variables, state, *batches[t % len(batches)])
        yield t, forward, gradients, variables
    assert int(state.step) == tpp.num_steps(settings)


def trained(case, settings):
    """Returns the variables after the last step."""
    return list(train(case, settings))[-1][-1]


def with_unbiased_variance(variables, t, images):
    """PyTorch stores the n/(n - 1) variance; both are linear recursions from 1."""

    def convert(path, leaf):
        if path[-1].key != "var":
            return leaf
        start, factor = 0.9 ** (t + 1), images / (images - 1)
        return start + factor * (leaf - start)

    stats = jax.tree_util.tree_map_with_path(convert, variables["batch_stats"])
    return variables | {"batch_stats": stats}


def assert_same_variables(got, recorded, dtype=DOUBLE):
    want = golden.variables(recorded, dtype)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(lambda g, w: golden.assert_close(g, w, dtype), got, want)


def test_seventeen_steps_are_the_authors():
    """Every snapshot, the final network, its outputs, and what is left when filters are cut."""
    snapshots = {snapshot["t"]: snapshot for snapshot in CONV["snapshots"]}
    pixels = np.asarray(CONV["batches"][0]["x"])[:, 0].size
    keep = golden.keep_of(golden.CONV_CHANNELS, CONV["pruned"])
    gram_gradient = jax.jit(jax.grad(penalty_of(golden.CONV_CHANNELS, BASE._replace(l2=()))))
    seen = set()
    with double():
        for t, forward, gradients, after in train(CONV, BASE):  # noqa: B007
            _, stage, strength = CONV["reg_per_iter"][t]
            assert float(tpp.strength(t, BASE)) == strength
            assert (t >= tpp.growth_steps(BASE)) == (stage == "stabilize_reg")
            if t not in snapshots:
                continue
            seen.add(t)
            recorded = snapshots[t]["params_before_step"]
            assert_same_variables(with_unbiased_variance(forward, t, pixels), recorded)
            if "grads_before_reg" in snapshots[t]:
                gram_only = gram_gradient(forward["params"], keep, strength)
                total = jax.tree.map(jnp.add, gradients, gram_only)
                want = golden.variables(snapshots[t]["grads_before_reg"], DOUBLE)["params"]
                jax.tree.map(golden.assert_close, total, want)
        assert seen == set(snapshots)
        final = with_unbiased_variance(after, t, pixels)
        assert_same_variables(final, CONV["final_dense_before_removal"])
        inputs = golden.images(CONV["test_x"], DOUBLE)
        logits = jax.jit(golden.ConvNet().apply)(final, inputs)
        golden.assert_close(logits, CONV["logits_dense_eval"])
        golden.assert_close(logits, CONV["logits_pruned_eval"])
    model, small = cut(golden.ConvNet(), final, golden.CONV_CHANNELS, keep)
    assert_same_variables(small, CONV["final_pruned"], "float32")
    shapes = {path.removeprefix("module."): s for path, s in CONV["pruned_shapes"].items() if s}
    want = golden.variables({k: np.zeros(s) for k, s in shapes.items()}, "float32")
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(jnp.shape, want)
    inputs = golden.images(CONV["test_x"], "float32")
    for narrow in (model, golden.ConvNet(features=(4, 3))):
        logits = jax.jit(narrow.apply)(small, inputs)
        golden.assert_close(logits, CONV["logits_pruned_eval"], "float32")


def cut(model, variables, channels, keep):
    """Models are traced, and made smaller, in single precision."""
    single = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), variables)
    return structured.shrink(model, single, channels, keep)


@pytest.mark.parametrize("name", VARIANTS)
def test_ablations_are_the_authors(name):
    runs = RECORDED["trajectory_conv_bn_variants"]["runs"]
    assert set(runs) == set(VARIANTS)
    pixels = np.asarray(CONV["batches"][0]["x"])[:, 0].size
    with double():
        after = trained(CONV, VARIANTS[name])
        final = with_unbiased_variance(after, CONV["last_iter"], pixels)
        assert_same_variables(final, runs[name]["final_dense_before_removal"])


def test_linear_network_without_setting_to_zero_is_the_authors():
    settings = BASE._replace(gram_weight=LINEAR["hyper"]["lw_opp"], zero_out_interval=None)
    keep = golden.keep_of(golden.LINEAR_CHANNELS, LINEAR["pruned"])
    with double():
        params = {"params": trained(LINEAR, settings)["params"]}
        want = golden.variables(LINEAR["final_dense_before_removal"], DOUBLE)["params"]
        jax.tree.map(golden.assert_close, params["params"], want)
        inputs = golden.array(LINEAR["test_x"], DOUBLE)
        golden.assert_close(golden.LinearNet().apply(params, inputs), LINEAR["logits_dense"])
    # Cut without having been zero, filters change the outputs: as the authors' did.
    model, small = cut(golden.LinearNet(), params, golden.LINEAR_CHANNELS, keep)
    assert_same_variables({**small, "batch_stats": {}}, LINEAR["final_pruned"], "float32")
    inputs = golden.array(LINEAR["test_x"], "float32")
    golden.assert_close(model.apply(small, inputs), LINEAR["logits_pruned"], "float32")


def test_linear_network_with_setting_to_zero_loses_nothing_when_cut():
    """Where the released code stops with an error: weights and biases become exactly 0."""
    keep = golden.keep_of(golden.LINEAR_CHANNELS, LINEAR["pruned"])
    with double():
        params = trained(LINEAR, BASE)["params"]
        inputs = golden.array(LINEAR["test_x"], DOUBLE)
        want = golden.LinearNet().apply({"params": params}, inputs)
    for path, kept in keep.items():
        layer = jax.device_get(params[path.removesuffix("/kernel")])
        assert not np.any(layer["kernel"][:, ~kept])
        assert not np.any(layer["bias"][~kept])
        assert np.all(layer["kernel"][:, kept] != 0)
    model, small = cut(golden.LinearNet(), {"params": params}, golden.LINEAR_CHANNELS, keep)
    inputs = golden.array(LINEAR["test_x"], "float32")
    golden.assert_close(model.apply(small, inputs), want, "float32")


def test_pruned_filters_of_the_trajectories_are_selected_from_the_initial_weights():
    ratios = structured.ratios(golden.CONV_CHANNELS, CONV["hyper"]["stage_pr"])
    of_linear = dict(zip(golden.LINEAR_CHANNELS.layers, LINEAR["hyper"]["pr"], strict=True))
    for case, channels, wanted in [
        (CONV, golden.CONV_CHANNELS, ratios),
        (LINEAR, golden.LINEAR_CHANNELS, of_linear),
    ]:
        params = golden.variables(case["init"], "float32")["params"]
        scores = jax.jit(lambda params, c=channels: structured.l1(params, c))(params)
        keep = structured.select(scores, wanted)
        want = {
            path: kept.tolist() for path, kept in golden.keep_of(channels, case["pruned"]).items()
        }
        assert {p: k.tolist() for p, k in keep.items() if not k.all()} == want
    assert CONV["layer_index"] == {
        path.removesuffix("/kernel"): layer.index
        for path, layer in golden.CONV_CHANNELS.layers.items()
    }


l2_gradient = jax.jit(jax.grad(penalty_of(golden.CONV_CHANNELS, tpp.Settings(gram_weight=0.0))))


@hypothesis.given(
    st.lists(st.booleans(), min_size=10, max_size=10), st.floats(0, 2), st.integers(0, 1000)
)
@hypothesis.settings(max_examples=5)
def test_terms_in_the_loss_are_terms_in_the_gradient(bits, strength, seed):
    """½λ Σ over pruned of squares in the loss = λ θ at the pruned entries of the gradient."""
    keep = {"conv1/kernel": np.array(bits[:6]), "conv2/kernel": np.array(bits[6:])}
    hypothesis.assume(all(kept.any() for kept in keep.values()))
    params = golden.variables(CONV["init"], "float32")["params"]
    params = jax.tree.map(lambda p: np.float32(np.asarray(p) + 0.01 * (seed % 7)), params)
    gradient = l2_gradient(params, keep, strength)
    for path, leaf in masks.leaf_paths(params).items():
        owner = path.split("/")[0].replace("bn", "conv")  # conv1 and bn1 share their filters
        pruned = ~keep.get(f"{owner}/kernel", np.ones(leaf.shape[-1], bool))
        want = np.float32(strength) * leaf * pruned
        np.testing.assert_allclose(masks.leaf_paths(gradient)[path], want, rtol=1e-6)


def test_one_compiled_step_serves_every_choice_of_filters_and_survives_donation():
    keeps = [golden.keep_of(golden.CONV_CHANNELS, {"conv1": [j]}) for j in (0, 3)]
    params = golden.variables(CONV["init"], "float32")["params"]
    settings = BASE._replace(update_interval=1, increment=1.0)
    traces = []

    @functools.partial(jax.jit, donate_argnums=1)
    def step(params, state):
        traces.append(1)
        gradients = jax.tree.map(jnp.ones_like, params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for keep in map(lambda k: {p: jnp.asarray(v) for p, v in k.items()}, keeps):
        optimizer = tpp.regularise(optax.adam(0.1), golden.CONV_CHANNELS, keep, settings)
        state, current = optimizer.init(params), params
        for _ in range(tpp.num_steps(settings)):
            current, state = step(current, state)
        pruned = ~np.asarray(keep["conv1/kernel"])
        assert not np.any(np.asarray(current["conv1"]["kernel"])[..., pruned])
        assert not np.any(np.asarray(current["bn1"]["scale"])[pruned])
        assert np.all(np.asarray(current["conv1"]["kernel"])[..., ~pruned])
    assert len(traces) == 1


def test_bias_behind_a_normalisation_is_left_as_it_is():
    """What is set to zero, and when: the layer of index 0 after one interval of 3 steps."""
    layer = golden.CONV_CHANNELS.layers["conv1/kernel"]._replace(bias="conv1/bias")
    start = {
        "conv1": {"kernel": jnp.ones((1, 6)), "bias": jnp.ones(6)},
        "bn1": {"scale": jnp.ones(6), "bias": jnp.ones(6)},
    }
    settings = tpp.Settings(
        increment=1.0, update_interval=1, l2=(), gram_weight=0.0, zero_out_interval=3,
        stabilise_steps=3,
    )  # fmt: skip
    keep = {"conv1/kernel": golden.keep(6, [2])}
    optimizer = tpp.regularise(optax.sgd(0.0), golden.untied(layer), keep, settings)
    params, state = start, optimizer.init(start)
    history = []

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(tpp.num_steps(settings)):
        params, state = step(params, state)
        history.append(params)
    early, late = history[-2:]
    jax.tree.map(np.testing.assert_array_equal, early, start)
    assert late["conv1"]["bias"].tolist() == [1] * 6
    assert late["bn1"]["bias"].tolist() == late["bn1"]["scale"].tolist() == [1, 1, 0, 1, 1, 1]
    assert late["conv1"]["kernel"].tolist() == [[1, 1, 0, 1, 1, 1]]


# -- Errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gram_weight": -1.0}, "gram_weight: got -1.0"),
        ({"gram_weight": math.nan}, "gram_weight: got nan"),
        ({"l2": ("weights",)}, "l2: got"),
        ({"l2": "kernel"}, "l2: got 'kernel'"),
        ({"update_interval": 0}, "update_interval: got 0"),
        ({"update_interval": 0.1}, "update_interval: got 0.1"),
        ({"increment": 0.0}, "increment: got 0.0"),
        ({"ceiling": math.inf}, "ceiling: got inf"),
        ({"zero_out_interval": 0}, "zero_out_interval: got 0"),
        ({"stabilise_steps": -1}, "stabilise_steps: got -1"),
        ({"stabilise_steps": 5}, "stabilise_steps: got 5, expected at least 6"),
    ],
)
def test_settings_out_of_range_raise(change, message):
    keep = golden.keep_of(golden.CONV_CHANNELS, CONV["pruned"])
    with pytest.raises(ValueError, match=message):
        tpp.regularise(optax.sgd(0.1), golden.CONV_CHANNELS, keep, BASE._replace(**change))


def test_params_that_do_not_fit_raise():
    keep = golden.keep_of(golden.CONV_CHANNELS, CONV["pruned"])
    optimizer = tpp.regularise(optax.sgd(0.1), golden.CONV_CHANNELS, keep, BASE)
    params = golden.variables(CONV["init"], "float32")["params"]
    with pytest.raises(ValueError, match="params: got None"):
        optimizer.update(params, optimizer.init(params))
    with pytest.raises(ValueError, match="params: have no leaf 'conv1/kernel'"):
        optimizer.init({"other": jnp.ones(3)})
    narrow = {**params, "conv1": {"kernel": jnp.ones((3, 3, 2, 5))}}
    with pytest.raises(ValueError, match=r"'conv1/kernel' has shape \(3, 3, 2, 5\), expected 6"):
        optimizer.init(narrow)
    with pytest.raises(ValueError, match="normalise: got 'max'"):
        gram.gram_penalty(jnp.ones((2, 2)), np.ones(2, bool), normalise="max")
    with pytest.raises(ValueError, match=r"keep: has shape \(3,\), expected \(2,\)"):
        gram.gram_penalty(jnp.ones((2, 2)), np.ones(3, bool))
