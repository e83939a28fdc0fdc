# ---
# jupyter:
#   accelerator: TPU
#   colab:
#     gpuType: V5E1
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Quickstart: prune before training
#
# NTK-SAP removes most connections of a network *before* it is trained, from random weights and
# Gaussian noise alone: no data, no labels. This notebook prunes a small convolutional network,
# looks at what is left, trains it, and compares it with random pruning and with the dense network.
#
# It runs on a TPU (Colab's free one will do), a GPU or a CPU, in a minute or two; a TPU's compiler
# takes some minutes more for the first round of pruning.

# %%
# Leave this empty in a checkout. Elsewhere it is the address of the library's git repository, which
# is then cloned. Nothing is installed, so that the runtime keeps its own JAX.
REPOSITORY = ""

import subprocess
import sys
from pathlib import Path

clone = Path("ntksap_jax-clone").resolve()
if REPOSITORY and not clone.exists():
    subprocess.run(["git", "clone", "--quiet", "--depth=1", REPOSITORY, clone], check=True)
sys.path[:0] = [str(place) for place in (*clone.parents, clone) if (place / "ntksap_jax").is_dir()]

from experiments.notebooks import SMALL, start

start()

# %% tags=["tpu"]
import time
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import ntksap_jax as nts

# %% [markdown]
# ## Data
#
# The handwritten digits (1797 images of 8×8 pixels) come inside scikit-learn. CIFAR-10 is for a TPU
# or GPU, because a CPU would train for hours. It is read from a folder that TFDS prepared
# (`TFDS_DATA_DIR`, by default `~/tensorflow_datasets`); if there is none, it is downloaded (170 MB)
# and prepared, which takes some minutes.

# %% tags=["tpu"]
DATA = "digits"  # or "cifar10"

if DATA == "digits":
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images[..., None].astype(np.float32) / 8 - 1  # grey levels 0..16 to -1..1
    labels = digits.target.astype(np.int32)
    is_test = np.arange(len(labels)) % 5 == 0
else:
    # What reading it takes. By the constraints, all that is installed already stays as it is.
    pip = [sys.executable, "-m", "pip"]
    frozen = subprocess.run([*pip, "list", "--format=freeze"], capture_output=True, check=True)
    Path("/tmp/installed.txt").write_bytes(frozen.stdout)
    checkout = Path(nts.__file__).parents[1]
    extras = f"{checkout}[experiments]"
    subprocess.run([*pip, "install", "-q", "-c", "/tmp/installed.txt", extras], check=True)
    command = [sys.executable, "-m", "experiments.data", "prepare", DATA]
    subprocess.run(command, cwd=checkout, check=True)

    from experiments.data import load

    cifar = load(DATA)
    images = np.concatenate([cifar.train_images, cifar.test_images])
    images = ((images / np.float32(255) - cifar.mean) / cifar.std).astype(np.float32)
    labels = np.concatenate([cifar.train_labels, cifar.test_labels])
    is_test = np.arange(len(labels)) >= cifar.num_train

train_images, train_labels = images[~is_test], labels[~is_test]
test_images, test_labels = images[is_test], labels[is_test]
print(f"{DATA}: {len(train_labels)} training and {len(test_labels)} test images")

# %% [markdown]
# ## A network
#
# Any Flax module will do (and not only Flax: see the notebook *your own model*). `linen` turns it
# into a `Network`: two pure functions, `init(key) -> params` and `apply(params, inputs) ->
# outputs`. `train=False` is what puts this module into evaluation mode; the criterion then
# normalises each batch with its own statistics, held constant.


# %% tags=["tpu"]
class ConvNet(nn.Module):
    """Convolutions with batch normalisation, an average over the pixels, a classifier."""

    features: Sequence[int]

    @nn.compact
    def __call__(self, x, train=False):
        for features in self.features:
            x = nn.Conv(features, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(10)(x.mean(axis=(1, 2)))


INPUT_SHAPE = images.shape[1:]
small = ConvNet(features=(8,) if SMALL else (16, 32, 64))
model = {"digits": small, "cifar10": nts.models.resnet20()}[DATA]
network = nts.linen(model, INPUT_SHAPE, train=False)
params = network.init(jax.random.key(0))

# %% [markdown]
# ## Prune
#
# The *criterion* scores every weight by how much the trace of the neural tangent kernel (NTK)
# depends on it. A score is a sum over a few *samples*: fresh random weights, a batch of Gaussian
# noise, a random probe. In each of 20 *rounds* the lowest scores go, and the rest is scored again.
#
# The first round includes compilation. Scores are computed in float32, and that takes a TPU's
# compiler minutes where bfloat16 takes less than one. For the larger network of CIFAR-10 it may
# also take more than 20 GB of the host's memory; where that is too much, run
# `jax.config.update("jax_default_matmul_precision", "default")` before the next cell, at the price
# of products in bfloat16 in the scores.

# %% tags=["tpu"]
DENSITY = 0.05  # the fraction of the weights that is kept
num_samples, batch_size = (1, 20) if SMALL else (5, 100)
score = nts.criteria.ntk_sap(network, num_samples=num_samples, batch_size=batch_size)


# %%
started = time.perf_counter()
mask, _ = nts.prune(jax.random.key(1), params, score, density=DENSITY)
print(f"20 rounds in {time.perf_counter() - started:.0f} s, with compilation")
print(f"kept {nts.masks.num_kept(mask):,} of {nts.masks.num_prunable(mask):,} weights")

# %% [markdown]
# A mask is a pytree like the params, with a boolean array for each kernel; `True` keeps the weight.
# To compare: as many weights chosen at random, and no pruning at all.

# %%
chance, _ = nts.prune(jax.random.key(2), params, nts.criteria.random(), density=DENSITY)
masks = {"NTK-SAP": mask, "random": chance, "dense": nts.masks.create(params)}

# %% [markdown]
# ## Look
#
# Where are the weights that are left? Random pruning keeps about the same fraction of every layer.
# NTK-SAP does not: compare small layers, such as the first and the last, with large ones.

# %%
sizes = nts.masks.leaf_paths(params)
layers = list(nts.masks.layer_densities(mask))
places = np.arange(len(layers))
figure, axes = plt.subplots(figsize=(7, 0.5 + 0.36 * len(layers)))
for shift, name in ((-0.2, "NTK-SAP"), (0.2, "random")):
    kept = nts.masks.layer_densities(masks[name])
    axes.barh(places + shift, [100 * kept[path] for path in layers], 0.38, label=name)
axes.set_yticks(places, [f"{p.removesuffix('/kernel')} ({sizes[p].size:,})" for p in layers])
axes.invert_yaxis()
axes.grid(axis="y", visible=False)
axes.set(xlabel="weights kept in the layer (%)", ylabel="layer (number of weights)")
axes.legend()
plt.show()

# %% [markdown]
# A kept weight is of use only on a path from an input to an output. `connectivity` counts those,
# and the output channels of each layer that are still alive.

# %%
for name in ("NTK-SAP", "random"):
    alive = nts.connectivity.analyse(network, masks[name])
    live = np.mean(list(alive.live_channels.values()))
    print(f"{name}: {alive.effective_density:.2%} of the weights of use, {live:.0%} channels alive")

# %% [markdown]
# ## Train
#
# The mask goes into the optimiser: whatever `optax` transformation you use, `constrain_to_mask`
# keeps the pruned weights at exactly 0. The mask is part of the optimiser's state, so one compiled
# step serves all three networks.

# %% tags=["tpu"]
EPOCHS = 2 if SMALL else {"digits": 15, "cifar10": 10}[DATA]
BATCH = {"digits": 64, "cifar10": 128}[DATA]
STEPS = len(train_labels) // BATCH  # in an epoch
optimizer = optax.chain(
    optax.add_decayed_weights(1e-4),
    optax.sgd(optax.cosine_decay_schedule(0.1, EPOCHS * STEPS), momentum=0.9, nesterov=True),
)


def loss_fn(params, batch_stats, images, labels):
    logits, updated = model.apply(
        {"params": params, "batch_stats": batch_stats}, images, train=True, mutable="batch_stats"
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), updated["batch_stats"]


@jax.jit
def train_step(state, images, labels):
    params, batch_stats, opt_state = state
    (loss, batch_stats), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
        params, batch_stats, images, labels
    )
    constrained = nts.constrain_to_mask(optimizer, opt_state.mask)
    updates, opt_state = constrained.update(gradients, opt_state, params)
    return (optax.apply_updates(params, updates), batch_stats, opt_state), loss


@jax.jit
def count_correct(state, images, labels):
    params, batch_stats, _ = state
    logits = model.apply({"params": params, "batch_stats": batch_stats}, images)
    return jnp.sum(jnp.argmax(logits, axis=-1) == labels)


variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *INPUT_SHAPE)))
batch_stats = variables["batch_stats"]  # of batch normalisation: means 0 and variances 1


# %%
def train(name, mask):
    """Trains from the same weights, but for the pruned ones; returns params, loss and accuracy."""
    weights = nts.masks.apply(mask, params)
    state = (weights, batch_stats, nts.constrain_to_mask(optimizer, mask).init(weights))
    numbers, started = [], time.perf_counter()
    for epoch in range(EPOCHS):
        order = np.random.default_rng(epoch).permutation(len(train_labels))
        losses = []
        for batch in order[: STEPS * BATCH].reshape(STEPS, BATCH):
            state, loss = train_step(state, train_images[batch], train_labels[batch])
            losses.append(loss)
        parts = [slice(first, first + 500) for first in range(0, len(test_labels), 500)]
        correct = sum(int(count_correct(state, test_images[p], test_labels[p])) for p in parts)
        numbers.append((float(np.mean(jax.device_get(losses))), correct / len(test_labels)))
        line = f"{name:8} epoch {epoch + 1:2}: loss {numbers[-1][0]:.3f}, test {numbers[-1][1]:.1%}"
        print(f"{line}, {time.perf_counter() - started:.0f} s ", end="\r", flush=True)
    print()
    return state[0], np.array(numbers)


trained = {name: train(name, mask) for name, mask in masks.items()}

# %% [markdown]
# Has any pruned weight come back?

# %%
weights = nts.masks.leaf_paths(trained["NTK-SAP"][0])
kept = nts.masks.leaf_paths(mask)
moved = sum(np.count_nonzero(np.where(keep, 0, weights[path])) for path, keep in kept.items())
print(f"pruned weights that are not 0 after training: {moved}")

# %% [markdown]
# ## Compare

# %%
figure, (left, right) = plt.subplots(1, 2)
epochs = np.arange(1, EPOCHS + 1)
for name, (_, numbers) in trained.items():
    losses, accuracies = numbers.T
    left.semilogy(epochs, losses, label=name)
    right.plot(epochs, 100 * accuracies)
    density = nts.masks.density(masks[name])
    print(f"{name:8} {density:7.2%} of the weights: {accuracies[-1]:.1%} right")
left.set(xlabel="epoch", ylabel="training loss (nats)")
right.set(xlabel="epoch", ylabel="test accuracy (%)")
left.legend()
plt.show()

# %% [markdown]
# With one seed, and of the digits a few hundred test images, a percentage point or two are chance.
# And sparsity saves neither time nor memory on the device, which multiplies by the zeros as by any
# other number. The notebook *structured* makes networks that really are smaller.
#
# ## Take the mask away

# %%
nts.masks.save("mask.safetensors", mask)
again = nts.masks.load("mask.safetensors", like=params)
size = Path("mask.safetensors").stat().st_size / 1000
print(f"{size:.1f} kB, equal: {nts.masks.digest(again) == nts.masks.digest(mask)}")

# %% [markdown]
# `nts.exchange` takes masks and pruned networks to PyTorch, to safetensors and into packed files.
# The other notebooks: *your own model*, *inside NTK-SAP*, *structured*, *many devices*.
