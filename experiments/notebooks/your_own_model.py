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
# # Your own model
#
# The library works on two pure functions: `init(key) -> params` and `apply(params, inputs) ->
# outputs`. `networks` makes such a pair, a `Network`, of a model in `flax.linen`, `flax.nnx`, or of
# functions that you wrote yourself. Frameworks with an `init`/`apply` pattern of their own, such as
# Equinox, take five lines. This notebook prunes the same small network in all four; no data are
# needed.

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
from importlib.util import find_spec

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import ntksap_jax as nts

# %% [markdown]
# The network: a convolution with batch normalisation and a classifier, for images of 8×8 pixels
# with one channel. One function prunes whatever `Network` it is given.

# %%
INPUT_SHAPE = (8, 8, 1)  # of one image, without the batch axis
FEATURES = 8 if SMALL else 32
DENSITY, ROUNDS = 0.1, 2 if SMALL else 10


def prune(name, network, **options):
    """Prunes a network by NTK-SAP; prints what is left of each layer."""
    params = network.init(jax.random.key(0))
    score = nts.criteria.ntk_sap(network, num_samples=2 if SMALL else 5, batch_size=20, **options)
    schedule = nts.schedules.exponential(DENSITY, rounds=ROUNDS)
    mask, _ = nts.prune(jax.random.key(1), params, score, schedule=schedule)
    print(f"{name}: {nts.masks.num_kept(mask)} of {nts.masks.num_prunable(mask)} weights kept")
    for path, density in nts.masks.layer_densities(mask).items():
        print(f"  {path:20} {density:6.1%}")
    return params, mask


# %% [markdown]
# ## `flax.linen`
#
# Pass the module, not bound to variables, the shape of one example, and whatever arguments put your
# model in evaluation mode (here `train=False`). Batch normalisation then uses each batch's own
# statistics, held constant under differentiation.


# %%
class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(FEATURES, (3, 3), use_bias=False, name="conv")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        return nn.Dense(10, name="head")(x.reshape(len(x), -1))


linen_network = nts.linen(LinenNet(), INPUT_SHAPE, train=False)
params, mask = prune("linen", linen_network)

# %% [markdown]
# ## `flax.nnx`
#
# An nnx model holds its parameters, and a score draws fresh ones again and again. So pass a
# function that makes the model from `rngs`, not a model. The params are the pure dictionary of the
# model's `nnx.Param`s.


# %%
class NnxNet(nnx.Module):
    def __init__(self, *, rngs):
        self.conv = nnx.Conv(1, FEATURES, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(FEATURES, rngs=rngs)
        self.head = nnx.Linear(64 * FEATURES, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        return self.head(x.reshape(len(x), -1))


nnx_network = nts.nnx(lambda rngs: NnxNet(rngs=rngs), INPUT_SHAPE)
_ = prune("nnx", nnx_network)

# %% [markdown]
# The masks differ by the random weights that were drawn: each framework draws its own way. From the
# same weights (`reinit=False`) and the same key both give the same scores, up to rounding.
#
# ## Two functions of your own
#
# `nts.plain(init, apply, input_shape)`. Params may be any pytree. By default the leaves with
# two or more axes that are called `kernel`, `weight` or `w` are prunable. If you normalise by the
# batch, hold the statistics constant under differentiation, as here; `ops.conv2d` is a convolution
# whose gradients are fast on CPU too.


# %%
def init(key):
    keys = jax.random.split(key)
    return {
        "conv": {"w": jax.random.normal(keys[0], (3, 3, 1, FEATURES)) / 3},
        "head": {
            "w": jax.random.normal(keys[1], (64 * FEATURES, 10)) / jnp.sqrt(64 * FEATURES),
            "b": jnp.zeros(10),
        },
    }


def apply(params, x):
    x = nts.ops.conv2d(x, params["conv"]["w"], padding="SAME")
    mean, variance = jax.lax.stop_gradient((x.mean((0, 1, 2)), x.var((0, 1, 2))))
    x = jax.nn.relu((x - mean) / jnp.sqrt(variance + 1e-5))
    return x.reshape(len(x), -1) @ params["head"]["w"] + params["head"]["b"]


_ = prune("plain", nts.plain(init, apply, INPUT_SHAPE))

# %% [markdown]
# ## Equinox
#
# An Equinox model is itself a pytree. Its arrays are the params, the rest is put back by `combine`.
# Equinox calls its kernels `weight`, puts channels first and works on one example, hence the
# transposition and the `vmap`. (Its `BatchNorm` keeps state, which no pure `apply` can; here
# `GroupNorm`, whose `weight` has one axis and is not prunable, stands in.)

# %%
if find_spec("equinox") is None:
    print("Skipped: Equinox is not installed. To install it and leave JAX as it is, run")
    print("  pip install --no-deps equinox jaxtyping wadler-lindig")
    print("and restart the runtime.")
else:
    import equinox as eqx

    class EquinoxNet(eqx.Module):
        conv: eqx.nn.Conv2d
        norm: eqx.nn.GroupNorm
        head: eqx.nn.Linear

        def __init__(self, key):
            keys = jax.random.split(key)
            self.conv = eqx.nn.Conv2d(1, FEATURES, 3, padding=1, use_bias=False, key=keys[0])
            self.norm = eqx.nn.GroupNorm(groups=4, channels=FEATURES)
            self.head = eqx.nn.Linear(64 * FEATURES, 10, key=keys[1])

        def __call__(self, x):
            x = jax.nn.relu(self.norm(self.conv(jnp.moveaxis(x, -1, 0))))
            return self.head(x.ravel())

    _, static = eqx.partition(EquinoxNet(jax.random.key(0)), eqx.is_array)

    def init_equinox(key):
        return eqx.filter(EquinoxNet(key), eqx.is_array)

    def apply_equinox(params, x):
        return jax.vmap(eqx.combine(params, static))(x)

    _ = prune("Equinox", nts.plain(init_equinox, apply_equinox, INPUT_SHAPE))

# %% [markdown]
# ## Which weights
#
# `masks.create` chooses the prunable leaves by their paths: `include` and `exclude` are regular
# expressions. The search then leaves all others alone.

# %%
without_head = nts.masks.create(params, exclude="^head/")
score = nts.criteria.ntk_sap(linen_network, num_samples=1, batch_size=20)
mask, _ = nts.prune(jax.random.key(3), params, score, schedule=[0.5, 0.2], mask=without_head)
print({path: f"{density:.0%}" for path, density in nts.masks.layer_densities(mask).items()})

# %% [markdown]
# ## Outputs
#
# The NTK is taken of the network's outputs, here the logits. `output_fn` takes it of any function
# of them: log-probabilities, one head of several, the residual of a differential equation.

# %%
_ = prune("linen", linen_network, output_fn=jax.nn.log_softmax)

# %% [markdown]
# ## Train it your way
#
# The mask belongs around the optimiser, outermost. Everything else is your own training loop.

# %%
optimizer = nts.constrain_to_mask(optax.adamw(1e-3), mask)
params = nts.masks.apply(mask, params)
opt_state = optimizer.init(params)


@jax.jit
def step(params, opt_state, inputs, targets):
    def loss_fn(params):
        return jnp.mean((linen_network.apply_train(params, inputs) - targets) ** 2)

    loss, gradients = jax.value_and_grad(loss_fn)(params)
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss


inputs = jax.random.normal(jax.random.key(4), (32, *INPUT_SHAPE))
targets = jax.nn.one_hot(jnp.arange(32) % 10, 10)
for count in range(30):
    params, opt_state, loss = step(params, opt_state, inputs, targets)
    if count in (0, 29):
        print(f"step {count + 1:2}: loss {loss:.4f}")
kernel, keep = params["conv"]["kernel"], mask["conv"]["kernel"]
print("pruned weights that moved:", int(np.count_nonzero(np.where(keep, 0, kernel))))

# %% [markdown]
# ## When something does not fit
#
# Wrong models are refused before anything is compiled, with what to do about it.


# %%
def refused(make):
    try:
        make()
    except (TypeError, ValueError) as error:
        print(f"{type(error).__name__}: {error}\n")


bound = LinenNet().bind(LinenNet().init(jax.random.key(0), jnp.zeros((1, *INPUT_SHAPE))))
refused(lambda: nts.linen(LinenNet(), INPUT_SHAPE, train=True))
refused(lambda: nts.linen(bound, INPUT_SHAPE))
refused(lambda: nts.nnx(NnxNet(rngs=nnx.Rngs(0)), INPUT_SHAPE))
refused(lambda: nts.masks.create(params, exclude="classifier"))
