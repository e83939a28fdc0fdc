"""Params, masks and scores that are split over devices: same results, and nothing gathered."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from test_training import noisy

import ntksap_jax as nts
from experiments.benchmark.tpu_compiler import collectives, num_bytes
from experiments.training import steps as training
from experiments.training.config import TrainingConfig
from ntksap_jax import _draws, _placement, _scores, criteria, masks, models, ntk, scopes, sharding

KEY = jax.random.key(1)


def mesh_of(data, model):
    return sharding.model_mesh(model, jax.devices()[: data * model])


NETWORKS = {
    "conv_bn": oracles.conv_bn(8),
    "relu_mlp": nts.linen(oracles.ReluMLP((16,), 8), (4,)),
}


def split(network, mesh):
    """The network with all its kernels split, small as they are."""
    rule = sharding.split_outputs(mesh, min_size=16)
    return sharding.shard_network(network, mesh, rule=rule)


@functools.cache  # Made once: compiled once.
def split_network(name, *shape):
    """A network on a mesh of that shape, and its params."""
    network = split(NETWORKS[name], mesh_of(*shape))
    return network, network.init(KEY)


def assert_lie_alike(tree, params):
    """Every leaf lies as the leaf of params at its path."""
    lying = masks.leaf_paths(params)
    for path, leaf in masks.leaf_paths(tree).items():
        assert leaf.sharding.is_equivalent_to(lying[path].sharding, leaf.ndim), path


# -- Placement -------------------------------------------------------------------------------------


def test_a_mesh_has_a_data_and_a_model_axis():
    mesh = sharding.model_mesh(2)
    assert dict(mesh.shape) == {"data": jax.device_count() // 2, "model": 2}
    assert set(mesh.axis_types) == {AxisType.Auto}
    for size in (0, 3, 2.0):
        with pytest.raises(ValueError, match=f"size: got {size}, expected a divisor of .*, 8"):
            sharding.model_mesh(size, jax.devices()[:8])


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((3, 3, 64, 64), PartitionSpec(None, None, None, "model")),
        ((3, 3, 64, 66), PartitionSpec(None, None, "model", None)),  # 66 outputs: not by four
        ((512, 10, 256, 1), PartitionSpec("model", None, None, None)),
        ((66, 67), PartitionSpec()),
        ((16, 255), PartitionSpec()),  # too small
        ((4096,), PartitionSpec("model")),
        ((), PartitionSpec()),
    ],
)
def test_outputs_are_split_where_the_devices_divide_them(shape, expected):
    rule = sharding.split_outputs(mesh_of(1, 4), min_size=4096)
    assert rule("any/kernel", shape) == expected


def test_a_rule_decides_by_path():
    def rule(path, shape):
        return PartitionSpec("model") if path == "layers_1/kernel" else PartitionSpec()

    model = nn.Sequential([nn.Dense(8), nn.Dense(4)])
    params = nts.linen(model, (4,)).init(KEY)
    placed = sharding.shard_params(params, mesh_of(2, 2), rule=rule)
    parts = jax.tree.map(lambda leaf: leaf.addressable_shards[0].data.shape, placed)
    assert parts["layers_0"] == {"bias": (8,), "kernel": (4, 8)}
    assert parts["layers_1"] == {"bias": (4,), "kernel": (4, 4)}


def test_a_spec_that_does_not_fit_names_the_leaf():
    params, mesh = {"a": {"w": jnp.ones((3, 4))}}, mesh_of(1, 2)
    for spec in (("rows",), ("model",), (None, None, "model")):
        with pytest.raises(ValueError, match=r"rule: returned .* for leaf 'a/w' of shape \(3, 4\)"):
            sharding.shard_params(params, mesh, rule=lambda *_, s=spec: PartitionSpec(*s))


def test_meshes_that_are_errors():
    def two_devices(name, kind=AxisType.Auto):
        return jax.make_mesh((2,), (name,), axis_types=(kind,), devices=jax.devices()[:2])

    params = {"w": jnp.ones((4, 4))}
    with pytest.raises(ValueError, match=r"mesh: has axes \('data',\) and none called 'model'"):
        sharding.shard_params(params, sharding.data_mesh())
    with pytest.raises(ValueError, match=r"mesh: has axes \('rows',\) and none called 'data'"):
        sharding.shard_batch(jnp.ones((4, 4)), two_devices("rows"))
    explicit = two_devices("model", AxisType.Explicit)
    error = "mesh: has axes of types .*Explicit.*, expected Auto"
    with pytest.raises(ValueError, match=error):
        sharding.shard_params(params, explicit)
    placed = jax.device_put(params, NamedSharding(explicit, PartitionSpec("model")))
    with pytest.raises(ValueError, match=error):
        nts.prune(KEY, placed, criteria.magnitude(), schedule=[0.5])


def test_params_of_a_users_own_mesh_stay_where_they_are():
    """Axes of other names, both over one kernel; the network knows nothing of them."""
    devices = jax.devices()[4:8]
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2, devices=devices)
    network = NETWORKS["relu_mlp"]
    score = criteria.ntk_sap(network, num_samples=4, batch_size=8)
    specs = {1: PartitionSpec(), 2: PartitionSpec("y", "x")}
    placed = jax.tree.map(
        lambda p: jax.device_put(p, NamedSharding(mesh, specs[p.ndim])), network.init(KEY)
    )
    mask, _ = nts.prune(KEY, placed, score, schedule=[0.5, 0.25])
    assert_lie_alike(mask, placed)
    np.testing.assert_array_equal(oracles.flat(mask), single("relu_mlp")[1])


# -- Results ---------------------------------------------------------------------------------------


@pytest.fixture(params=[_draws.LARGE, 0], ids=["drawn as vectors", "drawn in place"])
def large(request, monkeypatch):
    """What is small in a test is drawn as it is in a large network, or not."""
    monkeypatch.setattr(_draws, "LARGE", request.param)


def test_random_draws_are_the_same_on_any_mesh(large):
    """The random bits are; of normal numbers made of them the last bit is a matter of rounding."""
    mesh = mesh_of(2, 4)
    rule = sharding.split_outputs(mesh, min_size=16)
    shapes = {"a": jax.ShapeDtypeStruct((8, 16), jnp.uint32), "b": None, "c": jnp.zeros(3)}

    def bits(key):
        return _draws.random_like(key, shapes, lambda key, shape, _: jax.random.bits(key, shape))

    drawn = jax.jit(lambda key: sharding.shard_params(bits(key), mesh, rule=rule))(KEY)
    jax.tree.map(np.testing.assert_array_equal, drawn, bits(KEY))

    network = nts.linen(models.mlp(hidden=(16,), num_classes=8), (8,))
    drawn, expected = split(network, mesh).init(KEY), network.init(KEY)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=3e-7), drawn, expected)


def test_what_is_large_is_drawn_in_parts(monkeypatch):
    """The compiled draw of the weights knows no array of all of a kernel's 8 x 64 numbers."""
    monkeypatch.setattr(_draws, "LARGE", 8 * 64)
    network = split(nts.linen(models.mlp(hidden=(64,), num_classes=8), (8,)), mesh_of(1, 8))
    compiled = network.init.lower(KEY).compile()
    sizes = [num_bytes(shape) // 4 for shape in re.findall(r"[su]32\[[\d,]*\]", compiled.as_text())]
    assert 8 * 64 // 8 in sizes and max(sizes) < 8 * 64
    assert collectives(compiled.as_text()) == []


@functools.cache
def single(name, estimator=ntk.jvp):
    network = NETWORKS[name]
    params = network.init(KEY)
    score = criteria.ntk_sap(network, estimator=estimator, num_samples=4, batch_size=8)
    scores, _ = score(KEY, params, masks.create(params), None)
    mask, history = nts.prune(KEY, params, score, schedule=[0.5, 0.25])
    return oracles.flat(scores), oracles.flat(mask), [info.num_kept for info in history]


@pytest.mark.parametrize(
    ("name", "batch", "estimator", "shape"),
    [
        ("conv_bn", "whole", ntk.jvp, (1, 4)),
        ("relu_mlp", "shard_samples", ntk.jvp, (2, 4)),
        pytest.param("conv_bn", "whole", ntk.jvp, (1, 8), marks=pytest.mark.long),
        pytest.param("conv_bn", "shard_inputs", ntk.vjp, (2, 4), marks=pytest.mark.long),
    ],
)
def test_scores_and_masks_are_those_of_one_device(name, batch, estimator, shape):
    network, params = split_network(name, *shape)
    over_data = NamedSharding(mesh_of(*shape), PartitionSpec("data"))
    placement = {} if batch == "whole" else {batch: over_data}
    score = criteria.ntk_sap(network, estimator=estimator, num_samples=4, batch_size=8, **placement)
    expected, expected_mask, expected_counts = single(name, estimator)

    assert _placement.is_split(params)
    dense = masks.create(params)
    assert_lie_alike(dense, params)
    scores, _ = score(KEY, params, dense, None)
    assert_lie_alike(scores, params)
    found = oracles.flat(scores)
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)
    mask, history = nts.prune(KEY, params, score, schedule=[0.5, 0.25])
    assert_lie_alike(mask, params)
    assert [info.num_kept for info in history] == expected_counts
    np.testing.assert_array_equal(oracles.flat(mask), expected_mask)


def test_a_search_in_the_callers_jit_stays_split():
    network, params = split_network("relu_mlp", 2, 4)
    score = criteria.ntk_sap(network, num_samples=4, batch_size=8)

    @jax.jit
    def find(key):
        return nts.find_mask(key, network.init(key), score, schedule=[0.5, 0.25])[0]

    mask = find(KEY)
    assert _placement.is_split(mask)
    assert_lie_alike(mask, params)
    _, expected, _ = single("relu_mlp")
    np.testing.assert_array_equal(oracles.flat(mask), expected)


@pytest.mark.parametrize("make", [lambda _: criteria.random(), criteria.snip, criteria.synflow])
def test_other_criteria_follow_the_params(make):
    found = []
    batch = (jax.random.normal(KEY, (8, 4)), jnp.arange(8) % 3)
    whole = NETWORKS["relu_mlp"]
    for network, params in ((whole, whole.init(KEY)), split_network("relu_mlp", 2, 4)):
        mask, _ = nts.prune(KEY, params, make(network), schedule=[0.5, 0.25], batch=batch)
        found.append(mask)
    assert_lie_alike(found[1], params)
    np.testing.assert_array_equal(*map(oracles.flat, found))


def test_samples_over_the_axis_that_splits_the_params_are_an_error():
    network, params = split_network("relu_mlp", 2, 4)
    over = NamedSharding(mesh_of(2, 4), PartitionSpec(("data", "model")))
    score = criteria.ntk_sap(network, shard_samples=over)
    with pytest.raises(ValueError, match=r"shard_samples: .* over the axes \['model'\], which"):
        score(KEY, params, masks.create(params), None)


def test_a_score_gathers_activations_and_no_kernels(monkeypatch):
    monkeypatch.setattr(_draws, "LARGE", 256 * 256)
    network = nts.linen(models.mlp(hidden=(256, 256), num_classes=8), (8,))
    shapes = jax.eval_shape(network.init, KEY)
    weights = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    costs = []
    for devices in (2, 8):
        mesh = mesh_of(1, devices)
        params = sharding.shard_params(weights, mesh, rule=sharding.split_outputs(mesh))
        score = criteria.ntk_sap(split(network, mesh), num_samples=2, batch_size=8)
        compiled = jax.jit(score).lower(KEY, params, masks.create(params), None).compile()
        exchanged = collectives(compiled.as_text())
        # A few activations; a kernel is 4 * 256 * 256 bytes.
        assert 0 < max(exchanged) <= 3 * 4 * 8 * 256
        memory = compiled.memory_analysis().temp_size_in_bytes
        costs.append((sum(exchanged), memory, compiled.cost_analysis()["flops"]))
    (bytes_2, memory_2, flops_2), (bytes_8, memory_8, flops_8) = costs
    assert bytes_8 == bytes_2
    assert memory_8 < 0.5 * memory_2 and flops_8 < 0.5 * flops_2


# -- Selection -------------------------------------------------------------------------------------


AXES = {"a": "ppio", "b": "io"}
SPECS = {
    "outputs": {"a": PartitionSpec(None, None, None, "model"), "b": PartitionSpec(None, "model")},
    "inputs": {"a": PartitionSpec(None, None, "model"), "b": PartitionSpec("model")},
    "both": {"a": PartitionSpec(None, None, "data", "model"), "b": PartitionSpec("data", "model")},
}


def scores_and_mask(specs, *, distinct=None):
    """A convolution and a dense layer; with few distinct scores, there are ties everywhere."""
    rng = np.random.default_rng(0)
    scores = {"a": rng.normal(size=(3, 3, 32, 24)), "b": rng.normal(size=(64, 40))}
    if distinct:
        scores = {name: np.round(x * distinct) for name, x in scores.items()}
    scores = {name: jnp.asarray(x, jnp.float32) for name, x in scores.items()}
    mask = {name: jnp.asarray(rng.random(x.shape) < 0.7) for name, x in scores.items()}
    if specs is None:
        return scores, mask
    mesh = mesh_of(2, 4)
    return tuple(
        sharding.shard_params(tree, mesh, rule=lambda path, shape: specs[path])
        for tree in (scores, mask)
    )


@pytest.mark.parametrize(
    ("scope", "distinct", "place"),
    [
        (scopes.Global(), None, "both"),
        (scopes.Global(), 2, "both"),
        (scopes.Global(), 2, "outputs"),
        (scopes.Layer(), 2, "both"),
        (scopes.Filter(), 2, "both"),
        (scopes.NofM(2, 4), 2, "both"),
    ],
)
def test_selection_of_split_scores_is_exact_with_ties_too(scope, distinct, place):
    specs = SPECS[place]
    scores, mask = scores_and_mask(None, distinct=distinct)
    if isinstance(scope, scopes.NofM):
        mask = jax.tree.map(jnp.ones_like, mask)
    counts = scope.counts(mask, 0.5 if isinstance(scope, scopes.NofM) else 0.3, axes=AXES)
    expected, threshold = scope.keep_top_concrete(scores, mask, counts, axes=AXES)

    placed, _ = scores_and_mask(specs, distinct=distinct)
    mask = jax.tree.map(lambda m, s: jax.device_put(m, s.sharding), mask, placed)
    found, lowest = scope.keep_top_concrete(placed, mask, counts, axes=AXES)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert lowest == threshold
    assert_lie_alike(found, placed)


@pytest.mark.parametrize(
    ("scope", "place"), [(scopes.Global(), "both"), (scopes.Layer(), "inputs")]
)
def test_selection_exchanges_nothing_but_counts(scope, place):
    """The compiled program, the branch for ties included, knows all-reduces of a few numbers."""
    scores, mask = scores_and_mask(SPECS[place])
    keep_top = jax.jit(functools.partial(scope.keep_top, axes=AXES))
    lowered = keep_top.lower(scores, mask, scope.counts(mask, 0.3, axes=AXES))
    exchanged = collectives(lowered.compile().as_text())
    assert exchanged, "nothing is exchanged: is anything split?"
    assert max(exchanged) <= 64


def test_counts_and_checks_of_split_trees_are_those_of_whole_ones():
    scores, mask = scores_and_mask(SPECS["both"])
    whole_scores, whole = scores_and_mask(None)
    assert masks.num_kept(mask) == masks.num_kept(whole)
    assert masks.layer_densities(mask) == masks.layer_densities(whole)
    assert masks.digest(mask) == masks.digest(whole)
    _scores.check(scores, mask)
    for bad in (jnp.nan, jnp.inf):
        broken = scores | {"b": scores["b"].at[3, 5].set(bad)}
        with pytest.raises(ValueError, match="1 of 2560 entries of leaf 'b' are not finite"):
            _scores.check(broken, mask)


# -- Compilation -----------------------------------------------------------------------------------


def replicated(params):
    return sharding.replicate(params, sharding.data_mesh(jax.devices()[:4]))


def split_by_hand(params):
    """The network that draws weights in the search knows nothing of it."""
    mesh = mesh_of(2, 4)
    return sharding.shard_params(params, mesh, rule=sharding.split_outputs(mesh, min_size=1))


@pytest.mark.parametrize(
    ("place", "regrow"),
    [
        (replicated, False),
        (split_by_hand, True),
    ],
)
def test_later_rounds_compile_nothing(place, regrow):
    """Masks and sums lie in every round as in the first, which is also that of a mask just read."""
    network = NETWORKS["relu_mlp"]
    params = place(network.init(KEY))
    batch = (jax.random.normal(KEY, (8, 4)), jnp.arange(8) % 3)
    compiled_in = []
    with oracles.count_compilations() as compiled:
        nts.prune(
            KEY,
            params,
            criteria.force(network) if regrow else criteria.ntk_sap(network, batch_size=8),
            schedule=[0.5, 0.3, 0.2],
            mask=masks.create(network.init(KEY)) if regrow else None,
            batch=batch,
            regrow=regrow,
            on_round=lambda *_: compiled_in.append(len(compiled)),
        )
    first, *later = compiled_in
    assert first > 0 and later == [first] * len(later)


# -- Training --------------------------------------------------------------------------------------


NUM_STEPS = 20


def training_batches():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (NUM_STEPS, 16, 6, 6, 2), np.uint8)
    return images, rng.integers(0, 3, (NUM_STEPS, 16), np.int32)


@functools.cache
def training_setup():
    """A state with a random mask, the optimiser, and the step, noise and BatchNorm included."""
    model = oracles.ConvBN((8,))
    variables = model.init(KEY, jnp.zeros((1, 6, 6, 2)))
    config = TrainingConfig(epochs=4, batch_size=16, learning_rate=0.05, drop_epochs=(2,))
    optimizer = training.make_optimizer(config, steps_per_epoch=NUM_STEPS // 4)
    mask = oracles.random_mask(KEY, variables["params"])
    state = training.init_state(variables, optimizer, mask)
    return state, training.make_train_step(model, optimizer, noisy)


def train(data, model):
    """Returns the losses and the last state; params are split if `model` is more than 1."""
    mesh, losses = mesh_of(data, model), []
    state, train_step = training_setup()
    if model > 1:
        rule = sharding.split_outputs(mesh, min_size=16)
        state = sharding.shard_params(state, mesh, rule=rule)
    else:
        state = sharding.replicate(state, mesh)
    for batch in zip(*training_batches(), strict=True):
        state, metrics = train_step(KEY, state, *sharding.shard_batch(batch, mesh))
        losses.append(float(metrics.loss))
    return losses, state


def test_training_losses_do_not_depend_on_the_devices():
    """Nor on where the params are."""
    expected, one_device = train(1, 1)
    assert len(set(expected)) == NUM_STEPS
    losses, state = train(2, 4)
    assert _placement.is_split(state.params) and _placement.is_split(state.opt_state)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    weights = oracles.flat(one_device.params)
    np.testing.assert_allclose(oracles.flat(state.params), weights, rtol=1e-3, atol=1e-4)
