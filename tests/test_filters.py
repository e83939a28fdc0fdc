"""Scores, ratios, budgets and rounds: recorded selections and costs, derivatives, properties."""

import functools

import flax.linen as nn
import golden_tpp as golden
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from hypothesis import strategies as st

import ntksap_jax as nts
from ntksap_jax import criteria, masks, models, schedules, structured
from ntksap_jax.structured import (
    by_gate,
    channels,
    filter_selection,
    filters,
    l1,
    select,
    select_global,
    to_mask,
    tpp,
    tpp_presets,
)

RECORDED = golden.load()
SELECTION = RECORDED["selection"]
COST = RECORDED["cost"]


class Chain(nn.Module):
    """Three dense layers of 5, 4 and 3 filters, and the output layer."""

    features: tuple[int, ...] = (5, 4, 3)

    @nn.compact
    def __call__(self, x):
        for index, features in enumerate(self.features):
            x = nn.relu(nn.Dense(features, name=f"layer_{index}")(x))
        return nn.Dense(2, name="out")(x)


class Residual(nn.Module):
    """A residual stream that two convolutions of 4 filters write to; another reads it."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 3), use_bias=False, name="stem")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="stem_bn")(x))
        y = nn.Conv(4, (3, 3), use_bias=False, name="inner")(x)
        y = nn.relu(nn.BatchNorm(use_running_average=not train, name="bn")(y))
        x = nn.relu(x + nn.Conv(4, (3, 3), name="outer")(y))
        return nn.Dense(3, name="fc")(x.mean((1, 2)))


CHAIN = structured.trace(Chain(), (6,))
PATHS = [path for path, layer in CHAIN.layers.items() if layer.removable]
RESIDUAL = structured.trace(Residual(), (5, 5, 2))
STREAM = ("stem/kernel", "outer/kernel")


def kept(keep):
    return sum(int(np.sum(k)) for k in keep.values())


# -- Recorded selections -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["conv_6x3x3x3", "linear_5x4"])
def test_l1_scores_and_selections_are_the_authors(name):
    case = SELECTION[name]
    with jax.enable_x64():
        kernel = golden.array(golden.kernel(case["weight"]), "float64")
        scores = l1({"kernel": kernel}, golden.one_layer(kernel.shape[-1]))
        golden.assert_close(scores["kernel"], case["score_mean_abs"])
    ascending = np.argsort(scores["kernel"]).tolist()
    tested = [key for key in case if key.startswith("pr_")]
    for key in tested:
        keep = select(scores, {"kernel": float(key.removeprefix("pr_"))})
        keep = keep.get("kernel", np.ones(len(ascending), bool))
        pruned = case[key]["pruned_in_ascending_score_order"]
        assert [j for j in ascending if not keep[j]] == pruned
        stay = case[key]["kept_in_ascending_score_order"]
        assert [j for j in ascending if keep[j]] == stay
    assert tested


def test_numbers_of_filters_are_multiples_after_all_rounds():
    model = nn.Sequential([nn.Dense(24), nn.Dense(24), nn.Dense(24), nn.Dense(10)])
    channels = structured.trace(model, (24,))
    params = {f"layers_{i}": {"kernel": np.random.default_rng(i).random((24, n), np.float32)}
              for i, n in enumerate((24, 24, 24, 10))}  # fmt: skip
    keep = structured.prune(
        *(jax.random.key(1), params, l1, channels),
        schedule=[0.5, 0.25],
        cost="flops",
        multiple_of=4,
    )
    assert {int(kept.sum()) % 4 for kept in keep.values()} == {0}
    whole, left = (structured.cost(channels, k).flops for k in ({}, keep))
    assert left <= 0.25 * whole


def test_numbers_of_pruned_filters_are_the_authors():
    for row in SELECTION["num_pruned_table"]:
        assert filter_selection.num_pruned(row["n"], row["pr"]) == row["num_pruned"], row


@pytest.mark.parametrize("name", ["name_matching_resnet56", "name_matching_vgg19"])
def test_ratios_by_name_are_the_authors(name):
    case = SELECTION[name]
    layers = [golden.dense(module, index, 16) for index, module in enumerate(case["pr"])]
    got = structured.ratios(golden.untied(*layers), case["pattern"], skip=list(case["skip"]))
    assert got == {f"{module}/kernel": ratio for module, ratio in case["pr"].items()}


def test_ratios_by_index_are_the_authors():
    case = SELECTION["index_numbers_mlp7"]
    layers = [golden.dense(module, index, 100) for index, module in enumerate(case["pr"])]
    patterns = {}
    for entry in case["stage_pr"].strip("[]").split(","):
        indices, ratio = entry.split(":")
        first, _, last = indices.partition("-")
        patterns[range(int(first), int(last or first) + 1)] = float(ratio)
    assert list(structured.ratios(golden.untied(*layers), patterns).values()) == case["parsed"]
    assert case["parsed"] == list(case["pr"].values())


# -- Recorded costs ------------------------------------------------------------------------------


PRESETS = {
    "resnet56-cifar10": (models.resnet56(shortcut="pad"), (32, 32, 3), "resnet56_cifar10"),
    "vgg19-cifar100": (models.vgg19_bn(), (32, 32, 3), "vgg19_cifar100"),
    "mlp-linear": (models.linear_mlp(), (32, 32, 1), "mlp_7_linear_mnist"),
}


@functools.cache
def traced(preset):
    return structured.trace(*PRESETS[preset][:2])


def keep_at(preset, ratio):
    """The paper's pruning at a ratio: only how many filters stay matters for the cost."""
    recipe, found = tpp_presets.PRESETS[preset], traced(preset)
    patterns = dict.fromkeys(recipe.patterns, ratio)
    ratios = structured.ratios(found, patterns, skip=recipe.skip)
    rng = np.random.default_rng(0)
    scores = {path: rng.random(layer.num_filters) for path, layer in found.layers.items()}
    return select(scores, ratios)


@pytest.mark.parametrize("preset", PRESETS)
def test_costs_are_the_authors(preset):
    for text, want in COST[PRESETS[preset][2]].items():
        keep = keep_at(preset, float(text))
        costs = [structured.cost(traced(preset), k) for k in (None, keep)]
        assert [cost.flops for cost in costs] == want.get("flops_2x_mac", want.get("flops"))
        if "params_conv_linear" in want:
            assert [cost.layer_params for cost in costs] == want["params_conv_linear"]
        params = want.get("params_all_incl_bn", want.get("params"))
        assert [cost.params for cost in costs] == params
        assert round(costs[0].flops / costs[1].flops, 2) == want["speedup"]
        numbers = {path: int(k.sum()) for path, k in keep.items()}
        if "kept_conv1_per_stage" in want:
            blocks = [numbers[f"block_{i}/conv1/kernel"] for i in range(27)]
            assert blocks == [n for n in want["kept_conv1_per_stage"] for _ in range(9)]
        if "kept_filters" in want:
            layers = traced(preset).layers.values()
            filters_left = [numbers.get(layer.kernel, layer.num_filters) for layer in layers]
            assert filters_left == want["kept_filters"]


def test_layer_order_and_shapes_of_resnet56_are_the_authors():
    found = traced("resnet56-cifar10")

    def ours(name):
        if name in ("conv1", "linear"):
            return {"conv1": "conv/kernel", "linear": "fc/kernel"}[name]
        stage, block, conv = name.removeprefix("layer").split(".")
        return f"block_{9 * (int(stage) - 1) + int(block)}/{conv}/kernel"

    for name, index in COST["resnet56_layer_index"].items():
        assert found.layers[ours(name)].index == index
    assert len(found.layers) == COST["resnet56_n_learnable"]
    assert len(COST["vgg19_layers"]) == len(traced("vgg19-cifar100").layers)
    removed = channels.removed_channels(found, keep_at("resnet56-cifar10", 0.9))
    for name, shape in COST["resnet56_shapes_pr0.9"].items():
        path = f"params/{ours(name.removesuffix('.weight'))}"
        indices = channels.kept_indices(found, path, removed)
        left = [
            size if index is None else len(index)
            for index, size in zip(indices, found.shapes[path], strict=True)
        ]
        assert [left[-1], left[-2], *left[:-2]] == shape


def test_kept_counts_of_the_minimum_and_the_multiple():
    scores = {"kernel": np.arange(20.0)}
    for ratio, options, want in [
        (0.9, {}, 2),
        (0.9, {"min_filters": 5}, 5),
        (0.9, {"multiple_of": 8}, 8),
        (0.5, {"multiple_of": 8}, 16),
        (0.1, {"multiple_of": 8}, 20),
        (0.9, {"min_filters": 9, "multiple_of": 8}, 16),
    ]:
        keep = select(scores, {"kernel": ratio}, **options)["kernel"]
        assert keep.tolist() == [False] * (20 - want) + [True] * want


# -- Gates ---------------------------------------------------------------------------------------

NETWORK = nts.linen(Residual(), (5, 5, 2), train=False)
VARIABLES = jax.jit(Residual().init)(jax.random.key(0), np.ones((1, 5, 5, 2), np.float32))
# Scales and shifts of their own, so that no gate is without effect.
PARAMS = jax.tree.map(
    lambda p: jnp.asarray(p + 0.1 * np.cos(np.arange(p.size).reshape(p.shape)), p.dtype),
    VARIABLES["params"],
)
STATS = VARIABLES["batch_stats"]
MASK = oracles.random_mask(jax.random.key(1), PARAMS, density=0.8)
BATCH = (np.random.default_rng(2).standard_normal((6, 5, 5, 2), np.float32), np.arange(6) % 3)


def relaxed_by(gates):
    """The mask with every filter multiplied by its channel's gate."""

    def gate(path, m, p):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if m is None:
            return None
        numbers = channels.filter_channels(RESIDUAL, name)
        factors = jnp.where(numbers >= 0, gates[numbers], 1.0)
        return m.astype(p.dtype) * factors

    return jax.tree_util.tree_map_with_path(gate, MASK, PARAMS, is_leaf=lambda leaf: leaf is None)


def assert_is_gate_derivative(scores, objective):
    want = np.abs(jax.jit(jax.grad(objective))(jnp.ones(RESIDUAL.num_channels)))
    for path, layer in RESIDUAL.layers.items():
        if layer.removable:
            numbers = channels.filter_channels(RESIDUAL, path)
            np.testing.assert_allclose(
                scores[path], want[numbers], rtol=1e-3, atol=1e-4 * want.max()
            )


def test_snip_by_gate_is_the_derivative_of_the_loss():
    """The residual stream's two layers are tied: one gate for each of its channels."""
    assert structured.groups(RESIDUAL) == [STREAM, ("inner/kernel",)]
    signed, unsigned = (
        jax.jit(criteria.snip(NETWORK, signed=signed))(None, PARAMS, MASK, BATCH)[0]
        for signed in (True, False)
    )
    np.testing.assert_allclose(
        np.abs(oracles.flat(signed)), oracles.flat(unsigned), rtol=1e-5, atol=1e-9
    )
    assert oracles.flat(signed).min() < 0

    def loss(gates):
        logits = NETWORK.apply_train(masks.apply(relaxed_by(gates), PARAMS), BATCH[0])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, BATCH[1]))

    assert_is_gate_derivative(by_gate(signed, RESIDUAL), loss)


def test_ntk_sap_by_gate_is_the_derivative_of_the_trace():
    """By the dense Jacobian's trace, of which the criterion's estimate is made exact."""
    inputs = BATCH[0][:2]

    def exact(key, fn, weights):
        del key
        jacobian = jax.jacrev(fn)(weights)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(jacobian))

    # With fn = f(m ⊙ ·), the Jacobian by the weights is J diag(m).
    options = {
        "estimator": exact,
        "num_samples": 1,
        "reinit": False,
        "inputs": lambda key, size: inputs[:size],
        "batch_size": 2,
    }
    key = jax.random.key(0)
    score = criteria.ntk_sap(NETWORK, signed=True, **options)
    signed, _ = jax.jit(score)(key, PARAMS, MASK, None)
    assert oracles.flat(signed).min() < 0

    def trace(gates):
        return oracles.dense_trace(NETWORK, PARAMS, relaxed_by(gates), inputs)

    assert_is_gate_derivative(by_gate(signed, RESIDUAL), trace)


# -- One threshold -------------------------------------------------------------------------------

chain_scores = st.integers(0, 2**31 - 1).map(
    lambda seed: {
        path: np.random.default_rng([seed, index]).random(CHAIN.layers[path].num_filters)
        for index, path in enumerate(PATHS)
    }
)


@hypothesis.given(chain_scores, st.floats(0.3, 1.0))
def test_a_density_keeps_exactly_so_many_and_the_best(scores, density):
    keep = select_global(scores, CHAIN, density=density)
    assert list(keep) == PATHS
    assert kept(keep) == round(density * 12)
    best = {path: np.argmax(scores[path]) for path in PATHS}
    assert all(keep[path][index] for path, index in best.items())
    # But for the best of each layer, whatever stays is better than whatever goes.
    stay = [s for p in PATHS for j, s in enumerate(scores[p]) if keep[p][j] and j != best[p]]
    gone = [s for p in PATHS for j, s in enumerate(scores[p]) if not keep[p][j]]
    assert min(stay, default=1) > max(gone, default=0)


@hypothesis.given(
    chain_scores, st.floats(0.4, 1.0), st.sampled_from(["flops", "params"]), st.integers(1, 2)
)
def test_a_budget_holds_and_no_smaller_network_was_taken_than_needed(scores, part, cost, floor):
    dense = getattr(structured.cost(CHAIN), cost)
    keep = select_global(scores, CHAIN, budget=part * dense, cost=cost, min_filters=floor)
    assert getattr(structured.cost(CHAIN, keep), cost) <= part * dense
    assert all(k.sum() >= floor for k in keep.values())
    same = select_global(scores, CHAIN, density=part, cost=cost, min_filters=floor)
    np.testing.assert_equal(same, keep)
    gone = [(scores[p][j], p, j) for p in PATHS for j in range(len(scores[p])) if not keep[p][j]]
    if gone:
        _, path, index = max(gone)
        more = {p: k.copy() for p, k in keep.items()}
        more[path][index] = True
        assert getattr(structured.cost(CHAIN, more), cost) > part * dense


@hypothesis.given(chain_scores, st.floats(0.6, 1.0), st.integers(1, 4), st.integers(1, 4))
def test_multiples_and_floors(scores, density, multiple, floor):
    try:
        keep = select_global(
            scores, CHAIN, density=density, multiple_of=multiple, min_filters=floor
        )
    except ValueError as error:
        assert "cannot be reached" in str(error)
        return
    assert kept(keep) <= round(density * 12)
    for path in PATHS:
        count, total = int(keep[path].sum()), len(keep[path])
        assert count >= min(floor, total)
        assert count % multiple == 0 or count == total
        lowest = min(scores[path][keep[path]])
        assert np.all(scores[path][~keep[path]] < lowest)


@hypothesis.given(chain_scores, chain_scores)
def test_what_was_pruned_stays_pruned(first, second):
    before = select_global(first, CHAIN, density=0.7)
    after = select_global(second, CHAIN, density=0.4, keep=before)
    assert all(np.all(before[path] >= after[path]) for path in PATHS)
    assert kept(after) == round(0.4 * 12)
    np.testing.assert_equal(select_global(second, CHAIN, density=1.0, keep=before), before)


def test_equal_scores_keep_what_comes_first():
    scores = {path: np.ones(CHAIN.layers[path].num_filters) for path in PATHS}
    keep = select_global(scores, CHAIN, density=8 / 12)
    assert [k.tolist() for k in keep.values()] == [
        [True] * 5,
        [True, True, False, False],
        [True, False, False],
    ]
    keep = select(scores, dict.fromkeys(PATHS, 0.5))
    assert [int(k.sum()) for k in keep.values()] == [2, 2, 1]
    assert all(k[0] for k in keep.values())


def test_a_budget_of_measured_time():
    """Any function of the choice: here one that costs nothing of the first layer."""
    scores = {path: np.arange(CHAIN.layers[path].num_filters, 0, -1.0) for path in PATHS}
    calls = []

    def seconds(keep):
        calls.append(1)
        return 0.001 * kept({p: keep[p] for p in PATHS[1:]} if keep else dict.fromkeys(PATHS, [7]))

    keep = select_global(scores, CHAIN, budget=0.004, cost=seconds)
    assert seconds(keep) == pytest.approx(0.004)
    assert len(calls) <= 7


def test_tied_layers_lose_the_same_filters():
    rng = np.random.default_rng(0)
    removable = [path for path, layer in RESIDUAL.layers.items() if layer.removable]
    scores = {path: jnp.asarray(rng.random(4)) for path in removable}
    with pytest.raises(ValueError, match="are tied to others, but have other scores. Give tied"):
        select_global(scores, RESIDUAL, density=0.5)
    tied = filters.tie(scores, RESIDUAL)
    for path in STREAM:
        np.testing.assert_allclose(tied[path], sum(scores[p] for p in STREAM), rtol=1e-6)
    keep = select_global(tied, RESIDUAL, density=0.5)
    assert len({tuple(keep[path]) for path in STREAM}) == 1
    assert kept({path: k for path, k in keep.items() if path not in STREAM[1:]}) == 4
    np.testing.assert_equal(
        {path: structured.expand(RESIDUAL, keep)[path] for path in keep}, dict(keep)
    )


# -- Rounds --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "options"),
    [
        (criteria.grasp(NETWORK), {"batch": BATCH, "absolute": False}),
        (criteria.synflow(NETWORK), {}),
    ],
    ids=["grasp", "synflow"],
)
def test_rounds_prune_down_to_a_part_of_the_flops(score, options):
    seen = []
    schedule = schedules.exponential(0.4, rounds=2)
    keep = structured.prune(
        jax.random.key(0),
        PARAMS,
        score,
        RESIDUAL,
        schedule=schedule,
        cost="flops",
        on_round=lambda number, keep: seen.append((number, keep)),
        **options,
    )
    dense = structured.cost(RESIDUAL).flops
    for (_, after), density in zip(seen, schedule, strict=True):
        assert structured.cost(RESIDUAL, after).flops <= density * dense
        structured.expand(RESIDUAL, after)
    assert [number for number, _ in seen] == [1, 2]
    assert all(np.all(seen[0][1][path] >= seen[1][1][path]) for path in keep)
    np.testing.assert_equal(keep, seen[-1][1])


def test_one_round_is_a_ranking_of_tied_sums_or_means():
    """A criterion's scores are added up; L1's means too, where filters are tied."""
    for score, number in ((criteria.magnitude(), jnp.sum), (l1, jnp.mean)):
        keep = structured.prune(jax.random.key(0), PARAMS, score, RESIDUAL, schedule=[0.5])
        scores = {
            path: number(jnp.abs(leaf), axis=tuple(range(leaf.ndim - 1)))
            for path, leaf in masks.leaf_paths(PARAMS).items()
            if path in RESIDUAL.layers
        }
        tied = filters.tie(scores, RESIDUAL)
        np.testing.assert_equal(keep, select_global(tied, RESIDUAL, density=0.5))
    np.testing.assert_equal(keep, select_global(l1(PARAMS, RESIDUAL), RESIDUAL, density=0.5))


def test_a_density_alone_is_twenty_rounds_of_a_criterion_and_one_of_a_filter_score():
    for score, rounds in ((criteria.magnitude(), 20), (l1, 1)):
        seen = []
        structured.prune(
            *(jax.random.key(0), PARAMS, score, RESIDUAL, 0.5),
            on_round=lambda number, keep, seen=seen: seen.append(number),
        )
        assert seen == list(range(1, rounds + 1))
    for options in ({}, {"density": 0.5, "schedule": [0.5]}):
        with pytest.raises(ValueError, match="density, schedule: pass exactly one"):
            structured.prune(jax.random.key(0), PARAMS, l1, RESIDUAL, **options)


def test_prune_model_is_the_dense_network_with_the_removed_filters_masked():
    """And costs no more than the budget."""
    model, key = Residual(), jax.random.key(0)
    variables = {"params": PARAMS, "batch_stats": STATS}
    small, fewer = structured.prune_model(
        key, model, variables, l1, 0.4, input_shape=(5, 5, 2), train=False
    )
    cost = structured.cost(structured.trace(small, (5, 5, 2), train=False))
    assert cost.flops <= 0.4 * structured.cost(RESIDUAL).flops
    keep = structured.prune(key, PARAMS, l1, RESIDUAL, 0.4, cost="flops")
    assert cost == structured.cost(RESIDUAL, keep)
    dense = structured.zero_out(variables, RESIDUAL, keep)
    inputs = BATCH[0]
    got, want = jax.jit(lambda x: (small.apply(fewer, x), model.apply(dense, x)))(inputs)
    np.testing.assert_allclose(got, want, atol=1e-5)


# -- Choices -------------------------------------------------------------------------------------


def test_masks_of_filters():
    keep = {"stem/kernel": golden.keep(4, [1]), "inner/kernel": golden.keep(4, [2, 3])}
    mask = to_mask(PARAMS, RESIDUAL, keep)
    masks.check(mask, PARAMS)
    assert set(masks.leaf_paths(mask)) == set(RESIDUAL.layers)
    for path, leaf in masks.leaf_paths(mask).items():
        want = np.broadcast_to(keep.get(path, np.ones(leaf.shape[-1], bool)), leaf.shape)
        np.testing.assert_array_equal(leaf, want)
    further = to_mask(PARAMS, RESIDUAL, keep, mask=MASK)
    both = masks.map_prunable(lambda a, b: a & b, mask, MASK)
    assert masks.digest(further) == masks.digest(both)


def test_magnitudes_of_kept_and_pruned():
    kernel = jnp.array([[4.0, -1.0, 2.0], [-2.0, 0.0, 2.0]])
    measure = jax.jit(lambda p, k: tpp.magnitudes(p, golden.one_layer(3), k))
    got = measure({"kernel": kernel}, {"kernel": golden.keep(3, [1])})["kernel"]
    assert (float(got.kept), float(got.pruned)) == (2.5, 0.5)
    got = measure({"kernel": kernel}, {"kernel": golden.keep(3, [])})["kernel"]
    assert (float(got.kept), float(got.pruned)) == (pytest.approx(11 / 6), 0.0)


# -- Errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patterns", "options", "error", "message"),
    [
        ({"conv_*": 0.5}, {}, ValueError, "patterns: 'conv_\\*' matches no layer. The layers are"),
        ({9: 0.5}, {}, ValueError, "patterns: 9 matches no layer"),
        ({"layer_0": 0.5}, {"skip": ["stem"]}, ValueError, "skip: 'stem' matches no layer"),
        ({"layer_0": 0.5}, {"skip": "layer_0"}, TypeError, "skip: got 'layer_0', expected a list"),
        ({"layer_0": 1.0}, {}, ValueError, "patterns: ratio 1.0 for 'layer_0', expected .* cut"),
        ({"layer_0": -0.1}, {}, ValueError, "patterns: ratio -0.1 for 'layer_0'"),
        ({"layer_0": "half"}, {}, ValueError, "patterns: ratio 'half'"),
        ({"*": 0.5}, {}, ValueError, "layer 'out/kernel' gets ratio 0.5, but its filters can"),
        ({0.5: 0.5}, {}, TypeError, "patterns: got 0.5, expected a path pattern"),
    ],
)
def test_bad_patterns_raise(patterns, options, error, message):
    with pytest.raises(error, match=message):
        structured.ratios(CHAIN, patterns, **options)


@pytest.mark.parametrize(
    ("ratios", "options", "message"),
    [
        ({"other": 0.5}, {}, "ratios: layer 'other' has no scores"),
        ({"kernel": 1}, {}, "ratios: ratio 1 for layer 'kernel'"),
        ({"kernel": 0.5}, {}, "scores: those of 'kernel' are not all finite"),
        ({"kernel": 0.5}, {"min_filters": 0}, "min_filters: got 0"),
        ({"kernel": 0.5}, {"multiple_of": 1.5}, "multiple_of: got 1.5"),
    ],
)
def test_bad_ratios_and_scores_raise(ratios, options, message):
    with pytest.raises(ValueError, match=message):
        select({"kernel": np.array([1.0, np.nan])}, ratios, **options)


def initial(model, shape):
    return jax.jit(model.init)(jax.random.key(0), np.ones((1, *shape), np.float32))


SCORES = {path: np.ones(CHAIN.layers[path].num_filters) for path in PATHS}


@pytest.mark.parametrize(
    ("scores", "options", "error", "message"),
    [
        (SCORES, {}, ValueError, "density, budget: pass exactly one"),
        (SCORES, {"density": 0.5, "budget": 3}, ValueError, "density, budget: pass exactly one"),
        (SCORES, {"density": 0.0}, ValueError, "density: got 0.0"),
        (SCORES, {"density": 1.5}, ValueError, "density: got 1.5"),
        (SCORES, {"density": 0.2}, ValueError, "density: a cost of 2 cannot be reached"),
        (SCORES, {"budget": 10, "cost": "flops"}, ValueError, "budget: a cost of 10 cannot be"),
        (SCORES, {"budget": np.nan}, ValueError, "budget: a cost of nan cannot be reached"),
        (SCORES, {"density": 0.5, "cost": "time"}, TypeError, "cost: got 'time'"),
        (SCORES | {"x": np.ones(2)}, {"density": 0.5}, ValueError, "scores: 'x' is no kernel"),
        ({PATHS[0]: np.ones(3)}, {"density": 0.5}, ValueError, r"has shape \(3,\), expected \(5,"),
        ({"out/kernel": np.ones(2)}, {"density": 0.5}, ValueError, "no layer with scores is rem"),
        ({PATHS[0]: np.full(5, np.inf)}, {"density": 0.5}, ValueError, "are not all finite"),
    ],
)
def test_bad_budgets_raise(scores, options, error, message):
    with pytest.raises(error, match=message):
        select_global(scores, CHAIN, **options)


@pytest.mark.parametrize(
    ("factor", "message"),
    [(0, "all zero in leaf 'hidden_0/kernel'"), (np.nan, "20 of 20 entries of leaf 'hidden_0/k")],
)
def test_scores_that_rank_nothing_raise(factor, message):
    model = models.mlp((4,), num_classes=3)
    channels, variables = structured.trace(model, (5,)), initial(model, (5,))

    def score(key, params, mask, batch):
        scores = jax.tree.map(lambda keep: jnp.ones(keep.shape), mask)
        scores["hidden_0"]["kernel"] *= factor
        return scores, None

    with pytest.raises(ValueError, match=message):
        structured.prune(jax.random.key(0), variables["params"], score, channels, 0.5)


def test_messages_say_what_stays_whole():
    model = models.mlp((4,), num_classes=3)
    channels, variables = structured.trace(model, (5,)), initial(model, (5,))
    args = (jax.random.key(0), variables["params"], structured.l1, channels, 0.01)
    with pytest.raises(ValueError, match=r"1 of 2 layers stay whole \(fc/kernel: they are the mod"):
        structured.prune(*args, cost="flops")
    with pytest.raises(ValueError, match='Pass {"params": ...'):
        structured.prune_model(
            jax.random.key(0), model, variables["params"], structured.l1, input_shape=(5,)
        )


def test_params_of_another_model_raise():
    with pytest.raises(ValueError, match="params: have no leaf 'layer_0/kernel'"):
        l1(PARAMS, CHAIN)
    with pytest.raises(ValueError, match="derivatives: have no leaf 'layer_0/kernel'"):
        by_gate(PARAMS, CHAIN)
    other = {f"layer_{i}": {"kernel": jnp.ones((3, 9))} for i in range(3)}
    with pytest.raises(ValueError, match=r"'layer_0/kernel' has shape \(3, 9\), expected 5 filt"):
        l1(other, CHAIN)
