"""What the axes of kernels mean: of known layers, of stacks, and what follows from it."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

import ntksap_jax as nts
from ntksap_jax import _forms, axes, criteria, masks, ntk, scopes

KEY = jax.random.key(0)
HEADS = {f"{name}/kernel": "iio" if name == "out" else "ioo" for name in ("query", "key", "value")}


def kernels(network):
    return {path: word for path, word in axes.of(network).items() if path.endswith("kernel")}


# -- Layers as they are documented -----------------------------------------------------------------

IMAGE, TOKENS = (6, 6, 4), (5, 4)
LAYERS = [
    (nn.Dense(3), TOKENS, {"": "io"}),
    (nn.DenseGeneral((3, 2)), TOKENS, {"": "ioo"}),
    (nn.DenseGeneral(3, axis=(-2, -1)), TOKENS, {"": "iio"}),
    (nn.Einsum((5, 4, 3), "bni,nio->bno"), TOKENS, {"": "sio"}),
    (nn.Einsum((4, 3, 2), "bni,iho->bnho"), TOKENS, {"": "ioo"}),
    (nn.Einsum((3, 4), "bni,oi->bno"), TOKENS, {"": "oi"}),
    (nn.Conv(3, (3,)), TOKENS, {"": "pio"}),
    (nn.Conv(8, (3, 3), feature_group_count=4), IMAGE, {"": "ppio"}),
    (nn.ConvTranspose(3, (2, 3)), IMAGE, {"": "ppio"}),
    (nn.ConvTranspose(3, (2, 3), transpose_kernel=True), IMAGE, {"": "ppoi"}),
    (nn.ConvLocal(3, (2, 2)), IMAGE, {"": "ssio"}),
    (nn.MultiHeadDotProductAttention(2), TOKENS, HEADS | {"out/kernel": "iio"}),
    (nn.RNN(nn.OptimizedLSTMCell(3)), TOKENS, {f"cell/i{gate}": "io" for gate in "figo"}),
    (nn.RNN(nn.GRUCell(3)), TOKENS, {f"cell/h{gate}": "io" for gate in "rzn"}),
    (nn.RNN(nn.ConvLSTMCell(3, (2, 2))), (3, *IMAGE), {"cell/ih": "ppio", "cell/hh": "ppio"}),
]


@pytest.mark.parametrize(("layer", "shape", "wanted"), LAYERS, ids=lambda x: type(x).__name__)
def test_layers_of_linen(layer, shape, wanted):
    found = kernels(nts.linen(layer, shape))
    for path, word in wanted.items():
        assert found[path if "kernel" in path else f"{path}/kernel".lstrip("/")] == word


NNX_LAYERS = [
    (functools.partial(nnx.Linear, 4, 3), TOKENS, {"kernel": "io"}),
    (functools.partial(nnx.LinearGeneral, 4, (3, 2)), TOKENS, {"kernel": "ioo"}),
    (functools.partial(nnx.Einsum, "bni,iho->bnho", (4, 3, 2)), TOKENS, {"kernel": "ioo"}),
    (functools.partial(nnx.Conv, 4, 3, (3, 3)), IMAGE, {"kernel": "ppio"}),
    (functools.partial(nnx.ConvTranspose, 4, 3, (2, 3)), IMAGE, {"kernel": "ppio"}),
    (functools.partial(nnx.MultiHeadAttention, 2, 4, decode=False), TOKENS, HEADS),
]


@pytest.mark.parametrize(("make", "shape", "wanted"), NNX_LAYERS, ids=lambda x: str(x)[:40])
def test_layers_of_nnx(make, shape, wanted):
    found = kernels(nts.nnx(lambda rngs: make(rngs=rngs), shape))
    assert {path: found[path] for path in wanted} == wanted


def of_function(apply, shape=(4,), **leaves):
    params = {name: jnp.ones(size) for name, size in leaves.items()}
    return axes.of(nts.plain(lambda key: params, apply, shape))


def test_kernels_are_followed_to_where_they_are_used():
    def indexed(p, x):
        return x @ p["w"][0] @ p["w"][1]

    def unstacked(p, x):
        first, second = jnp.unstack(p["w"], axis=1)
        return x @ first @ second

    def sliced(p, x):
        for i in range(2):
            x = x @ jax.lax.dynamic_index_in_dim(p["w"], i, axis=1, keepdims=False)
        return x

    def normed(p, x):
        return x @ (p["g"] * p["w"] / jnp.linalg.norm(p["w"], axis=0))

    def reshaped(p, x):
        jax.debug.print("{}", p["w"])
        return x @ p["w"].reshape(4, 6)

    def learned(p, x):  # A kernel that is applied to queries which are learned.
        return jax.nn.softmax((p["tokens"] @ p["kernel"]) @ x[..., None], axis=-1)[..., 0]

    assert of_function(indexed, w=(2, 4, 4)) == {"w": "sio"}
    assert of_function(sliced, w=(4, 2, 4)) == of_function(unstacked, w=(4, 2, 4)) == {"w": "iso"}
    assert of_function(normed, w=(4, 3), g=(3,))["w"] == "io"
    assert of_function(reshaped, w=(2, 2, 3, 2)) == {"w": "iioo"}
    assert of_function(lambda p, x: x @ p["w"].T, w=(3, 4)) == {"w": "oi"}
    assert of_function(learned, kernel=(3, 4), tokens=(5, 3))["kernel"] == "io"
    unnamed = lambda p, x: learned({"kernel": p["wq"], "tokens": p["latents"]}, x)  # noqa: E731
    assert "?" in of_function(unnamed, wq=(3, 4), latents=(5, 3))["wq"]
    table = lambda p, x: p["table"][x.astype(int)]  # noqa: E731
    assert of_function(table, table=(7, 3)) == {"table": "io"}


def test_the_first_use_of_a_kernel_counts_if_it_is_used_transposed_too():
    tied = lambda p, x: p["w"][x.astype(int)] @ p["w"].T  # noqa: E731
    assert of_function(tied, w=(7, 3)) == {"w": "io"}
    assert of_function(lambda p, x: x @ p["w"].T @ p["w"], w=(3, 4)) == {"w": "oi"}
    network = lambda p, x: jnp.tanh(jnp.tanh(x @ p["w"]) @ p["kernel"]).sum()  # noqa: E731
    for derivative in (jax.grad(network, 1), jax.hessian(network, 1)):
        apply = lambda p, x, fn=derivative: jax.vmap(lambda x: fn(p, x))(x)  # noqa: E731
        assert of_function(apply, w=(4, 3), kernel=(3, 2)) == {"w": "io", "kernel": "io"}
    energy = lambda p, x: jnp.tanh(nts.ops.conv2d(x, p["w"])).sum()  # noqa: E731
    assert of_function(jax.grad(energy, 1), (5, 5, 2), w=(3, 3, 2, 4)) == {"w": "ppio"}


def test_low_rank_products_are_added_to_a_kernel():
    def merged(p, x):
        return x @ (p["kernel"] + 0.5 * p["a"] @ p["b"])

    found = of_function(merged, kernel=(4, 4), a=(4, 2), b=(2, 4))
    assert found == {"kernel": "io", "a": "io", "b": "io"}

    def outputs_first(p, x):
        return x @ (p["weight"] + p["b"] @ p["a"]).T

    found = of_function(outputs_first, weight=(3, 4), b=(3, 2), a=(2, 4))
    assert found == {"weight": "oi", "b": "oi", "a": "oi"}


def test_kernels_are_followed_into_loops_and_to_devices():
    def loop(p, x):
        turn = lambda carry: (carry[0] + 1, jnp.tanh(carry[1] @ p["w"][carry[0]] @ p["kernel"]))  # noqa: E731
        return jax.lax.while_loop(lambda carry: carry[0] < 3, turn, (0, x))[1]

    assert of_function(loop, w=(3, 4, 3), kernel=(3, 4)) == {"w": "sio", "kernel": "io"}
    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(P(None, "model"), P("model"), P()), out_specs=P()
    )
    def split(first, second, x):
        return jax.lax.psum(jnp.tanh(x @ first) @ second, "model")

    apply = lambda p, x: split(p["w"], p["kernel"], x)  # noqa: E731
    assert of_function(apply, w=(4, 6), kernel=(6, 3)) == {"w": "io", "kernel": "io"}


def test_experts_are_stacked():
    def ragged(p, x):
        return jax.lax.ragged_dot(x, p["w"], jnp.array([1, 1, 0]))

    def soft(p, x):
        gate = jax.nn.softmax(x @ p["kernel"])
        hidden = jnp.einsum("bi,eio->beo", x, p["w"])
        return jnp.einsum("beo,eoj,be->bj", jax.nn.relu(hidden), p["weight"], gate)

    assert of_function(ragged, w=(3, 4, 5)) == {"w": "sio"}
    found = of_function(soft, kernel=(4, 3), w=(3, 4, 5), weight=(3, 5, 2))
    assert found == {"kernel": "io", "w": "sio", "weight": "sio"}


def test_what_is_not_known_is_not_guessed():
    symmetric = of_function(lambda p, x: x @ (p["w"] + p["w"].T), w=(4, 4))
    sorted_ = of_function(lambda p, x: x @ jnp.sort(p["w"], axis=0), w=(4, 3))
    assert symmetric == sorted_ == {"w": "??"}
    shuffled = of_function(lambda p, x: x @ p["w"][jnp.array([2, 0, 1, 3])], w=(4, 3))
    assert shuffled == {"w": "??"}

    def experts(p, x):  # One for each example, chosen by it: a stack, and no embedding.
        return jnp.einsum("bi,bio->bo", x, p["w"][x.argmax(-1)])

    assert of_function(experts, w=(4, 4, 3)) == {"w": "???"}


# -- Stacks ----------------------------------------------------------------------------------------


class Block(nn.Module):
    """Without biases, which have no third axis for a stack."""

    @nn.compact
    def __call__(self, x):
        y = nn.relu(nn.DenseGeneral((2, 3), use_bias=False, name="up")(x))
        return x + nn.DenseGeneral(4, axis=(-2, -1), use_bias=False, name="down")(y)


class Apart(nn.Module):
    """Three blocks one after the other, or side by side."""

    side_by_side: bool

    @nn.compact
    def __call__(self, x):
        blocks = [Block(name=f"block_{i}") for i in range(3)]
        if self.side_by_side:
            return sum(block(x) for block in blocks)
        for block in blocks:
            x = block(x)
        return x


class Stack(nn.Module):
    """The same blocks in one leaf for each kernel."""

    side_by_side: bool
    axis: int

    @nn.compact
    def __call__(self, x):
        options = {"variable_axes": {"params": self.axis}, "split_rngs": {"params": True}}
        if self.side_by_side:
            return nn.vmap(Block, in_axes=None, axis_size=3, **options)(name="blocks")(x).sum(0)
        body = lambda block, x: (block(x), None)  # noqa: E731
        return nn.scan(body, length=3, **options)(Block(name="blocks"), x)[0]


def take_apart(tree, axis):
    """What a stack would be as the tree of `Apart`."""
    layers = jax.tree.map(lambda leaf: np.moveaxis(np.asarray(leaf), axis, 0), tree["blocks"])
    return {
        f"block_{i}": jax.tree.map(lambda leaf, i=i: jnp.asarray(leaf[i]), layers) for i in range(3)
    }


PLACES = list(itertools.product([False, True], [0, 1, 3]))


@functools.cache
def networks(side_by_side, axis):
    """(network, params) of the stack, and of the same layers apart."""
    models = Stack(side_by_side, axis), Apart(side_by_side)
    stack, apart = (nts.linen(model, (4,)) for model in models)
    params = stack.init(KEY)
    return (stack, params), (apart, take_apart(params, axis))


@pytest.mark.parametrize(("side_by_side", "axis"), PLACES)
def test_the_axis_of_a_stack_is_found_wherever_it_is(side_by_side, axis):
    found = axes.of(networks(side_by_side, axis)[0][0])
    wanted = {"blocks/up/kernel": list("ioo"), "blocks/down/kernel": list("iio")}
    for word in wanted.values():
        word.insert(axis, "s")
    assert found == {path: "".join(word) for path, word in wanted.items()}


SCOPES = [
    *(scopes.Layer(), scopes.Filter(), scopes.NofM(1, 2), scopes.Global()),
    *(scopes.Block(None, 1), scopes.Block(2, 2), scopes.Global(min_weights=9, min_channels=3)),
]


@pytest.mark.parametrize(("scope", "axis"), list(zip(SCOPES, [1, 3, 0, 1, 3, 0, 1], strict=True)))
def test_a_stack_and_its_layers_apart_keep_the_same(scope, axis):
    (stack, params), (apart, _) = networks(False, axis)
    random = np.random.default_rng(0)
    scores = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), params)
    # One leaf is far below the others, so that floors matter.
    scores["blocks"]["down"]["kernel"] *= 1e-3
    mask = masks.create(params)
    kept = scope.select(scores, mask, density=0.5, axes=axes.of(stack))
    split = take_apart(mask, axis)
    wanted = scope.select(take_apart(scores, axis), split, density=0.5, axes=axes.of(apart))
    jax.tree.map(np.testing.assert_array_equal, take_apart(kept, axis), wanted)
    named = masks.layer_densities(kept, axes=axes.of(stack))
    assert named == {
        f"blocks/{path}[{block[-1]}]": density
        for leaf, density in masks.layer_densities(wanted).items()
        for block, path in [leaf.split("/", 1)]
    }


BATCH = (jnp.ones((2, 4)) * jnp.array([[1.0], [-0.5]]) + jnp.arange(4.0), jnp.array([0, 3]))
CRITERIA = {
    "magnitude": lambda network: criteria.magnitude(),
    "snip": criteria.snip,
    "inverted": lambda network: criteria.inverted(criteria.snip(network)),
    "ntk_sap": lambda network: criteria.ntk_sap(
        network, estimator=ntk.vjp, reinit=False, inputs="data", num_samples=1, batch_size=2
    ),
    "synflow": criteria.synflow,
}


@pytest.mark.parametrize("name", CRITERIA)
def test_criteria_prune_a_stack_as_its_layers_apart(name):
    (stack, params), (apart, split) = networks(False, 1)
    options = {"schedule": [0.5], "batch": BATCH, "scope": "layer"}
    given = {"axes": axes.of(stack)} if name == "magnitude" else {}
    kept, [info] = nts.prune(KEY, params, CRITERIA[name](stack), **options, **given)
    given = {"axes": axes.of(apart)} if given else {}
    wanted, _ = nts.prune(KEY, split, CRITERIA[name](apart), **options, **given)
    jax.tree.map(np.testing.assert_array_equal, take_apart(kept, 1), wanted)
    assert info.layer_densities == {
        f"blocks/{layer}/kernel[{i}]": 0.5 for layer in ("down", "up") for i in range(3)
    }
    if name == "magnitude":
        given = {"axes": axes.of(stack)}
        found, _ = nts.find_mask(KEY, params, CRITERIA[name](stack), **options, **given)
        jax.tree.map(np.testing.assert_array_equal, found, kept)


def test_a_stack_has_the_random_densities_of_its_layers_apart():
    """ERK, and given densities: here of layers that differ."""
    (stack, params), (apart, split) = networks(False, 1)
    found = axes.of(stack)
    mask, _ = nts.prune(KEY, params, criteria.erk(axes=found), schedule=[0.3])
    other, _ = nts.prune(KEY, split, criteria.erk(axes=axes.of(apart)), schedule=[0.3])
    counts = [sorted(masks.layer_densities(each, axes=found).values()) for each in (mask, other)]
    np.testing.assert_allclose(*counts, atol=1.5 / 24)
    names = masks.layer_densities(mask, axes=found)
    given = {name: 0.25 + 0.25 * (i % 3) for i, name in enumerate(names)}
    score = criteria.layerwise_random(given, axes=found)
    drawn, [info] = nts.prune(KEY, params, score, schedule=[0.5], axes=found)
    assert info.layer_densities == pytest.approx(given, abs=1.5 / 24)


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(4, 4, (3,), use_bias=False, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.conv(x))


class NnxStack(nnx.Module):
    def __init__(self, axis, transform, rngs):
        self.axes = nnx.StateAxes({nnx.Param: axis, ...: 0})
        self.transform = transform
        make = lambda rngs: NnxBlock(rngs)  # noqa: E731
        self.blocks = nnx.vmap(make, in_axes=0, out_axes=self.axes)(rngs.split(3))

    def __call__(self, x):
        call = lambda block, x: block(x)  # noqa: E731
        if self.transform == "vmap":
            y = nnx.vmap(call, in_axes=(self.axes, None))(self.blocks, x)
            return nnx.vmap(call, in_axes=(self.axes, 0))(self.blocks, y).sum(0)
        return nnx.scan(call, in_axes=(self.axes, nnx.Carry), out_axes=nnx.Carry)(self.blocks, x)


@pytest.mark.parametrize(("axis", "word"), [(0, "spio"), (1, "psio"), (3, "pios")])
@pytest.mark.parametrize("transform", ["vmap", "scan"])
def test_stacks_of_nnx(transform, axis, word):
    network = nts.nnx(lambda rngs: NnxStack(axis, transform, rngs), (5, 4))
    assert kernels(network) == {"blocks/conv/kernel": word}


# -- Other frameworks, names, options --------------------------------------------------------------


def test_kernels_of_equinox_have_their_outputs_first():
    equinox = pytest.importorskip("equinox")

    def init(key):
        layers = [equinox.nn.Linear(4, 3, key=key), equinox.nn.Conv1d(1, 2, 2, key=key)]
        return equinox.filter(layers, equinox.is_array)

    static = [equinox.nn.Linear(4, 3, key=KEY), equinox.nn.Conv1d(1, 2, 2, key=KEY)]

    def apply(params, x):
        linear, conv = equinox.combine(params, equinox.partition(static, equinox.is_array)[1])
        return jax.vmap(lambda row: conv(linear(row)[None]))(x)

    network = nts.plain(init, apply, (4,))
    assert axes.of(network) == {"0/weight": "oi", "1/weight": "oip"}
    mask = masks.create(network.init(KEY), exclude="^1/")
    score = criteria.ntk_sap(network, num_samples=1, batch_size=2)
    options = {"schedule": [0.5], "mask": mask, "scope": scopes.NofM(2, 4)}
    kept, _ = nts.prune(KEY, network.init(KEY), score, **options)
    assert np.asarray(kept[0].weight).sum(axis=1).tolist() == [2, 2, 2]


@given(st.data(), st.text("spio", min_size=1, max_size=5))
def test_the_common_form_and_back_changes_nothing(data, word):
    shape = tuple(data.draw(st.lists(st.integers(1, 3), min_size=len(word), max_size=len(word))))
    form, leaf = _forms.Form(shape, word), np.arange(np.prod(shape)).reshape(shape)
    np.testing.assert_array_equal(form.restore(form.arrange(leaf)), leaf)
    np.testing.assert_array_equal(form.restore_layers(form.by_layer(leaf)), leaf)
    arranged = form.arrange(leaf)
    assert arranged.shape == (*form.stacked, *form.positions, form.inputs, form.outputs)
    if form.stacked:  # A layer of the stack holds the same weights either way.
        rows = arranged.reshape(form.layers, -1)
        np.testing.assert_array_equal(np.sort(rows), np.sort(form.by_layer(leaf)))


PARAMS = {
    "conv": {"kernel": jnp.ones((3, 3, 4, 4)), "bias": jnp.ones(4)},
    "query": {"kernel": jnp.ones((4, 2, 3)), "bias": jnp.ones((2, 3))},
    "stack": {"kernel": jnp.ones((2, 4, 3)), "bias": jnp.ones((2, 3))},
}


def test_names_and_biases_say_what_they_can():
    mask, _ = nts.prune(KEY, PARAMS, criteria.random(), schedule=[0.5], scope="filter")
    assert np.all(np.sum(mask["query"]["kernel"], axis=0) == 2)
    assert np.all(np.sum(mask["stack"]["kernel"], axis=1) == 2)
    assert np.all(np.sum(mask["conv"]["kernel"], axis=(0, 1, 2)) == 18)


@pytest.mark.parametrize(
    ("path", "others", "word"),
    [
        ("net/conv1/kernel", {}, "ppio"),
        ("net/conv2_d/w", {"net/norm/scale": (4,)}, "ppio"),
        ("net/first/kernel", {"net/first/bias": (4,)}, "ppio"),
        # Those of `nn.ConvTranspose` may have their outputs first.
        ("net/conv2_d_transpose/w", {}, "????"),
        ("net/ConvTranspose_0/kernel", {"net/ConvTranspose_0/bias": (4,)}, "????"),
        # Three 1-D convolutions, or three places of two in each direction.
        ("net/conv1/kernel", {"net/norm/scale": (3, 4)}, "????"),
        ("net/convs/kernel", {"norm/scale": (4,)}, "????"),
        ("net/VmapConv_0/kernel", {}, "????"),
        ("ScanBlock_0/Conv_0/kernel", {}, "????"),
        ("net/conv1_d/w", {}, "????"),
        ("net/ConvLocal_0/kernel", {}, "????"),
        ("net/layer/kernel", {}, "????"),
    ],
)
def test_square_windows_are_those_of_convolutions_if_names_or_biases_say_so(path, others, word):
    assert _forms.words_of({path: (3, 3, 4, 4), **others}, None)[path] == word


@pytest.mark.parametrize(
    ("params", "options", "match"),
    [
        ({"kernel": (3, 4, 5)}, {}, r"axes: scope Layer\(\) .*'kernel' of shape \(3, 4, 5\) .*'\?"),
        ({"weight": (3, 4)}, {"scope": "filter"}, r"'weight' .*axes=ntksap_jax.axes.of\(network\)"),
        ({"kernel": (3, 4)}, {"axes": {"kernel": "oxi"}}, "axes: got 'oxi' for 'kernel', expected"),
        ({"kernel": (3, 4)}, {"axes": {"kernel": "sio"}}, r"'sio' .*expected 2 letters: its shape"),
        ({"kernel": (3, 4)}, {"axes": {"dense": "io"}}, "'dense' is no path .*leaves are: kernel"),
        ({"kernel": (3, 4)}, {"axes": {"(": "io"}}, r"'\(' is not a regular expression"),
        # Three convolutions in a stack, or one in 3-D.
        ({"kernel": (3, 3, 3, 2, 4)}, {}, r"'kernel' of shape \(3, 3, 3, 2, 4\) .*'sppio'|\?"),
    ],
)
def test_errors_name_the_leaf_and_the_option(params, options, match):
    arrays = {name: jnp.ones(shape) for name, shape in params.items()}
    options = {"scope": "layer"} | options
    with pytest.raises(ValueError, match=match):
        nts.prune(KEY, arrays, criteria.random(), schedule=[0.5], **options)


def test_a_pattern_may_match_biases_too():
    given = {"axes": {"stack": "iso"}, "scope": "layer", "schedule": [0.5]}
    _, [info] = nts.prune(KEY, PARAMS, criteria.random(), **given)
    assert [f"stack/kernel[{i}]" in info.layer_densities for i in range(5)] == [True] * 4 + [False]
    with pytest.raises(TypeError, match="axes: got str, expected a dict of letters"):
        nts.prune(KEY, PARAMS, criteria.random(), axes="sio", schedule=[0.5])


@pytest.mark.parametrize("name", ["erk", "layerwise_random"])
def test_random_densities_know_stacks_by_their_biases(name):
    """What a search reports of its layers can be given to another one."""
    params = {"stack": PARAMS["stack"]}
    _, [found] = nts.prune(KEY, params, criteria.random(), schedule=[0.5])
    score = criteria.erk() if name == "erk" else criteria.layerwise_random(found.layer_densities)
    _, [info] = nts.prune(KEY, params, score, schedule=[0.5])
    assert list(info.layer_densities) == ["stack/kernel[0]", "stack/kernel[1]"]
    wanted = found.layer_densities if name != "erk" else dict.fromkeys(found.layer_densities, 0.5)
    assert info.layer_densities == pytest.approx(wanted, abs=1e-6)


def test_a_global_threshold_asks_for_nothing():
    arrays = {"weight": jnp.ones((2, 3, 4)), "scalar": jnp.ones(())}
    mask, [info] = nts.prune(KEY, arrays, criteria.random(), schedule=[0.5])
    assert info.layer_densities == {"weight": 0.5}
