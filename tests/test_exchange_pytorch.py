"""Weights and masks in PyTorch: the same outputs, layer by layer and for whole networks."""

# ruff: noqa: E402  (without PyTorch there is nothing more to import)

import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[bench]'")

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from torch.nn import functional as F

import ntksap_jax as nts
from experiments.benchmark import torch_models
from ntksap_jax import exchange, masks, models

# What the page shows, for a `network`, its `variables`, a `mask`, and a PyTorch `model`.
PAGE = (Path(__file__).parents[1] / "docs" / "exchange.md").read_text()
*_, EXAMPLE = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def random_variables(model, input_shape, seed=0):
    """Variables with nothing neutral in them."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *input_shape)))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("var", "scale"):
            values = rng.uniform(0.5, 1.5, leaf.shape)
        elif name == "kernel":
            values = rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape)
        else:
            values = rng.normal(0, 0.3, leaf.shape)
        return jnp.asarray(values.astype(np.float32))

    return jax.tree_util.tree_map_with_path(draw, shapes)


def random_mask(params, density=0.3, seed=0):
    rng = np.random.default_rng(seed)
    return masks.map_prunable(
        lambda m: jnp.asarray(rng.random(m.shape) < density), masks.create(params)
    )


def tensors(state):
    return {name: torch.from_numpy(array) for name, array in state.items()}


def images_first(x):
    """NHWC to NCHW."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def assert_same(ours, theirs):
    theirs = theirs.detach().numpy()
    assert np.max(np.abs(theirs)) > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.max(np.abs(theirs)))


# -- Whole networks, with the names of others ------------------------------------------------------


class TorchvisionBlock(torch.nn.Module):
    """A basic block with torchvision's names."""

    def __init__(self, into, out, stride):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(out)
        self.conv2 = torch.nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(out)
        self.downsample = None
        if stride != 1 or into != out:
            conv = torch.nn.Conv2d(into, out, 1, stride, bias=False)
            self.downsample = torch.nn.Sequential(conv, torch.nn.BatchNorm2d(out))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class TorchvisionResNet20(torch.nn.Module):
    """ResNet-20 as torchvision's code, cut down for CIFAR, makes it."""

    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(16)
        into = 16
        for stage, out in enumerate((16, 32, 64), start=1):
            blocks = []
            for index in range(3):
                blocks.append(TorchvisionBlock(into, out, 2 if stage > 1 and index == 0 else 1))
                into = out
            self.add_module(f"layer{stage}", torch.nn.Sequential(*blocks))
        self.fc = torch.nn.Linear(64, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


class FeaturesVGG16(torch.nn.Module):
    """VGG-16-BN with its layers numbered in `features`, as torchvision's."""

    def __init__(self):
        super().__init__()
        layers, into = [], 3
        for entry in models.vgg16_bn().plan:
            if entry == "M":
                layers.append(torch.nn.MaxPool2d(2))
                continue
            layers += [torch.nn.Conv2d(into, entry, 3, padding=1, bias=False)]
            layers += [torch.nn.BatchNorm2d(entry), torch.nn.ReLU()]
            into = entry
        self.features = torch.nn.Sequential(*layers)
        self.classifier = torch.nn.Linear(into, 100)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


@pytest.mark.parametrize(
    ("ours", "theirs", "a_name"),
    [
        (
            models.resnet20(),
            TorchvisionResNet20,
            ("block_3/shortcut_conv", "layer2.0.downsample.0"),
        ),
        (models.vgg16_bn(), FeaturesVGG16, ("conv_2", "features.7")),
    ],
    ids=["resnet20", "vgg16_bn"],
)
def test_masked_forward_passes_agree_with_pytorch(ours, theirs, a_name):
    variables = random_variables(ours, (32, 32, 3))
    mask = random_mask(variables["params"])
    model = theirs().eval()
    network = nts.linen(ours, (32, 32, 3), train=False)
    names = {"nts": nts, "network": network, "model": model}
    names |= {"variables": variables, "mask": mask}
    assert len(EXAMPLE.strip().splitlines()) < 10
    exec(EXAMPLE, names)
    assert a_name in names["names"].items()
    x = np.random.default_rng(1).normal(size=(2, 32, 32, 3)).astype(np.float32)
    pruned = variables | {"params": masks.apply(mask, variables["params"])}
    logits = jax.jit(ours.apply)(pruned, x)
    assert_same(logits, model(images_first(x)))
    # Without the mask they would not.
    assert np.max(np.abs(logits - jax.jit(ours.apply)(variables, x))) > 1e-2
    # And back: what `prune` keeps are the masks, and the weights as they were.
    state = model.state_dict()
    kept = {
        name.removesuffix("_mask"): value for name, value in state.items() if name.endswith("_mask")
    }
    like = masks.create(variables["params"])
    again = exchange.from_torch(kept, like=like, names=names["names"])
    assert masks.digest(again) == masks.digest(mask)
    weights = {
        name.removesuffix("_orig"): value
        for name, value in state.items()
        if not name.endswith("_mask")
    }
    again = exchange.from_torch(weights, like=variables, names=names["names"])
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_by_default_names_are_ours_with_dots():
    model = models.ResNet(blocks=(1, 1), width=4)
    variables = random_variables(model, (8, 8, 3))
    theirs = torch_models.cifar_resnet(blocks=(1, 1), width=4).eval()
    mask = random_mask(variables["params"], density=0.8)
    theirs.load_state_dict(tensors(exchange.to_torch(variables)))
    for name, keep in tensors(exchange.to_torch(mask)).items():
        layer = theirs.get_submodule(name.removesuffix(".weight"))
        torch.nn.utils.prune.custom_from_mask(layer, "weight", keep)
    x = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype(np.float32)
    pruned = variables | {"params": masks.apply(mask, variables["params"])}
    assert_same(jax.jit(model.apply)(pruned, x), theirs(images_first(x)))


def test_a_saved_state_dict_is_read_without_pickled_code(tmp_path):
    model = models.ResNet(blocks=(1,), width=2)
    variables = random_variables(model, (4, 4, 3))
    torch.save(tensors(exchange.to_torch(variables)), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    again = exchange.from_torch(state, like=variables)
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_tensors_that_numpy_cannot_hold_are_an_error():
    like = {"fc": {"kernel": jnp.zeros((2, 3))}}
    state = {"fc.weight": torch.ones((3, 2), dtype=torch.bfloat16)}
    with pytest.raises(TypeError, match=r"'fc\.weight' cannot be read .*\.float\(\)"):
        exchange.from_torch(state, like=like)
    state = {name: tensor.float() for name, tensor in state.items()}
    assert np.all(exchange.from_torch(state, like=like)["fc"]["kernel"] == 1)


# -- Layers ----------------------------------------------------------------------------------------


class Attention(torch.nn.Module):
    """Attention of separate dense layers, as in most ports of transformers."""

    def __init__(self, features, heads):
        super().__init__()
        self.heads = heads
        for name in ("query", "key", "value", "out"):
            self.add_module(name, torch.nn.Linear(features, features))

    def forward(self, x):
        def split(x):
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


LAYERS = {
    "dense": (nn.Dense(3), torch.nn.Linear(4, 3), (5, 4), False),
    "conv": (nn.Conv(3, (3, 2), padding="VALID"), torch.nn.Conv2d(4, 3, (3, 2)), (6, 5, 4), True),
    "conv1d": (nn.Conv(3, (2,), padding="VALID"), torch.nn.Conv1d(4, 3, 2), (5, 4), True),
    "conv3d": (
        *(nn.Conv(3, (3, 1, 2), padding="VALID"), torch.nn.Conv3d(4, 3, (3, 1, 2))),
        *((4, 3, 5, 4), True),
    ),
    "grouped": (
        nn.Conv(6, (3, 3), padding="VALID", feature_group_count=2),
        *(torch.nn.Conv2d(4, 6, 3, groups=2), (5, 5, 4), True),
    ),
    "layer_norm": (nn.LayerNorm(epsilon=1e-5), torch.nn.LayerNorm(4), (5, 4), False),
    "group_norm": (nn.GroupNorm(2, epsilon=1e-5), torch.nn.GroupNorm(2, 4), (5, 5, 4), True),
    "batch_norm": (
        nn.BatchNorm(use_running_average=True),
        *(torch.nn.BatchNorm2d(4), (5, 5, 4), True),
    ),
    "attention": (nn.MultiHeadDotProductAttention(num_heads=2), Attention(4, 2), (5, 4), False),
}


# Kernels of three axes may be other things, and unequal windows are not known by their shape.
AXES = {"conv": "ppio", "conv1d": "pio", "conv3d": "pppio"}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_compute_the_same(name):
    layer, theirs, shape, is_image = LAYERS[name]
    variables = random_variables(layer, shape)
    axes = {"kernel": AXES[name]} if name in AXES else None
    theirs.eval().load_state_dict(tensors(exchange.to_torch(variables, axes=axes)))
    x = np.random.default_rng(1).normal(size=(2, *shape)).astype(np.float32)
    ours = jax.jit(layer.apply)(variables, x)
    outputs = theirs(images_first(x) if is_image else torch.from_numpy(x))
    assert_same(ours, torch.movedim(outputs, 1, -1) if is_image else outputs)


def test_embeddings_compute_the_same():
    layer, theirs = nn.Embed(7, 3), torch.nn.Embedding(7, 3)
    x = np.array([[1, 6, 0]])
    variables = layer.init(jax.random.key(0), x)
    theirs.load_state_dict(tensors(exchange.to_torch(variables)))
    assert_same(layer.apply(variables, x), theirs(torch.from_numpy(x)))


def test_a_flattened_image_goes_into_the_same_features():
    model = nn.Sequential([nn.Conv(3, (3, 3)), lambda x: x.reshape(len(x), -1), nn.Dense(2)])
    variables = random_variables(model, (4, 5, 2))
    conv = torch.nn.Conv2d(2, 3, 3, padding=1)
    theirs = torch.nn.Sequential(conv, torch.nn.Flatten(), torch.nn.Linear(60, 2))
    state = exchange.to_torch(
        variables,
        names={"layers_0": "0", "layers_2": "2"},
        flattened={"layers_2": (4, 5, 3)},
    )
    theirs.load_state_dict(tensors(state))
    x = np.random.default_rng(1).normal(size=(2, 4, 5, 2)).astype(np.float32)
    assert_same(model.apply(variables, x), theirs(images_first(x)))
