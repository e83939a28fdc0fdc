"""A vision transformer, pruned before training: which of its parts keep how many of their weights.

    python -m experiments.examples.vision_transformer            digits, enlarged to 32x32
    python -m experiments.examples.vision_transformer cifar10    from TFDS_DATA_DIR

A small ViT (Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021; pre-norm, and the mean
over the patches instead of a class token, after Beyer et al., "Better plain ViT baselines for
ImageNet-1k", 2022) is pruned by NTK-SAP from fresh weights and Gaussian images alone. Nothing in it
needs to be told to the search: the kernels of the patches, of attention (three axes: features,
heads, features of a head), of the MLPs and of the head are prunable by their name. (`masks.create`
with `include=["/kernel$", "^positions$"]` would prune the embedding of positions too.)

What came out is in docs/results/other-models.md.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import ntksap_jax as nts
from experiments import data
from experiments.examples import shared
from experiments.shell import exits
from experiments.shell.errors import UserError
from ntksap_jax import criteria, masks, ntk, schedules
from ntksap_jax.types import Key, Params

IMAGE_SIZE = 32

ROLES = {
    "patches": r"^patches/kernel$",
    "query, key": r"attention/(query|key)/kernel$",
    "value": r"attention/value/kernel$",
    "out": r"attention/out/kernel$",
    "MLP in": r"mlp_in/kernel$",
    "MLP out": r"mlp_out/kernel$",
    "head": r"^head/kernel$",
}
"""Parts of the network, by the paths of their weights."""


class VisionTransformer(nn.Module):
    """Patches to features, blocks, the mean over the patches, a linear head."""

    num_classes: int
    patch_size: int
    features: int
    depth: int
    num_heads: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images (N, height, width, channels) to logits (N, num_classes)."""
        patch = (self.patch_size, self.patch_size)
        x = nn.Conv(self.features, patch, strides=patch, padding="VALID", name="patches")(images)
        x = x.reshape(x.shape[0], -1, self.features)
        x = x + self.param("positions", nn.initializers.normal(0.02), x.shape[1:])
        for index in range(self.depth):
            x = shared.Block(self.num_heads, name=f"block_{index}")(x)
        return nn.Dense(self.num_classes, name="head")(nn.LayerNorm()(x).mean(axis=1))


def to_inputs(dataset: data.Dataset, images: jax.Array) -> jax.Array:
    """Normalises uint8 images and enlarges them to 32x32, if they are smaller."""
    inputs = data.normalise(images, mean=dataset.mean, std=dataset.std)
    shape = (len(images), IMAGE_SIZE, IMAGE_SIZE, images.shape[-1])
    return jax.image.resize(inputs, shape, "linear")


def main(
    name: str = "digits",
    *,
    patch_size: int = 8,
    features: int = 64,
    depth: int = 2,
    num_heads: int = 4,
    density: float = 0.05,
    rounds: int = 10,
    num_samples: int = 5,
    score_size: int = 32,
    steps: int = 300,
    batch_size: int = 64,
) -> list[shared.Run]:
    """Compares dense, random, ERK and NTK-SAP, and shows what they keep of each part."""
    dataset = data.load(name)
    if not isinstance(dataset, data.Dataset):
        raise UserError(f"{name} is streamed from files; this example takes images in memory")
    model = VisionTransformer(dataset.num_classes, patch_size, features, depth, num_heads)
    network = nts.linen(model, (IMAGE_SIZE, IMAGE_SIZE, dataset.image_shape[-1]))
    init_key, mask_key, train_key = jax.random.split(jax.random.key(0), 3)
    params = network.init(init_key)

    ntk_sap = criteria.ntk_sap(network, num_samples=num_samples, batch_size=score_size)
    by_vjp = criteria.ntk_sap(
        network, estimator=ntk.vjp, num_samples=num_samples, batch_size=score_size
    )
    schedule = schedules.exponential(density, rounds=rounds)

    scores = {
        "random": criteria.random(),
        "ERK": criteria.erk(),
        "NTK-SAP": ntk_sap,
        "balanced": criteria.balanced(by_vjp),
    }
    to_train = shared.make_masks(mask_key, params, scores, schedule=schedule)
    by_layer, _ = nts.prune(mask_key, params, ntk_sap, schedule=schedule, scope="layer")
    to_train["NTK-SAP by layer"] = by_layer
    images, labels = jnp.asarray(dataset.train_images), jnp.asarray(dataset.train_labels)

    def loss_fn(params: Params, state: None, key: Key) -> tuple[jax.Array, None]:
        batch = jax.random.randint(key, (batch_size,), 0, dataset.num_train)
        logits = network.apply(params, to_inputs(dataset, images[batch]))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch])
        return jnp.mean(losses), state

    optimizer = functools.partial(shared.adamw_with_warmup, steps=steps)
    train = shared.make_train(loss_fn, optimizer, steps=steps)
    test_inputs = to_inputs(dataset, jnp.asarray(dataset.test_images))

    @jax.jit
    def accuracy(params: Params) -> jax.Array:
        predicted = jnp.argmax(network.apply(params, test_inputs), axis=-1)
        return jnp.mean(predicted == jnp.asarray(dataset.test_labels))

    def measure(params: Params, _: None) -> dict[str, float]:
        return {"accuracy": float(accuracy(params))}

    runs = shared.train_each(train, train_key, params, to_train, 2e-3, measure=measure)
    show(runs)
    return runs


def show(runs: Sequence[shared.Run]) -> None:
    """Prints a column for each mask: how much it keeps of each part, and the accuracy."""
    rows = [
        [role, *(f"{shared.density_of(pattern, run.mask):.3f}" for run in runs)]
        for role, pattern in ROLES.items()
    ]
    accuracies = [f"{run.results['accuracy']:.1%}" for run in runs]
    weights = [f"{masks.num_kept(run.mask):,}" for run in runs]
    columns = ["", *(run.method for run in runs)]
    shared.show(columns, [["weights", *weights], *rows, ["test accuracy", *accuracies]])


if __name__ == "__main__":
    with exits.in_one_line():
        if len(sys.argv) > 2:
            raise UserError(f"expected one word, the name of a data set; got {sys.argv[1:]}")
        main(*sys.argv[1:])
