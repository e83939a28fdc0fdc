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
# # Many devices
#
# The samples of a score are independent: each device can draw weights and inputs for its own and
# add its scores to the others', which is one exchange a round. Networks too large for one device
# are split over several. Both are a matter of where arrays lie; results do not depend on it, beyond
# rounding.
#
# This notebook runs on any number of devices, one included (Colab's free TPU has one, Kaggle's
# eight). To try it with eight on a machine that has none, start Jupyter with the environment
# variable `XLA_FLAGS=--xla_force_host_platform_device_count=8`: JAX then takes the CPU for eight
# devices. They share its cores, so the times say little.

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

# %%
import time

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from matplotlib.patches import Rectangle

import ntksap_jax as nts
from experiments.shell.pictures import COLOURS, STYLE

plt.rcParams.update(STYLE)
device = jax.devices()[0]
print(
    f"jax {jax.__version__}, flax {flax.__version__}; {jax.device_count()} x {device.device_kind}"
)
if jax.__version_info__ < (0, 7, 2):
    raise RuntimeError("JAX 0.7.2 or newer is needed: choose a newer version of the runtime")


# %%
class MLP(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(10)(x)


WIDTH = 256 if SMALL else 512
NUM_SAMPLES = 8 if SMALL else 16
SCHEDULE = nts.schedules.exponential(0.05, rounds=2 if SMALL else 6)

network = nts.linen(MLP(WIDTH), (64,))
found, seconds = {}, {}


def search(name, network, **options):
    """Prunes on whatever devices `network` and `options` say; notes mask and time a round."""
    params = network.init(jax.random.key(0))
    score = nts.criteria.ntk_sap(network, num_samples=NUM_SAMPLES, batch_size=100, **options)
    found[name], history = nts.prune(jax.random.key(1), params, score, schedule=SCHEDULE)
    seconds[name] = [info.seconds for info in history]
    print(
        f"{name}: first round {seconds[name][0]:.2f} s with compilation, "
        f"the others {np.median(seconds[name][1:]):.2f} s each"
    )
    return params


# %% [markdown]
# ## One device

# %%
params = search("one device", network)

# %% [markdown]
# ## Samples spread over all devices
#
# A *mesh* names the devices: here one axis, `"data"`, over all of them. `shard_samples` says along
# which axis the samples are spread. Every device draws the weights and inputs of its own; what it
# draws does not depend on how many devices there are.

# %%
mesh = nts.sharding.data_mesh()
over_data = NamedSharding(mesh, PartitionSpec("data"))
print(
    f"{mesh.size} device(s), {NUM_SAMPLES} samples: at most {-(-NUM_SAMPLES // mesh.size)} for each"
)
_ = search("samples spread", network, shard_samples=over_data)

# %% [markdown]
# What the devices exchange does not grow with the number of samples: the sum of the scores, one
# number a weight, once a round.

# %%
sums = nts.masks.num_prunable(found["one device"]) * 4 / 1e6
print(f"exchanged in a round: {sums if mesh.size > 1 else 0:.2f} MB")

# %% [markdown]
# ## A network split over devices
#
# If the params do not fit on one device, a second axis of the mesh, `"model"`, splits them. `init`
# then draws each part where it lies, and masks and scores lie as the params do: no device ever
# holds all of them. Here over two devices if there are two; the rest of them spread the samples.

# %%
MODEL_AXIS = 2 if jax.device_count() % 2 == 0 else 1
mesh_2d = nts.sharding.model_mesh(MODEL_AXIS)
split_network = nts.sharding.shard_network(network, mesh_2d)
split_params = search(
    "network split",
    split_network,
    shard_samples=NamedSharding(mesh_2d, PartitionSpec("data")),
)
for path, leaf in nts.masks.leaf_paths(split_params).items():
    print(f"{path:16} {str(leaf.shape):14} each device has {leaf.addressable_shards[0].data.shape}")

# %% [markdown]
# The picture shows which device holds which part of the second layer's kernel.

# %%
kernel = split_params["Dense_1"]["kernel"]
holders = {}
for shard in kernel.addressable_shards:
    place = tuple(
        (part.start or 0, part.stop or size)
        for part, size in zip(shard.index, kernel.shape, strict=True)
    )
    holders.setdefault(place, []).append(shard.device.id)

figure, axes = plt.subplots(figsize=(4.2, 3.4), layout="constrained")
for colour, ((rows, columns), ids) in zip(COLOURS, holders.items(), strict=False):
    size = (columns[1] - columns[0], rows[1] - rows[0])
    axes.add_patch(Rectangle((columns[0], rows[0]), *size, facecolor=colour, edgecolor="white"))
    label = f"device{'s' if len(ids) > 1 else ''}\n{', '.join(map(str, sorted(ids)))}"
    axes.text(sum(columns) / 2, sum(rows) / 2, label, ha="center", va="center", color="white")
axes.set(xlim=(0, kernel.shape[1]), ylim=(kernel.shape[0], 0))
axes.set(xlabel="output of the layer", ylabel="input of the layer")
axes.grid(visible=False)
plt.show()

# %% [markdown]
# ## The same masks?
#
# The order of a sum decides its last bits, and a last bit can decide which of two weights at the
# threshold goes. So a few weights may differ, hardly more.

# %%
reference = nts.masks.leaf_paths(found["one device"])
for name, mask in found.items():
    other = nts.masks.leaf_paths(mask)
    differing = sum(
        int(np.sum(np.asarray(other[p]) != np.asarray(reference[p]))) for p in reference
    )
    print(
        f"{name:15} keeps {nts.masks.num_kept(mask):,} weights; "
        f"{differing // 2} of them are others than on one device"
    )

# %% [markdown]
# ## How long

# %%
figure, axes = plt.subplots(figsize=(6, 2), layout="constrained")
for place, (colour, times) in enumerate(zip(COLOURS, seconds.values(), strict=False)):
    axes.plot(times[1:], [place] * (len(times) - 1), "o", color=colour, alpha=0.6)
axes.set_yticks(range(len(seconds)), list(seconds))
axes.set(ylim=(len(seconds) - 0.5, -0.5), xlabel="seconds a round, without the first")
axes.set_xlim(left=0)
plt.show()

# %% [markdown]
# ## Training on all devices
#
# Params and mask go to every device (`replicate`), each batch is split (`shard_batch`); the
# training step is the one that you have. `jax.jit` sees where its arguments lie, and adds the
# exchange of the gradients.

# %%
mask = nts.sharding.replicate(found["one device"], mesh)
params = nts.masks.apply(mask, nts.sharding.replicate(params, mesh))
optimizer = nts.constrain_to_mask(optax.adam(1e-3), mask)
opt_state = optimizer.init(params)


@jax.jit
def train_step(params, opt_state, inputs, labels):
    def loss_fn(params):
        logits = network.apply_train(params, inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, gradients = jax.value_and_grad(loss_fn)(params)
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss


batch = (jax.random.normal(jax.random.key(2), (128, 64)), jnp.arange(128) % 10)
batch = nts.sharding.shard_batch(batch, mesh)
print(f"each device has {batch[0].addressable_shards[0].data.shape[0]} of 128 examples")
for count in range(20):
    started = time.perf_counter()
    params, opt_state, loss = train_step(params, opt_state, *batch)
    loss.block_until_ready()
    if count in (0, 19):
        milliseconds = 1000 * (time.perf_counter() - started)
        print(f"step {count + 1:2}: loss {loss:.3f}, {milliseconds:.1f} ms")

# %% [markdown]
# Several processes on several machines work the same way, after `jax.distributed.initialize()`. The
# program `python -m experiments.cifar --distributed` does that, with checkpoints and preemption.
