"""FLOPs: the totals that TPP reports, and hand counts of layers and masks."""

import collections
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntksap_jax as nts
from ntksap_jax import flops, models, structured


def counts(model, input_shape):
    return flops.count(nts.linen(model, input_shape))


@pytest.mark.parametrize(
    ("model", "input_shape", "total"),
    [
        (models.vgg19_bn(), (32, 32, 3), 796_364_800),
        (models.linear_mlp(), (32, 32, 1), 306_800),
        # From the same table: the linear network after TPP has removed neurons.
        (models.mlp((90,) * 6), (32, 32, 1), 267_120),
        (models.mlp((70,) * 6), (32, 32, 1), 193_760),
        (models.mlp((10,) * 6), (32, 32, 1), 21_680),
    ],
)
def test_totals_are_those_of_tpp(model, input_shape, total):
    assert sum(counts(model, input_shape).values()) == total


@pytest.mark.parametrize(("padding", "pairs"), [("VALID", 8 * 3), ("SAME", 8 * 3 - 1)])
def test_zeros_of_a_transposed_convolution_cost_nothing(padding, pairs):
    """Along an axis each input meets each entry of the kernel once, but for what is cut off."""
    model = nn.ConvTranspose(4, (3, 3), strides=(2, 2), padding=padding)
    assert flops.count(nts.linen(model, (8, 8, 3))) == {"kernel": 2 * pairs**2 * 3 * 4}


def test_a_kernel_made_of_several_params_counts_for_the_one_of_its_size():
    model = nn.WeightNorm(nn.Dense(4))
    assert flops.count(nts.linen(model, (3,))) == {"layer_instance/kernel": 24}


def test_each_layer_by_hand():
    per_kernel = counts(models.ResNet(blocks=(1, 1), width=4, num_classes=5), (8, 6, 3))
    assert per_kernel == {
        "conv/kernel": 2 * 27 * 4 * 48,
        "block_0/conv1/kernel": 2 * 36 * 4 * 48,
        "block_0/conv2/kernel": 2 * 36 * 4 * 48,
        "block_1/conv1/kernel": 2 * 36 * 8 * 12,
        "block_1/conv2/kernel": 2 * 72 * 8 * 12,
        "block_1/shortcut_conv/kernel": 2 * 4 * 8 * 12,
        "fc/kernel": 2 * 8 * 5,
    }


def by_modules(model, input_shape):
    """Every entry of the kernel of an `nn.Conv` or `nn.Dense` is used once at each position."""
    counts = collections.Counter()

    def count(next_fun, args, kwargs, context):
        outputs, module = next_fun(*args, **kwargs), context.module
        if isinstance(module, nn.Conv | nn.Dense) and context.method_name == "__call__":
            kernel = module.get_variable("params", "kernel")
            path = "/".join((*module.path, "kernel"))
            counts[path] += 2 * kernel.size * math.prod(outputs.shape[1:-1])
        return outputs

    with nn.intercept_methods(count):
        variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *input_shape)))
    return counts, sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (models.linear_mlp(), (1024,)),
        (models.VGG((2, "M", 4), num_classes=5), (8, 8, 3)),
        (models.ImageNetResNet((1,), True, 2, 5), (16, 16, 3)),
    ],
)
def test_counts_are_those_by_modules_and_those_of_channels(model, shape):
    want, num_params = by_modules(model, shape)
    channels = structured.trace(model, shape, train=False)
    assert counts(model, shape) == channels.flops == want
    cost = structured.cost(channels)
    assert (cost.flops, cost.params) == (sum(want.values()), num_params)


def test_grouped_strided_and_repeated_layers():
    """Grouped: each of the 6 outputs reads 4 / 2 channels of 9 pixels, at 3·2 positions."""

    class Layers(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(6, (3, 3), strides=2, padding=1, feature_group_count=2, name="grouped")(x)
            shared = nn.Dense(6, name="shared")
            return shared(shared(x).mean((1, 2)))

    assert counts(Layers(), (6, 4, 4)) == {
        "grouped/kernel": 2 * (6 * 2 * 9) * (3 * 2),
        "shared/kernel": 2 * 36 * (3 * 2 + 1),
    }


def test_kernels_of_loops_and_of_any_framework_and_no_products_of_activations():
    """5 steps of an 8 x 8 kernel beside one of 3 x 8; 4 x 4 scores of attention belong to none."""

    def apply(params, x):
        x = x @ (params["in"] - params["in"].mean())
        x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w["w"]), None), x, params["loop"])
        return jnp.einsum("nth,nsh->nts", x, x) @ params["out"]

    def init(key):
        return {"in": jnp.ones((3, 8)), "loop": {"w": jnp.ones((5, 8, 8))}, "out": jnp.ones((4, 2))}

    found = flops.count(nts.plain(init, apply, (4, 3)))
    assert found == {
        "in": 2 * 4 * 3 * 8, "loop/w": 2 * 4 * 5 * 8 * 8, "out": 2 * 4 * 4 * 2
    }  # fmt: skip


def test_kept_flops_by_hand():
    model = models.mlp((4,), num_classes=2)
    per_kernel = counts(model, (3,))
    assert per_kernel == {"hidden_0/kernel": 24, "fc/kernel": 16}
    hidden = np.zeros((3, 4), bool)
    hidden[0, 1] = hidden[2, 2] = True
    fc = np.ones((4, 2), bool)
    fc[0, 0] = False

    def mask(hidden, fc):
        return {"hidden_0": {"kernel": hidden, "bias": None}, "fc": {"kernel": fc, "bias": None}}

    assert flops.kept(per_kernel, mask(hidden, fc)) == 2 * 2 + 7 * 2
    assert flops.kept(per_kernel, mask(jnp.array(hidden), None)) == 2 * 2 + 16
    assert flops.kept(per_kernel, mask(~np.zeros_like(hidden), ~np.zeros_like(fc))) == 40
    assert flops.kept(per_kernel, mask(np.zeros_like(hidden), np.zeros_like(fc))) == 0


def test_kept_flops_of_a_filter_mask_are_those_of_the_smaller_network():
    """Masking whole filters, and what reads them, costs what the network without them costs."""
    dense, small = models.VGG((8, "M", 6), num_classes=5), models.VGG((3, "M", 4), num_classes=5)
    mask = {
        "conv_0": {"kernel": np.zeros((3, 3, 3, 8), bool)},
        "conv_1": {"kernel": np.zeros((3, 3, 8, 6), bool)},
        "fc": {"kernel": np.zeros((6, 5), bool), "bias": None},
        "bn_0": {"scale": None, "bias": None},
    }
    mask["conv_0"]["kernel"][..., :3] = True
    mask["conv_1"]["kernel"][..., :3, :4] = True
    mask["fc"]["kernel"][:4] = True
    shape = (8, 8, 3)
    assert flops.kept(counts(dense, shape), mask) == sum(counts(small, shape).values())


def test_a_pruned_leaf_of_unknown_cost_raises():
    mask = {"attention": {"kernel": np.ones((2, 2), bool)}}
    with pytest.raises(
        ValueError, match="leaf 'attention/kernel' is no kernel whose FLOPs were counted"
    ):
        flops.kept({"fc/kernel": 8}, mask)
