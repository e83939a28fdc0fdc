# ---
# jupyter:
#   accelerator: TPU
#   colab:
#     gpuType: V5E1
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
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
# takes some minutes more for the first round of pruning. The first cell installs the library and
# nothing else.

# %%
# Where the library comes from: the address of its git repository, or a folder with a copy of it.
# Leave it empty where this notebook lies in a checkout, or where the library is installed already.
REPOSITORY = ""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

# True: small sizes, to see quickly that every cell runs. The numbers then mean little.
SMALL = bool(os.environ.get("NTKSAP_SMALL"))

above = [Path.cwd(), *Path.cwd().parents]
checkout = next((folder for folder in above if (folder / "ntksap_jax/__init__.py").is_file()), None)
if REPOSITORY:
    # --no-deps: the runtime keeps its own jax, flax, optax, numpy and libtpu.
    is_address = "://" in REPOSITORY
    source = "git+" + REPOSITORY.removeprefix("git+") if is_address else REPOSITORY
    if not is_address and not Path(source := str(Path(REPOSITORY).expanduser())).is_dir():
        raise ValueError(f"REPOSITORY: no folder {source}; an address begins with https://")
    # --force-reinstall: else pip keeps an older commit that calls itself by the same version.
    pip_install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip_install, "--force-reinstall", source], check=True)
elif checkout:
    sys.path.insert(0, str(checkout))
elif importlib.util.find_spec("ntksap_jax") is None:
    raise ImportError("ntksap_jax is not here: set REPOSITORY at the top of this cell")

from experiments.shell.platform_flags import turn_ynnpack_off

turn_ynnpack_off()  # Sets the flag that XLA needs on CPU; it must be there before JAX starts.

# %% tags=["tpu"]
import time
from collections.abc import Sequence

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import ntksap_jax as nts
from experiments.shell.pictures import COLOURS, STYLE

plt.rcParams.update(STYLE)
device = jax.devices()[0]
print(
    f"jax {jax.__version__}, flax {flax.__version__}; {jax.device_count()} x {device.device_kind}"
)
if jax.__version_info__ < (0, 7, 2):
    raise RuntimeError("JAX 0.7.2 or newer is needed: choose a newer version of the runtime")

# %% [markdown]
# The library needs JAX 0.7.2 and Flax 0.11.2 or newer. If this runtime has older ones, choose a
# newer version of it (in Colab: *Runtime, Change runtime type, Runtime version*); upgrading JAX
# alone would part it from the TPU's driver.
#
# ## Data
#
# The handwritten digits (1797 images of 8×8 pixels) come inside scikit-learn: no download. For
# CIFAR-10 set `DATA = "cifar10"`. It is read from a folder that TFDS prepared, without TensorFlow:
# the one that the environment variable `TFDS_DATA_DIR` names, by default `~/tensorflow_datasets`.
# If it is not there, the next cell downloads the official archive (170 MB) and writes that folder,
# which takes some minutes. CIFAR-10 is for a TPU or GPU: a CPU would train for hours.

# %% tags=["tpu"]
DATA = "digits"  # or "cifar10"

# %% tags=["tpu"]
if DATA == "digits":
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images[..., None].astype(np.float32) / 8 - 1  # grey levels 0..16 to -1..1
    labels = digits.target.astype(np.int32)
    is_test = np.arange(len(labels)) % 5 == 0
elif DATA == "cifar10":
    # Packages that reading it takes. By the constraints, what is installed already stays as it is.
    pip = [sys.executable, "-m", "pip"]
    listed = subprocess.run([*pip, "list", "--format=freeze"], capture_output=True, check=True)
    Path("/tmp/installed.txt").write_bytes(listed.stdout)
    needed = [
        "tyro",
        "tensorflow-datasets",
        "array_record",
        "importlib_resources",
        "grain",
        "pillow",
        "pooch",
    ]
    subprocess.run([*pip, "install", "-q", "-c", "/tmp/installed.txt", *needed], check=True)

    from experiments.data import catalogue, load
    from experiments.data.prepare import prepare
    from experiments.data.prepared import data_root

    print("preparing CIFAR-10: some minutes, unless it was done before", flush=True)
    print("prepared folder:", prepare(catalogue.find("cifar10"), data_root(None)), flush=True)
    cifar = load("cifar10")
    images = np.concatenate([cifar.train_images, cifar.test_images])
    images = ((images / np.float32(255) - cifar.mean) / cifar.std).astype(np.float32)
    labels = np.concatenate([cifar.train_labels, cifar.test_labels])
    is_test = np.arange(len(labels)) >= cifar.num_train
else:
    raise ValueError(f'DATA: got {DATA!r}, expected "digits" or "cifar10"')

train_images, train_labels = images[~is_test], labels[~is_test]
test_images, test_labels = images[is_test], labels[is_test]
print(
    f"{DATA}: {len(train_labels)} training and {len(test_labels)} test images, {images.shape[1:]}"
)

# %% [markdown]
# ## A network
#
# Any Flax module will do (and not only Flax: see the notebook *your own model*). `nts.linen`
# turns it into a `Network`: two pure functions, `init(key) -> params` and `apply(params, inputs) ->
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
model = {
    "digits": ConvNet(features=(8,) if SMALL else (16, 32, 64)),
    "cifar10": nts.models.resnet20(),
}[DATA]
network = nts.linen(model, INPUT_SHAPE, train=False)
params = network.init(jax.random.key(0))
print(
    f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters, "
    f"{nts.masks.num_prunable(nts.masks.create(params)):,} of them prunable"
)

# %% [markdown]
# ## Prune
#
# The *criterion* scores every weight by how much the trace of the neural tangent kernel (NTK)
# depends on it. A score is a sum over a few *samples*: fresh random weights, a batch of Gaussian
# noise, a random probe. The *schedule* says which fraction of the weights is left after each
# *round*: the lowest scores go, the rest is scored again.
#
# The first round includes compilation. Scores are computed in float32, and that takes a TPU's
# compiler minutes where bfloat16 takes less than one. For the larger network of CIFAR-10 it may
# also take more than 20 GB of the host's memory; where that is too much, run
# `jax.config.update("jax_default_matmul_precision", "default")` before the next cell, at the price
# of products in bfloat16 in the scores.

# %% tags=["tpu"]
DENSITY = 0.05  # the fraction of the weights that is kept
ROUNDS = 3 if SMALL else 20

score = nts.criteria.ntk_sap(
    network, num_samples=1 if SMALL else 5, batch_size=20 if SMALL else 100
)
schedule = nts.schedules.exponential(DENSITY, rounds=ROUNDS)


# %%
def report(info, mask):
    """Shows one line that is written over in every round."""
    print(
        f"round {info.round:2} of {ROUNDS}: {info.num_kept:7,} weights left, {info.seconds:.2f} s ",
        end="\r",
        flush=True,
    )


mask, history = nts.prune(jax.random.key(1), params, score, schedule=schedule, on_round=report)
print(f"\nkept {nts.masks.num_kept(mask):,} of {nts.masks.num_prunable(mask):,} weights")

# %% [markdown]
# A mask is a pytree like the params, with a boolean array for each kernel; `True` keeps the weight.
# To compare: weights chosen by lot, as many, and no pruning at all.

# %%
chance, _ = nts.prune(jax.random.key(2), params, nts.criteria.random(), schedule=[DENSITY])
found = {"NTK-SAP": mask, "random": chance, "dense": nts.masks.create(params)}

# %% [markdown]
# ## Look
#
# Where are the weights that are left? Random pruning keeps about the same fraction of every layer,
# the smaller a layer the less exactly. NTK-SAP shares them out otherwise: compare its small layers,
# such as the first and the last, with the large ones.

# %%
layers = [path for path in nts.masks.layer_densities(mask)]
places = np.arange(len(layers))
figure, axes = plt.subplots(figsize=(7, 0.5 + 0.36 * len(layers)), layout="constrained")
for shift, colour, name in ((-0.2, COLOURS[0], "NTK-SAP"), (0.2, COLOURS[1], "random")):
    kept = nts.masks.layer_densities(found[name])
    axes.barh(places + shift, [100 * kept[path] for path in layers], 0.38, color=colour, label=name)
sizes = nts.masks.leaf_paths(params)
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
    alive = nts.connectivity.analyse(network, found[name])
    print(
        f"{name:8}: {alive.effective_density:.2%} of the weights kept and of use, "
        f"{np.mean(list(alive.live_channels.values())):.0%} of the channels alive, "
        f"{len(alive.dead_layers)} dead layers"
    )

# %% [markdown]
# ## Train
#
# The mask goes into the optimiser: whatever `optax` transformation you use, `constrain_to_mask`
# keeps the pruned weights at exactly 0. The mask is part of the optimiser's state, so one compiled
# step serves all three networks.

# %% tags=["tpu"]
EPOCHS = 2 if SMALL else {"digits": 15, "cifar10": 10}[DATA]
BATCH = {"digits": 64, "cifar10": 128}[DATA]
STEPS = len(train_labels) // BATCH  # of an epoch
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


def initial_state(mask):
    """Every network starts from the same weights, but for those that are pruned."""
    masked = nts.masks.apply(mask, params)
    return masked, batch_stats, nts.constrain_to_mask(optimizer, mask).init(masked)


# %%
def accuracy(state):
    parts = [slice(start, start + 500) for start in range(0, len(test_labels), 500)]
    return sum(int(count_correct(state, test_images[p], test_labels[p])) for p in parts) / len(
        test_labels
    )


def train(name, mask):
    """Trains one network; returns its state, the loss of each epoch and the test accuracy."""
    state, losses, accuracies, started = initial_state(mask), [], [], time.perf_counter()
    for epoch in range(EPOCHS):
        order = np.random.default_rng(epoch).permutation(len(train_labels))
        of_epoch = []
        for batch in order[: STEPS * BATCH].reshape(STEPS, BATCH):
            state, loss = train_step(state, train_images[batch], train_labels[batch])
            of_epoch.append(loss)
        losses.append(float(np.mean(jax.device_get(of_epoch))))
        accuracies.append(accuracy(state))
        print(
            f"{name:8} epoch {epoch + 1:2} of {EPOCHS}: loss {losses[-1]:.3f}, test accuracy "
            f"{accuracies[-1]:.1%}, {time.perf_counter() - started:.0f} s ",
            end="\r",
            flush=True,
        )
    print()
    return state, losses, accuracies


trained = {name: train(name, each) for name, each in found.items()}

# %% [markdown]
# Has any pruned weight come back?

# %%
weights = nts.masks.leaf_paths(trained["NTK-SAP"][0][0])
moved = sum(
    np.count_nonzero(np.asarray(weights[path])[~np.asarray(keep)])
    for path, keep in nts.masks.leaf_paths(mask).items()
)
print(f"pruned weights that are not 0 after training: {moved}")

# %% [markdown]
# ## Compare

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
epochs = np.arange(1, EPOCHS + 1)
for colour, marker, (name, (_, losses, accuracies)) in zip(
    COLOURS, "o^s", trained.items(), strict=False
):
    left.plot(epochs, losses, color=colour, marker=marker, markersize=4, label=name)
    right.plot(epochs, [100 * a for a in accuracies], color=colour, marker=marker, markersize=4)
left.set(xlabel="epoch", ylabel="training loss (nats)", yscale="log")
right.set(xlabel="epoch", ylabel="test accuracy (%)")
for axes in (left, right):
    axes.xaxis.get_major_locator().set_params(integer=True)
left.legend()
plt.show()

for name, (_, _, accuracies) in trained.items():
    print(
        f"{name:8} {nts.masks.density(found[name]):7.2%} of the weights: "
        f"{accuracies[-1]:.1%} of the test images right"
    )

# %% [markdown]
# Mind what a difference means: with one seed, and of the digits a few hundred test images, a
# percentage point or two are chance. And two things that sparsity does *not* give are time and
# memory on the device, which multiplies by the zeros as by any other number. The notebook
# *structured* makes networks that really are smaller.
#
# ## Take the mask away

# %%
nts.masks.save("mask.safetensors", mask)
again = nts.masks.load("mask.safetensors", like=params)
print(
    f"mask.safetensors: {Path('mask.safetensors').stat().st_size / 1000:.1f} kB, SHA-256 "
    f"{nts.masks.digest(again)[:12]}..., equal: {nts.masks.digest(again) == nts.masks.digest(mask)}"
)

# %% [markdown]
# `nts.exchange` takes masks and pruned networks to PyTorch, to safetensors and into packed files.
# The other notebooks: *your own model*, *inside NTK-SAP*, *structured*, *many devices*.
