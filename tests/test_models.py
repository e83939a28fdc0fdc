"""The networks: parameter counts against the papers', forward passes against numpy in float64."""

import functools
import math
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy import stats

import ntksap_jax as nts
from ntksap_jax import models
from ntksap_jax.models import _layers
from ntksap_jax.models._layers import kaiming_normal
from ntksap_jax.models.resnet_cifar import BasicBlock, pad_shortcut

CIFAR = (32, 32, 3)
IMAGENET = (224, 224, 3)


def abstract_params(model, input_shape):
    """Shapes of the params by path, without computing them."""
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *input_shape)))
    return flatten_dict(variables["params"], sep="/")


def is_batch_norm(path):
    """Its layers are called bn, bn1, bn_0 or shortcut_bn."""
    return "bn" in path.split("/")[-2]


# -- Parameter counts ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "input_shape", "total", "without_batch_norm", "kernels"),
    [
        # Kernels of LeNet-300-100: 784·300 + 300·100 + 100·10.
        (models.mlp(), (28, 28, 1), 266_610, 266_610, 266_200),
        # The authors of TPP count 154,010 parameters, with the 100·6 + 10 biases.
        (models.linear_mlp(), (32, 32, 1), 154_010, 154_010, 153_400),
        # He et al. count 0.27 M, 0.46 M, 0.85 M without projections.
        (models.resnet20(), CIFAR, 272_474, 270_906, 270_896),
        (models.resnet20(shortcut="pad"), CIFAR, 269_722, 268_346, 268_336),
        (models.resnet32(shortcut="pad"), CIFAR, 464_154, 461_882, 461_872),
        # The authors of TPP: 853,018, and 848,954 without BatchNorm; VGG-19 20,070,180 without.
        (models.resnet56(shortcut="pad"), CIFAR, 853_018, 848_954, 848_944),
        (models.vgg16_bn(), CIFAR, 14_770_212, 14_761_764, 14_761_664),
        (models.vgg19_bn(), CIFAR, 20_081_188, 20_070_180, 20_070_080),
        # torchvision: 11,689,512, 21,797,672, 25,557,032. The small stem saves 64·3·(49 − 9).
        (models.resnet18(), IMAGENET, 11_689_512, 11_679_912, 11_678_912),
        (models.resnet18(stem="small"), (64, 64, 3), 11_681_832, 11_672_232, 11_671_232),
        (models.resnet34(), IMAGENET, 21_797_672, 21_780_648, 21_779_648),
        (models.resnet50(), IMAGENET, 25_557_032, 25_503_912, 25_502_912),
    ],
    ids=[
        *("mlp", "linear_mlp", "resnet20", "resnet20-pad", "resnet32-pad", "resnet56-pad"),
        *("vgg16_bn", "vgg19_bn", "resnet18", "resnet18-small", "resnet34", "resnet50"),
    ],
)
def test_parameter_counts_are_the_published_ones(
    model, input_shape, total, without_batch_norm, kernels
):
    leaves = abstract_params(model, input_shape)
    assert sum(leaf.size for leaf in leaves.values()) == total
    rest = [leaf.size for path, leaf in leaves.items() if not is_batch_norm(path)]
    assert sum(rest) == without_batch_norm
    assert sum(leaf.size for path, leaf in leaves.items() if path.endswith("kernel")) == kernels


@pytest.mark.parametrize(
    ("make", "convs", "width", "num_classes"),
    [
        (models.vgg16_bn, (2, 2, 3, 3, 3), 64, 100),
        (models.vgg19_bn, (2, 2, 4, 4, 4), 8, 10),
    ],
)
def test_vgg_parameter_counts_have_their_closed_form(make, convs, width, num_classes):
    widths = [w for w, n in zip([1, 2, 4, 8, 8], convs, strict=True) for _ in range(n)]
    outputs = [width * w for w in widths]
    kernels = sum(9 * a * b for a, b in zip([3, *outputs[:-1]], outputs, strict=True))
    expected = kernels + 2 * sum(outputs) + (outputs[-1] + 1) * num_classes
    leaves = abstract_params(make(width=width, num_classes=num_classes), CIFAR)
    assert sum(leaf.size for leaf in leaves.values()) == expected


@pytest.mark.parametrize(("n", "width", "num_classes"), [(1, 5, 1), (2, 1, 7)])
def test_cifar_resnet_kernels_have_their_closed_form(n, width, num_classes):
    """Stages of 2n layers: 9·w²·(1·2n, 2·1 + 4·(2n − 1), 4·2 + 16·(2n − 1)) and projections."""
    for shortcut, projections in (("pad", 0), ("projection", 1 * 2 + 2 * 4)):
        model = models.cifar_resnet(
            6 * n + 2, width=width, num_classes=num_classes, shortcut=shortcut
        )
        kernels = [
            leaf
            for path, leaf in abstract_params(model, (8, 8, 3)).items()
            if path.endswith("kernel")
        ]
        stages = 2 * n + 2 + 4 * (2 * n - 1) + 8 + 16 * (2 * n - 1)
        expected = 27 * width + width**2 * (9 * stages + projections) + 4 * width * num_classes
        assert sum(leaf.size for leaf in kernels) == expected
        layers = [leaf for leaf in kernels if leaf.ndim == 2 or leaf.shape[0] == 3]
        assert len(layers) == 6 * n + 2


# -- Names -----------------------------------------------------------------------------------------


def test_names_of_the_other_networks():
    def layers(model, input_shape=(16, 16, 3)):
        return {path.rsplit("/", 1)[0] for path in abstract_params(model, input_shape)}

    assert layers(models.mlp((5, 4))) == {"hidden_0", "hidden_1", "fc"}
    assert layers(models.VGG((2, "M", 3))) == {"conv_0", "bn_0", "conv_1", "bn_1", "fc"}
    resnet = layers(models.ImageNetResNet(blocks=(1, 2), width=2, bottleneck=True))
    in_block = {"conv1", "bn1", "conv2", "bn2", "conv3", "bn3"}
    shortcut = {"shortcut_conv", "shortcut_bn"}
    assert resnet == {"conv", "bn", "fc"} | {
        f"{block}/{layer}"
        for block, names in {
            "stage_1_block_0": in_block | shortcut,
            "stage_2_block_0": in_block | shortcut,
            "stage_2_block_1": in_block,
        }.items()
        for layer in names
    }
    # A basic block of the first stage keeps the shape, so that it has no shortcut parameters.
    basic = layers(models.ImageNetResNet(blocks=(1, 1), width=2))
    assert "stage_1_block_0/shortcut_conv" not in basic
    assert "stage_2_block_0/shortcut_conv" in basic


# -- Forward passes against numpy ------------------------------------------------------------------


def windows(x, size, stride, fill):
    """Windows of torch's padding=size // 2, (N, H', W', C, size, size)."""
    pad = size // 2
    x = np.pad(x, [(0, 0), (pad, pad), (pad, pad), (0, 0)], constant_values=fill)
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride]


class Reference:
    """The layers in numpy and float64, evaluation mode, reading the variables of the model."""

    def __init__(self, variables):
        variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
        self.params = flatten_dict(variables["params"], sep="/")
        self.stats = flatten_dict(variables.get("batch_stats", {}), sep="/")

    def conv_bn(self, x, conv, bn, stride=1):
        kernel = self.params[f"{conv}/kernel"]
        y = np.einsum("nhwcij,ijco->nhwo", windows(x, kernel.shape[0], stride, 0.0), kernel)
        y = (y - self.stats[f"{bn}/mean"]) / np.sqrt(self.stats[f"{bn}/var"] + 1e-5)
        return y * self.params[f"{bn}/scale"] + self.params[f"{bn}/bias"]

    def dense(self, x, name):
        return x @ self.params[f"{name}/kernel"] + self.params[f"{name}/bias"]

    def block(self, x, name, *, strides, shortcut):
        """A residual block with one stride for each of its convolutions."""
        y = x
        for i, stride in enumerate(strides, start=1):
            y = self.conv_bn(y, f"{name}/conv{i}", f"{name}/bn{i}", stride)
            y = relu(y) if i < len(strides) else y
        if shortcut:
            stride = math.prod(strides)
            x = self.conv_bn(x, f"{name}/shortcut_conv", f"{name}/shortcut_bn", stride)
        return relu(y + x)


def relu(x):
    return np.maximum(x, 0)


def random_variables(model, x, seed=0):
    """Variables with nothing neutral in them: kernels are normal, the rest random and positive."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key == "kernel":
            return np.float32(rng.normal(size=leaf.shape) / np.sqrt(math.prod(leaf.shape[:-1]) / 2))
        return np.float32(rng.uniform(0.3, 1.5, size=leaf.shape))

    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    return jax.tree_util.tree_map_with_path(draw, shapes)


def images(seed, *shape):
    return np.float32(np.random.default_rng(seed).normal(size=shape))


def check_against(reference, model, shape):
    x = images(0, *shape)
    variables = random_variables(model, x)
    expected = reference(Reference(variables), np.float64(x))
    actual = jax.jit(model.apply)(variables, x)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_resnet_forward_pass_equals_numpy():
    """Even sizes tell symmetric padding from padding="SAME", which pads strided convolutions
    at the end only."""

    def reference(net, x):
        x = relu(net.conv_bn(x, "conv", "bn"))
        x = net.block(x, "block_0", strides=(1, 1), shortcut=False)
        x = net.block(x, "block_1", strides=(2, 1), shortcut=True)
        x = net.block(x, "block_2", strides=(2, 1), shortcut=True)
        return net.dense(x.mean((1, 2)), "fc")

    model = models.ResNet(blocks=(1, 1, 1), width=3, num_classes=4)
    check_against(reference, model, (2, 8, 7, 3))


@pytest.mark.parametrize(("bottleneck", "stem"), [(False, "imagenet"), (True, "small")])
def test_imagenet_resnet_forward_pass_equals_numpy(bottleneck, stem):
    """Even sizes up to the last stage; the bottleneck's stride is in its 3×3 convolution."""

    def reference(net, x):
        x = relu(net.conv_bn(x, "conv", "bn", 2 if stem == "imagenet" else 1))
        if stem == "imagenet":
            x = windows(x, 3, 2, -np.inf).max((-2, -1))
        plain, halving = ((1, 1, 1), (1, 2, 1)) if bottleneck else ((1, 1), (2, 1))
        x = net.block(x, "stage_1_block_0", strides=plain, shortcut=bottleneck)
        x = net.block(x, "stage_2_block_0", strides=halving, shortcut=True)
        x = net.block(x, "stage_2_block_1", strides=plain, shortcut=False)
        return net.dense(x.mean((1, 2)), "fc")

    model = models.ImageNetResNet(
        blocks=(1, 2), width=2, bottleneck=bottleneck, num_classes=4, stem=stem
    )
    check_against(reference, model, (2, 16, 16, 3) if stem == "imagenet" else (2, 6, 6, 3))


def test_vgg_forward_pass_equals_numpy():
    def reference(net, x):
        x = relu(net.conv_bn(x, "conv_0", "bn_0"))
        x = relu(net.conv_bn(x, "conv_1", "bn_1"))
        n, h, w, c = x.shape
        x = x.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))
        x = relu(net.conv_bn(x, "conv_2", "bn_2"))
        return net.dense(x.mean((1, 2)), "fc")

    check_against(reference, models.VGG((3, 4, "M", 5), num_classes=4), (2, 4, 6, 3))


def test_mlp_forward_pass_equals_numpy():
    def reference(net, x):
        hidden = relu(net.dense(x.reshape(2, -1), "hidden_0"))
        return net.dense(relu(net.dense(hidden, "hidden_1")), "fc")

    check_against(reference, models.mlp((5, 4), num_classes=3), (2, 3, 3, 2))


def test_linear_mlp_is_affine():
    model = models.linear_mlp(depth=4, width=6, num_classes=3)
    a, b = images(0, 2, 7)
    variables = random_variables(model, a[None])
    at_a, at_b, at_middle = jax.jit(model.apply)(variables, np.stack([a, b, (a + b) / 2]))
    np.testing.assert_allclose(at_middle, (at_a + at_b) / 2, rtol=1e-4)
    assert set(variables["params"]) == {"hidden_0", "hidden_1", "hidden_2", "fc"}


def test_pad_shortcut_subsamples_and_pads_on_both_sides():
    x = images(0, 2, 5, 4, 3)
    y = np.asarray(pad_shortcut(x, 6, stride=2))
    assert y.shape == (2, 3, 2, 6)
    np.testing.assert_array_equal(y[..., 1:4], x[:, [0, 2, 4]][:, :, [0, 2]])
    np.testing.assert_array_equal(y[..., [0, 4, 5]], 0)


def test_a_block_without_residual_is_its_padded_input():
    """TPP's option A: with C doubled, C // 2 zeros on each side."""
    block = BasicBlock(features=4, stride=2, shortcut="pad")
    x = abs(images(0, 1, 4, 4, 2))
    variables = jax.tree.map(np.zeros_like, random_variables(block, x))
    expected = np.zeros((1, 2, 2, 4))
    expected[..., 1:3] = x[:, ::2, ::2]
    np.testing.assert_array_equal(jax.jit(block.apply)(variables, x), expected)


# -- Training and evaluation -----------------------------------------------------------------------

SMALL = {
    "mlp": (models.mlp((6, 5), num_classes=3), (2, 2, 3)),
    "resnet-projection": (models.ResNet(blocks=(1, 1), width=3, num_classes=3), (4, 4, 3)),
    "resnet-pad": (models.ResNet(blocks=(1, 1), width=3, num_classes=3, shortcut="pad"), (4, 4, 3)),
    "vgg": (models.VGG((3, "M", 4), num_classes=3), (4, 4, 3)),
    "imagenet-basic": (models.ImageNetResNet(blocks=(1,), width=3, num_classes=3), (16, 16, 3)),
    "imagenet-bottleneck": (
        models.ImageNetResNet(blocks=(1,), width=3, num_classes=3, stem="small", bottleneck=True),
        (4, 4, 3),
    ),
}


@pytest.mark.skipif(
    "--xla_backend_optimization_level=0" in os.environ["XLA_FLAGS"],
    reason="without optimisation XLA rounds alike, and this shows nothing: CI runs it with",
)
def test_pools_agree_with_flax_s_in_a_network(monkeypatch):
    """Where activations are computed twice, and rounded otherwise, no derivative may be lost."""
    model = models.VGG((8, 8, "M", 8, "M", 8, "M"), num_classes=3)
    x = jnp.asarray(images(0, 20, 16, 16, 3))
    params = jax.jit(model.init)(jax.random.key(0), x)["params"]

    def gradient():
        network = nts.linen(model, (16, 16, 3), train=False)
        squares = jax.jit(jax.grad(lambda params: jnp.sum(network.apply(params, x) ** 2)))
        return squares(params)

    ours = gradient()
    monkeypatch.setattr(
        _layers,
        "max_pool",
        lambda x, size, *, stride: nn.max_pool(x, (size, size), (stride, stride)),
    )
    jax.clear_caches()
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(gradient()), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max())


@pytest.mark.parametrize("name", SMALL)
def test_training_and_evaluation(name):
    """Training moves all weights and statistics, and there BatchNorm mixes the examples.

    In evaluation the statistics stay, and no example's logits depend on the others.
    """
    model, input_shape = SMALL[name]
    x = images(0, 4, *input_shape)
    variables = random_variables(model, x)
    stats = variables.get("batch_stats", {})

    def run(params, x, train):
        logits, updates = model.apply(
            {"params": params, "batch_stats": stats}, x, train=train, mutable=["batch_stats"]
        )
        assert logits.shape == (4, 3)
        return jnp.sum(jnp.sin(logits) ** 2), (logits[0], updates.get("batch_stats", {}))

    gradient = jax.jit(jax.grad(lambda params, x: run(params, x, True), has_aux=True))
    evaluate = jax.jit(lambda params, x: run(params, x, False)[1])
    other = np.concatenate([x[:1], -2 * x[1:]])
    grads, (in_training, moved) = gradient(variables["params"], x)
    _, (among_others, _) = gradient(variables["params"], other)
    assert np.allclose(in_training, among_others, rtol=1e-3) == (not stats)
    alone, kept = evaluate(variables["params"], x)
    np.testing.assert_allclose(evaluate(variables["params"], other)[0], alone, rtol=1e-5, atol=1e-6)
    for path, grad in flatten_dict(jax.device_get(grads), sep="/").items():
        assert np.all(np.isfinite(grad)) and np.any(grad != 0), path
    for path, old in flatten_dict(stats, sep="/").items():
        assert np.any(flatten_dict(moved, sep="/")[path] != old), path
        np.testing.assert_array_equal(flatten_dict(kept, sep="/")[path], old, err_msg=path)


def test_batch_norm_runs_with_the_decay_and_epsilon_of_torch():
    model, input_shape = SMALL["resnet-projection"]
    x = 3 * images(0, 8, *input_shape) + 1
    variables = random_variables(model, x)
    _, updates = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))(
        variables, x
    )
    kernel = np.float64(variables["params"]["conv"]["kernel"])
    y = np.einsum("nhwcij,ijco->nhwo", windows(np.float64(x), 3, 1, 0.0), kernel)
    old, new = variables["batch_stats"]["bn"], updates["batch_stats"]["bn"]
    np.testing.assert_allclose(new["mean"], 0.9 * old["mean"] + 0.1 * y.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(new["var"], 0.9 * old["var"] + 0.1 * y.var((0, 1, 2)), rtol=1e-4)


# -- Initialisation --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "input_shape"),
    [
        (models.linear_mlp(depth=2), (32, 32, 1)),
        (models.ResNet(blocks=(1,), width=32, num_classes=100), (8, 8, 3)),
        (models.VGG((32, 64), num_classes=100), (8, 8, 3)),
        (models.ImageNetResNet(blocks=(1,), width=32, bottleneck=True), (8, 8, 3)),
    ],
    ids=["mlp", "resnet", "vgg", "imagenet"],
)
def test_kernels_start_kaiming_normal_and_the_rest_neutral(model, input_shape):
    x = jnp.zeros((1, *input_shape))
    params = jax.jit(lambda key: model.init(key, x)["params"])(jax.random.key(0))
    largest = 0.0
    for path, leaf in flatten_dict(params, sep="/").items():
        values = np.float64(leaf)
        if not path.endswith("kernel"):
            assert np.all(values == (1.0 if path.endswith("scale") else 0.0)), path
            continue
        standard = values / np.sqrt(2 / math.prod(leaf.shape[:-1]))
        # Five standard errors of the mean, and of the standard deviation, of normal numbers.
        assert abs(standard.mean()) < 5 / np.sqrt(leaf.size), path
        assert abs(standard.std() - 1) < 5 / np.sqrt(2 * leaf.size), path
        largest = max(largest, np.abs(standard).max())
    assert largest > 3  # The truncated normal of he_normal ends at 2.28.


def test_kaiming_normal_is_normal_of_variance_two_by_fan_in():
    kernel = kaiming_normal(jax.random.key(0), (3, 3, 20, 200))
    assert stats.kstest(np.ravel(kernel) / math.sqrt(2 / 180), "norm").pvalue > 1e-3


def test_initialisation_follows_the_key_and_differs_between_layers():
    model = models.mlp((8, 8, 8))
    init = jax.jit(lambda key: model.init(key, jnp.zeros((1, 8)))["params"])
    first, again, other = (init(jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first["hidden_0"]["kernel"], other["hidden_0"]["kernel"])
    assert not np.array_equal(first["hidden_0"]["kernel"], first["hidden_1"]["kernel"])


# -- Sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        models.ResNet(blocks=(1, 1, 1)),
        models.ResNet(blocks=(1, 2, 1, 1), width=5, shortcut="pad"),
        models.ImageNetResNet(blocks=(1, 1, 1, 1)),
        models.ImageNetResNet(blocks=(1, 1), width=3, bottleneck=True, stem="small"),
        models.VGG((3, 5)),
    ],
    ids=["projection", "pad", "basic", "bottleneck", "vgg"],
)
def test_any_image_of_at_least_a_pixel_works(model):
    for shape in ((1, 1, 1), (3, 37, 4)):
        x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
        logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
        assert logits.shape == (2, model.num_classes)


def test_a_single_pixel_gives_finite_logits():
    model = models.ResNet(blocks=(1, 1), width=3)
    x = jnp.ones((1, 1, 1, 1))
    logits = jax.jit(model.apply)(random_variables(model, x), x)
    assert logits.shape == (1, 10)
    assert jnp.all(jnp.isfinite(logits))


def test_vgg_takes_any_plan_and_says_how_large_the_image_must_be():
    def logits(model, size):
        x = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
        return jax.eval_shape(model.init_with_output, jax.random.key(0), x)[0]

    assert models.vgg_plan((1, 2), width=3) == (3, "M", 6, 6)
    assert logits(models.VGG(("M", 7, "M"), num_classes=4), 4).shape == (2, 4)
    assert logits(models.vgg16_bn(width=2), 16).shape == (2, 100)
    with pytest.raises(ValueError, match=r"inputs: got shape \(2, 15, 15, 3\).* 16x16 pixels"):
        logits(models.vgg16_bn(width=2), 15)


# -- Errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.cifar_resnet(21), r"depth: got 21, expected 6n \+ 2.*nearest: 20"),
        (lambda: models.cifar_resnet(2), r"depth: got 2, .*nearest: 8"),
        (lambda: models.resnet20(shortcut="padding"), "shortcut: got 'padding'.*'projection' or"),
        (lambda: models.resnet18(stem="cifar"), "stem: got 'cifar', .*'imagenet' or 'small'"),
        (lambda: models.resnet20(width=0), "width: got 0, expected an integer of at least 1"),
        (lambda: models.resnet18(num_classes=0), "num_classes: got 0"),
        (lambda: models.ResNet(blocks=(1, -1)), r"blocks: got \(1, -1\)"),
        (lambda: models.mlp((10, 2.5)), r"hidden: got \(10, 2.5\), expected a tuple of integers"),
        (lambda: models.linear_mlp(depth=0), "depth: got 0"),
        (lambda: models.VGG((64, "P")), r"plan: got \[64, 'P'\]"),
    ],
)
def test_bad_arguments_raise_on_construction(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", SMALL)
def test_inputs_without_a_batch_axis_raise(name):
    model, input_shape = SMALL[name]
    shape = input_shape if name != "mlp" else (12,)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    with pytest.raises(ValueError, match=r"inputs: got shape .* Add the batch axis with x\[None\]"):
        jax.eval_shape(model.init, jax.random.key(0), x)


def test_modules_are_static_arguments():
    """Equal modules hash equal, so that one passed to jit as static compiles once."""
    for make in (models.mlp, models.resnet20, models.vgg16_bn, models.resnet18):
        assert make() == make()
        assert hash(make()) == hash(make())


@pytest.mark.parametrize("size, stride, padding", [(2, 2, 0), (3, 3, 0), (3, 2, 1), (2, 1, 0)])
def test_max_pool_is_that_of_flax_with_its_derivatives(size, stride, padding):
    x, direction = images(0, 2, 7, 6, 3), images(1, 2, 7, 6, 3)

    def ours(x):
        return _layers.max_pool(x, size, stride=stride, padding=padding)

    def theirs(x):
        sides = ((padding, padding),) * 2
        return nn.max_pool(x, (size, size), strides=(stride, stride), padding=sides)

    def evaluate(pool):
        gradient = jax.grad(lambda x: jnp.sum(jnp.sin(pool(x))))
        return pool(x), *jax.jvp(gradient, (x,), (direction,))

    found, wanted = jax.jit(lambda: (evaluate(ours), evaluate(theirs)))()
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_of_equal_pixels_the_first_gets_the_derivative():
    x = jnp.asarray(images(0, 2, 6, 6, 3)).round() + 0.0
    x = x.at[0].set(0.0)  # as behind a rectifier
    cotangent = jnp.arange(1.0, 1 + 2 * 3 * 3 * 3).reshape(2, 3, 3, 3)
    gradient = jax.vjp(lambda x: _layers.max_pool(x, 2, stride=2), x)[1](cotangent)[0]
    windows = np.asarray(gradient).reshape(2, 3, 2, 3, 2, 3)
    np.testing.assert_array_equal(windows.sum((2, 4)), cotangent)
    assert ((windows != 0).sum((2, 4)) == 1).all()
    np.testing.assert_array_equal(windows[0, :, 0, :, 0], cotangent[0])


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_pools_over_devices(kind):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,), devices=jax.devices()[:2])
    x = jnp.asarray(images(0, 4, 7, 6, 3))
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))

    def derivatives(x):
        pool = functools.partial(_layers.max_pool, size=2, stride=2)
        gradient = jax.grad(lambda x: jnp.sum(jnp.sin(pool(x))))(x)
        return gradient, jax.jvp(pool, (x,), (gradient,))[1]

    expected = jax.jit(derivatives)(x)
    with jax.set_mesh(mesh):
        found = jax.jit(derivatives)(split)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
        assert a.sharding.is_equivalent_to(split.sharding, a.ndim)


def test_a_pools_gradient_takes_one_pass():
    x = jax.ShapeDtypeStruct((16, 32, 32, 8), jnp.float32)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(_layers.max_pool(x, 2, stride=2) ** 2)))
    temporary = gradient.lower(x).compile().memory_analysis().temp_size_in_bytes
    assert temporary < 4 * 16 * 32 * 32 * 8
