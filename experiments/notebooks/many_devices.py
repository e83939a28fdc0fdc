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
# # Many devices
#
# The samples of a score are independent, so they can be spread over devices, which add their scores
# up once a round. Networks too large for one device are split over several. Both are a matter of
# where arrays lie; results do not depend on it, beyond rounding.
#
# This notebook runs on any number of devices, one included. To try it with eight on a machine that
# has none, start Jupyter with the environment variable
# `XLA_FLAGS=--xla_force_host_platform_device_count=8`: JAX then takes the CPU for eight devices.
# They share its cores, so the times say little.

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

# %%
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

import ntksap_jax as nts


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
found = {}


def search(name, network, **options):
    """Prunes on whatever devices `network` and `options` say; notes the mask."""
    params = network.init(jax.random.key(0))
    score = nts.criteria.ntk_sap(network, num_samples=NUM_SAMPLES, batch_size=100, **options)
    found[name], history = nts.prune(jax.random.key(1), params, score, schedule=SCHEDULE)
    later = np.median([info.seconds for info in history[1:]])
    print(f"{name}: first round {history[0].seconds:.2f} s, with compilation; later {later:.2f} s")
    return params


# %% [markdown]
# ## One device

# %%
params = search("one device", network)

# %% [markdown]
# ## Samples spread over all devices
#
# A *mesh* names the devices: here one axis, `"data"`, over all of them. `shard_samples` says along
# which axis the samples are spread. What is drawn for a sample does not depend on how many devices
# there are, and what they exchange does not grow with the number of samples.

# %%
mesh = nts.sharding.data_mesh()
over_data = NamedSharding(mesh, PartitionSpec("data"))
most = -(-NUM_SAMPLES // mesh.size)
print(f"{mesh.size} device(s), {NUM_SAMPLES} samples: at most {most} for each")
_ = search("samples spread", network, shard_samples=over_data)

# %% [markdown]
# ## A network split over devices
#
# If the params do not fit on one device, a second axis of the mesh, `"model"`, splits them. `init`
# then draws each part on its device, and masks and scores are sharded as the params are: no device
# ever holds all of them. Here over two devices, if there are two; the others share the samples.

# %%
MODEL_AXIS = 2 if jax.device_count() % 2 == 0 else 1
mesh_2d = nts.sharding.model_mesh(MODEL_AXIS)
split_network = nts.sharding.shard_network(network, mesh_2d)
over_data = NamedSharding(mesh_2d, PartitionSpec("data"))
split_params = search("network split", split_network, shard_samples=over_data)
for path, leaf in nts.masks.leaf_paths(split_params).items():
    print(f"{path:16} {str(leaf.shape):14} each device has {leaf.addressable_shards[0].data.shape}")

# %% [markdown]
# Which device holds which part of the second layer's kernel:

# %%
jax.debug.visualize_array_sharding(split_params["Dense_1"]["kernel"])

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
    print(f"{name:15} keeps {nts.masks.num_kept(mask):,} weights, {differing // 2} of them others")

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
