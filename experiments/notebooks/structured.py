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
# # Structured: a network that really is smaller
#
# A mask makes no network faster: the device multiplies by the zeros as by any other number.
# Removing whole *filters* (the output channels of a layer) does, because what is left is an
# ordinary, smaller, dense network. This notebook prunes the filters of a residual network before
# training, shrinks it, and times it.

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

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import ntksap_jax as nts
from ntksap_jax import structured

# %% [markdown]
# ## What goes with a filter
#
# With a filter go its normalisation and the matching inputs of every layer that reads it. And where
# a residual sum joins layers, their filters are tied: they go together or not at all. `trace` finds
# all of that by following the operations that the model carries out; nothing depends on names.

# %%
INPUT_SHAPE = (16, 16, 3) if SMALL else (32, 32, 3)
model = nts.models.ResNet(blocks=(1,) if SMALL else (1, 1), width=4 if SMALL else 32)
channels = structured.trace(model, INPUT_SHAPE, train=False)
for tied in structured.groups(channels):
    names = " + ".join(path.removesuffix("/kernel") for path in tied)
    print(f"{channels.layers[tied[0]].num_filters:3} filters: {names}")
print("must stay whole:", ", ".join(channels.reasons))

# %% [markdown]
# ## Prune filters
#
# Any criterion can rank filters: the scores of a filter's weights are summed. NTK-SAP's are
# derivatives, so they keep their sign (`signed=True`) until they are summed. Here the schedule is
# of the FLOPs: a quarter of them is left at the end. Every round's result is kept, for the picture
# below.

# %%
ROUNDS = 2 if SMALL else 10
variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *INPUT_SHAPE)))
network = nts.linen(model, INPUT_SHAPE, train=False)
num_samples, batch_size = (1, 10) if SMALL else (2, 30)
score = nts.criteria.ntk_sap(network, num_samples=num_samples, batch_size=batch_size, signed=True)
after_round = []
keep = structured.prune(
    jax.random.key(1),
    variables["params"],
    score,
    channels,
    schedule=nts.schedules.exponential(0.25, rounds=ROUNDS),
    cost="flops",
    on_round=lambda round, keep: after_round.append(keep),
)

# %%
figure, axes = plt.subplots(figsize=(6.5, 0.6 + 0.32 * len(keep)))
names = [name.removesuffix("/kernel") for name in keep]
axes.barh(names, [kept.size for kept in keep.values()], color="#d9d9d9", label="dense")
axes.barh(names, [kept.sum() for kept in keep.values()], label="kept")
axes.invert_yaxis()
axes.grid(axis="y", visible=False)
axes.set(xlabel="number of filters")
axes.legend()
plt.show()

# %% [markdown]
# ## Shrink
#
# `zero_out` sets what belongs to the removed filters to 0; the network computes as before with that
# much left out. `shrink` makes the same function of smaller arrays: an ordinary linen module, with
# parameters of the same paths.


# %%
def shrunk(keep):
    """Returns the masked variables, and the smaller model with its variables."""
    zeroed = structured.zero_out(variables, channels, keep)
    return zeroed, structured.shrink(model, zeroed, channels, keep)


zeroed, (small, fewer) = shrunk(keep)
for name, kept in (("dense", None), ("small", keep)):
    cost = structured.cost(channels, kept)
    print(f"{name}: {cost.flops / 1e6:6.1f} MFLOP an image, {cost.params:,} parameters")

images = jax.random.normal(jax.random.key(2), (16, *INPUT_SHAPE))
large_outputs = jax.jit(model.apply)(zeroed, images)
small_outputs = jax.jit(small.apply)(fewer, images)
difference = jnp.max(jnp.abs(large_outputs - small_outputs)) / jnp.max(jnp.abs(large_outputs))
print(f"outputs of the two differ by {float(difference):.1e} of the largest")

# %% [markdown]
# ## Time it
#
# The median of several forward passes over a batch, compilation not counted: the dense network, the
# same with zeros in it, and the smaller ones after several rounds of the search.

# %%
BATCH = 16 if SMALL else 128
REPEATS = 3 if SMALL else 10
images = jax.random.normal(jax.random.key(3), (BATCH, *INPUT_SHAPE))


def seconds_of(model, variables):
    """Returns the median time of a forward pass over the batch, in seconds."""
    forward = jax.jit(model.apply)
    times = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        forward(variables, images).block_until_ready()
        times.append(time.perf_counter() - started)
    return float(np.median(times[1:]))


dense_flops = structured.cost(channels).flops
timed = {"dense": (1.0, seconds_of(model, variables)), "masked": (1.0, seconds_of(model, zeroed))}
for round in sorted({ROUNDS // 4, ROUNDS // 2, ROUNDS} - {0}):
    keep_then = after_round[round - 1]
    fraction = structured.cost(channels, keep_then).flops / dense_flops
    timed[f"shrunk {fraction:.0%}"] = (fraction, seconds_of(*shrunk(keep_then)[1]))

reference = timed["dense"][1]
for name, (_, seconds) in timed.items():
    print(f"{name:12} {1000 * seconds:7.2f} ms, {seconds / reference:5.0%} of dense")

# %% [markdown]
# Time does not fall as fast as the FLOPs: smaller layers use a device less well, and reading and
# normalising activations takes time too. TPUs compute in blocks of 128 channels, so odd numbers of
# filters buy little there: `multiple_of=` rounds them.
#
# ## Use it
#
# The small network is trained like any other linen module, and saved in one file, without code.

# %%
structured.save("network.safetensors", small, fewer)
again, loaded = structured.load("network.safetensors", model)
outputs = again.apply(loaded, images[:4])
equal = bool(jnp.allclose(outputs, small.apply(fewer, images[:4])))
print(f"{Path('network.safetensors').stat().st_size / 1000:.0f} kB, equal: {equal}")

# %% [markdown]
# Filters can also go after training, by TPP, L1 and others, under a budget of FLOPs, parameters or
# measured time: `python -m experiments.tpp --help`.
