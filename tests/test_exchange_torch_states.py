"""PyTorch's names and layouts, against their definition entry by entry; PyTorch is not needed."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ntksap_jax as nts
from ntksap_jax import exchange, masks, models

SIZES = st.integers(1, 4)


def numbers(*shape):
    return np.arange(1.0, 1.0 + np.prod(shape), dtype=np.float32).reshape(shape)


@settings(max_examples=10)
@given(st.lists(SIZES, min_size=2, max_size=5).map(tuple))
def test_kernels_are_out_in_spatial(shape):
    kernel = numbers(*shape)
    axes = {"kernel": "p" * (len(shape) - 2) + "io"}
    [(name, array)] = exchange.to_torch({"layer": {"kernel": kernel}}, axes=axes).items()
    assert name == "layer.weight"
    assert array.flags.c_contiguous and array.flags.writeable
    assert array.shape == (shape[-1], shape[-2], *shape[:-2])
    for *spatial, i, o in np.ndindex(shape):
        assert array[o, i, *spatial] == kernel[*spatial, i, o]


@settings(max_examples=10)
@given(SIZES, SIZES, SIZES, SIZES)
def test_a_dense_layer_after_a_flattening_has_its_features_channels_first(h, w, c, o):
    kernel = numbers(h * w * c, o)
    options = {"flattened": {"fc": (h, w, c)}}
    weight = exchange.to_torch({"fc": {"kernel": kernel}}, **options)["fc.weight"]
    x = np.random.default_rng(0).normal(size=(3, h, w, c))
    channels_first = x.transpose(0, 3, 1, 2).reshape(3, -1)
    np.testing.assert_allclose(x.reshape(3, -1) @ kernel, channels_first @ weight.T, rtol=1e-6)
    like = {"fc": {"kernel": jnp.zeros((h * w * c, o))}}
    again = exchange.from_torch({"fc.weight": weight}, like=like, **options)
    np.testing.assert_array_equal(again["fc"]["kernel"], kernel)


@st.composite
def trees(draw):
    def array(num_axes):
        shape = draw(st.tuples(*[SIZES] * num_axes))
        dtype = draw(st.sampled_from(["float32", "bfloat16", "float16", "bool"]))
        bits = np.random.default_rng(draw(st.integers(0, 99))).normal(size=shape)
        return (bits > 0 if dtype == "bool" else bits).astype(jnp.dtype(dtype))

    layers = draw(st.dictionaries(st.sampled_from(["a", "b/c", "b/d/e", "0"]), SIZES, min_size=1))
    tree = {}
    for path, num_axes in layers.items():
        node = tree
        for part in path.split("/"):
            node = node.setdefault(part, {})
        node |= {"kernel": array(num_axes + 1), "bias": array(1), "scale": array(1)}
        del node[draw(st.sampled_from(["bias", "scale"]))]
        if "scale" in node:
            node["embedding"] = node.pop("kernel") if num_axes == 1 else None
            del node["scale"]
    return tree


@settings(max_examples=20)
@given(trees())
def test_there_and_back_changes_nothing(tree):
    leaves = masks.leaf_paths(tree).items()
    axes = {path: "ppppio"[-leaf.ndim :] for path, leaf in leaves if path.endswith("kernel")}
    state = exchange.to_torch(tree, axes=axes)
    assert len(state) == len(jax.tree.leaves(tree))
    again = exchange.from_torch(state, like=tree, axes=axes)
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    for old, new in zip(jax.tree.leaves(tree), jax.tree.leaves(again), strict=True):
        assert old.dtype == new.dtype
        np.testing.assert_array_equal(old, new)


def test_variables_lose_their_collections_and_statistics_get_torchs_names():
    bn = {"scale": numbers(2), "bias": numbers(2)}
    stats = {"mean": numbers(2), "var": numbers(2)}
    variables = {"params": {"bn": bn}, "batch_stats": {"bn": stats}}
    state = exchange.to_torch(variables)
    assert set(state) == {"bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"}
    state["bn.num_batches_tracked"] = np.array(7)
    again = exchange.from_torch(state, like=variables)
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_attention_has_all_heads_in_one_axis():
    model = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=6)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 5, 4)))["params"]
    params = jax.tree.map(lambda leaf: numbers(*leaf.shape), shapes)
    state = exchange.to_torch(params)
    assert state["query.weight"].shape == (6, 4)
    assert state["query.bias"].shape == (6,)
    assert state["out.weight"].shape == (4, 6)
    query = np.asarray(params["query"]["kernel"])  # (in, heads, features)
    np.testing.assert_array_equal(state["query.weight"][4], query[:, 1, 1])
    out = np.asarray(params["out"]["kernel"])  # (heads, features, out)
    np.testing.assert_array_equal(state["out.weight"][:, 4], out[1, 1])
    again = exchange.from_torch(state, like=params)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_dense_layers_that_are_called_like_an_attentions_are_dense_layers():
    tree = {name: {"kernel": numbers(2, 3)} for name in ("query", "key", "value", "out")}
    assert exchange.to_torch(tree)["out.weight"].shape == (3, 2)


def test_a_mask_has_the_names_of_its_weights():
    params = {"conv": {"kernel": numbers(1, 1, 2, 3), "bias": numbers(3)}}
    mask = masks.map_prunable(lambda m: m.at[0, 0, 1, 2].set(False), masks.create(params))
    state = exchange.to_torch(mask, names=lambda layer: f"features.{layer}")
    assert list(state) == ["features.conv.weight"]
    assert state["features.conv.weight"].dtype == bool
    assert not state["features.conv.weight"][2, 1, 0, 0]
    for dtype in (bool, np.uint8, np.float32):  # as torch.nn.utils.prune has them
        theirs = {"conv.weight": state["features.conv.weight"].astype(dtype)}
        again = exchange.from_torch(theirs, like=masks.create(params))
        assert masks.digest(again) == masks.digest(mask)


def test_what_pytorch_has_no_layout_for_is_an_error_that_names_the_leaf():
    tree = {"blocks": {"kernel": numbers(3, 4, 5)}}
    with pytest.raises(ValueError, match="axes: to convert leaf 'blocks/kernel'.*axes.of"):
        exchange.to_torch(tree)
    with pytest.raises(ValueError, match="'blocks/kernel' .* is a stack of layers"):
        exchange.to_torch(tree, axes={"blocks": "sio"})
    weight = exchange.to_torch(tree, axes={"blocks": "ooi"})["blocks.weight"]
    np.testing.assert_array_equal(weight, numbers(3, 4, 5).reshape(12, 5))


# -- Errors ----------------------------------------------------------------------------------------

LIKE = {"fc": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}}
STATE = exchange.to_torch(LIKE)


@pytest.mark.parametrize(
    ("state", "options", "error", "match"),
    [
        ({}, {}, ValueError, r"no 'fc\.(weight|bias)' for leaf 'fc/(kernel|bias)'"),
        (STATE | {"x.bias": 0}, {}, ValueError, r"no leaf of `like` is for 'x\.bias'"),
        (STATE | {"fc.running_var": 0}, {}, ValueError, r"'fc\.running_var'.*batch_stats"),
        (
            STATE | {"fc.weight": np.zeros((2, 3))},
            *({}, ValueError, r"'fc\.weight' has shape \(2, 3\), leaf 'fc/kernel'.*is \(3, 2\)"),
        ),
        (STATE | {"fc.bias": np.zeros(3, int)}, {}, TypeError, "'fc.bias' is int64, leaf"),
        (STATE | {"fc.bias": object()}, {}, TypeError, "'fc.bias' is object, expected an array"),
        (STATE, {"names": {}}, ValueError, "no PyTorch module for layer 'fc'.*pair_layers"),
        (STATE, {"names": lambda layer: None}, TypeError, "got None for layer 'fc'"),
        (STATE, {"flattened": {"fd": (1, 1, 2)}}, ValueError, "'fd' is not the path of a dense"),
        (STATE, {"flattened": {"fc": (2, 2, 2)}}, ValueError, "'fc' takes 2 features.* has 8"),
        (
            *(STATE | {"fc.weight": np.full((3, 2), 0.5)}, {"like": masks.create(LIKE)}),
            *(ValueError, "no leaf of `like` is for 'fc.bias'"),
        ),
        (
            *({"fc.weight": np.full((3, 2), 0.5)}, {"like": masks.create(LIKE)}),
            *(ValueError, "'fc.weight' has entries other than 0 and 1, and leaf 'fc/kernel'"),
        ),
    ],
)
def test_a_state_that_does_not_fit_is_an_error_that_names_the_leaf(state, options, error, match):
    with pytest.raises(error, match=match):
        exchange.from_torch(state, **({"like": LIKE} | options))


def test_two_leaves_of_one_name_are_an_error():
    tree = {"a": {"kernel": numbers(1, 2)}, "b": {"kernel": numbers(1, 2)}}
    with pytest.raises(ValueError, match=r"'a/kernel' and 'b/kernel' would both be 'x\.weight'"):
        exchange.to_torch(tree, names=lambda layer: "x")


def test_an_array_that_numpy_cannot_read_is_an_error():
    class OnAnotherDevice:
        shape = (3,)

        def __array__(self, *args, **kwargs):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")

    with pytest.raises(TypeError, match=r"'fc\.bias' cannot be read.*cuda:0.*\.cpu\(\)"):
        exchange.from_torch(STATE | {"fc.bias": OnAnotherDevice()}, like=LIKE)


# -- Layers by order -------------------------------------------------------------------------------


def torchvision_name(layer, blocks):
    """The names of torchvision's ResNet and of its many copies for CIFAR."""
    block, _, inner = layer.rpartition("/")
    inner = {"shortcut_conv": "downsample.0", "shortcut_bn": "downsample.1"}.get(inner, inner)
    if not block:
        return {"conv": "conv1", "bn": "bn1", "fc": "fc"}[inner]
    if block.startswith("stage_"):
        _, stage, _, index = block.split("_")
        return f"layer{stage}.{index}.{inner}"
    index = int(block.removeprefix("block_"))
    places = [(stage, i) for stage, n in enumerate(blocks, start=1) for i in range(n)]
    return "layer{}.{}.{}".format(*places[index], inner)


def as_modules_are_made(name):
    """Sorts as torchvision's code makes them: the stem, the blocks, the classifier."""
    layer, *inside = re.sub(r"^layer", "", name).split(".")
    order = ["conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "downsample"]
    inside = [order.index(part) if part in order else int(part) for part in inside]
    return (1, int(layer), inside) if inside else (2 if layer == "fc" else 0, layer != "conv1", [])


@pytest.mark.parametrize(
    ("model", "input_shape"),
    [
        (models.ResNet(blocks=(1, 10), width=2), (8, 8, 3)),  # block_10 comes after block_9
        (models.ResNet(blocks=(1, 2), width=2, shortcut="pad"), (8, 8, 3)),
        (models.ImageNetResNet(blocks=(1, 2), width=2, bottleneck=True), (32, 32, 3)),
    ],
    ids=["projection", "pad", "bottleneck"],
)
def test_layers_are_paired_with_torchvisions_modules(model, input_shape):
    network = nts.linen(model, input_shape)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    names = {
        layer: torchvision_name(layer, model.blocks)
        for layer in {path.rpartition("/")[0] for path in masks.leaf_paths(shapes)}
    }
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape), shapes)
    state = exchange.to_torch(zeros, names=names)
    in_order = sorted(
        state,
        key=lambda entry: (as_modules_are_made(entry.rpartition(".")[0]), entry.endswith("bias")),
    )
    assert exchange.pair_layers(network, {entry: state[entry] for entry in in_order}) == names


def test_the_order_of_use_is_found_inside_of_compiled_and_repeated_functions():
    def init(key):
        del key
        return {name: {"kernel": jnp.ones((2, 2))} for name in ("a", "b", "c", "d")}

    def apply(params, x):
        x = jax.jit(lambda w, x: x @ w)(params["d"]["kernel"], x)
        x = jax.checkpoint(lambda w, v, x: x @ w @ v)(
            params["b"]["kernel"], params["c"]["kernel"], x
        )
        return jax.jit(lambda params, x: jax.nn.relu(x @ params["a"]["kernel"]))(params, x)

    network = nts.plain(init, apply, (2,))
    state = {f"{i}.weight": np.zeros((2, 2)) for i in range(4)}
    paired = {"d": "0", "b": "1", "c": "2", "a": "3"}
    assert exchange.pair_layers(network, state) == paired


def test_networks_that_do_not_pair_are_errors_that_name_the_layer():
    model = nn.Sequential([nn.Conv(4, (3, 3)), lambda x: x.mean((1, 2)), nn.Dense(2)])
    network = nts.linen(model, (8, 8, 3))
    params = network.init(jax.random.key(0))
    names = {"layers_0": "conv", "layers_2": "fc"}
    state = exchange.to_torch(params, names=names)
    conv = {name: array for name, array in state.items() if name.startswith("conv")}
    fc = {name: array for name, array in state.items() if name.startswith("fc")}
    assert exchange.pair_layers(network, conv | fc) == names
    # Statistics, or a bias that ours has not, do not matter to which layer is which.
    more = {"conv.running_mean": np.zeros(4), "conv.num_batches_tracked": np.array(0)}
    assert exchange.pair_layers(network, conv | more | fc) == names
    with pytest.raises(ValueError, match=r"'fc' comes where .* uses layer 'layers_0', but its"):
        exchange.pair_layers(network, fc | conv)
    with pytest.raises(ValueError, match=r"has 1 modules .* network 2; 'layers_2' has no counter"):
        exchange.pair_layers(network, conv)
    with pytest.raises(ValueError, match=r"has 3 modules .* network 2; 'more' has no counterpart"):
        exchange.pair_layers(network, conv | fc | {"more.weight": np.zeros((2, 2))})
