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
# # Structured: a network that really is smaller
#
# A mask makes no network faster: the device multiplies by the zeros as by any other number.
# Removing whole *filters* (the output channels of a layer) does, because what is left is an
# ordinary, smaller, dense network. This notebook prunes the filters of a residual network before
# training, shrinks it, and times it.

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
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import ntksap_jax as nts
from experiments.shell.pictures import COLOURS, STYLE
from ntksap_jax import structured

plt.rcParams.update(STYLE)
device = jax.devices()[0]
print(
    f"jax {jax.__version__}, flax {flax.__version__}; {jax.device_count()} x {device.device_kind}"
)
if jax.__version_info__ < (0, 7, 2):
    raise RuntimeError("JAX 0.7.2 or newer is needed: choose a newer version of the runtime")

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
score = nts.criteria.ntk_sap(
    network, num_samples=1 if SMALL else 2, batch_size=10 if SMALL else 30, signed=True
)
after_round = []


def report(round, keep):
    after_round.append(keep)
    print(
        f"round {round:2} of {ROUNDS}: {structured.cost(channels, keep).flops / 1e6:.1f} MFLOP an "
        "image ",
        end="\r",
        flush=True,
    )


keep = structured.prune(
    jax.random.key(1),
    variables["params"],
    score,
    channels,
    schedule=nts.schedules.exponential(0.25, rounds=ROUNDS),
    cost="flops",
    on_round=report,
)

# %%
figure, axes = plt.subplots(figsize=(6.5, 0.6 + 0.32 * len(keep)), layout="constrained")
names = list(keep)
places = np.arange(len(names))
axes.barh(places, [keep[name].size for name in names], 0.7, color="#d9d9d9", label="dense")
axes.barh(places, [keep[name].sum() for name in names], 0.7, color=COLOURS[0], label="kept")
axes.set_yticks(places, [name.removesuffix("/kernel") for name in names])
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
for name, cost in (
    ("dense", structured.cost(channels)),
    ("small", structured.cost(channels, keep)),
):
    print(f"{name}: {cost.flops / 1e6:6.1f} MFLOP an image, {cost.params:,} parameters")

forward = jax.jit(lambda variables, x: model.apply(variables, x))
forward_small = jax.jit(lambda variables, x: small.apply(variables, x))
images = jax.random.normal(jax.random.key(2), (16, *INPUT_SHAPE))
large_outputs, small_outputs = forward(zeroed, images), forward_small(fewer, images)
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
    compiled = (
        jax.jit(lambda variables, x: model.apply(variables, x)).lower(variables, images).compile()
    )
    times = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        compiled(variables, images).block_until_ready()
        times.append(time.perf_counter() - started)
    return float(np.median(times[1:]))


dense_flops = structured.cost(channels).flops
timed = {"dense": (1.0, seconds_of(model, variables)), "masked": (1.0, seconds_of(model, zeroed))}
for round in sorted({ROUNDS // 4, ROUNDS // 2, ROUNDS} - {0}):
    keep_then = after_round[round - 1]
    fraction = structured.cost(channels, keep_then).flops / dense_flops
    timed[f"shrunk {fraction:.0%}"] = (fraction, seconds_of(*shrunk(keep_then)[1]))

reference = timed["dense"][1]
for name, (fraction, seconds) in timed.items():
    print(
        f"{name:12} {1000 * seconds:7.2f} ms a batch of {BATCH}, "
        f"{seconds / reference:5.0%} of dense, with {fraction:4.0%} of the FLOPs done"
    )

# %%
figure, axes = plt.subplots(figsize=(5, 3.4), layout="constrained")
axes.plot([0, 100], [0, 100], color="black", linewidth=1, linestyle="--", label="time as the FLOPs")
for name, (fraction, seconds) in timed.items():
    style = {"dense": ("o", COLOURS[4]), "masked": ("s", COLOURS[1])}.get(name, ("D", COLOURS[0]))
    label = name.split()[0]
    label = None if label in axes.get_legend_handles_labels()[1] else label
    axes.plot(100 * fraction, 100 * seconds / reference, style[0], color=style[1], label=label)
axes.set(xlabel="FLOPs, of the dense network's (%)", ylabel="time, of the dense network's (%)")
axes.set(xlim=(0, 105), ylim=(0, None))
axes.legend(loc="lower right")
plt.show()

# %% [markdown]
# A point above the line means that time did not fall as fast as the FLOPs: smaller layers use a
# device less well, and reading and normalising activations takes time too. What a network takes on
# *your* device is for you to measure, as here. TPUs compute in blocks of 128 channels, so odd
# numbers of filters buy little there: `multiple_of=` rounds them.
#
# ## Use it
#
# The small network is trained like any other linen module, and saved in one file, without code.

# %%
structured.save("network.safetensors", small, fewer)
again, loaded = structured.load("network.safetensors", model)
outputs = again.apply(loaded, images[:4])
print(
    f"{Path('network.safetensors').stat().st_size / 1000:.0f} kB; outputs {outputs.shape}, "
    f"equal: {bool(jnp.allclose(outputs, small.apply(fewer, images[:4])))}"
)

# %% [markdown]
# Filters can also go after training, by TPP, L1 and others, under a budget of FLOPs, parameters or
# measured time: `python -m experiments.tpp --help`.
