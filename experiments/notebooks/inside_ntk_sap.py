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
# # Inside NTK-SAP
#
# What the method computes, in pictures: the trace of the neural tangent kernel (NTK), three ways to
# estimate it, how noisy the scores are that come of it, what the search does round by round, and
# what is left of the kernel's spectrum.
#
# Source: Wang, Li and Sun, *NTK-SAP: Improving neural network pruning by aligning training
# dynamics*, ICLR 2023.

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
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import ntksap_jax as nts

jax.config.update("jax_default_matmul_precision", "highest")  # On a TPU: float32, here everywhere.

# %% [markdown]
# ## The kernel and its trace
#
# Take all outputs of a network for a few inputs as one vector $f(\theta)$, and its Jacobian $J$
# with respect to the weights. The NTK is $\Theta = J J^\top$. Under gradient descent the outputs
# move, to first order, by $\Theta$ times the loss's gradient: its eigenvalues are the speeds of
# learning. Their sum, the trace, is the squared norm of the Jacobian. For a small network all of
# that can be written down.


# %%
class MLP(nn.Module):
    activation: object = nn.relu

    @nn.compact
    def __call__(self, x):
        for _ in range(1 if SMALL else 2):
            x = self.activation(nn.Dense(24)(x))
        return nn.Dense(4)(x)


network = nts.linen(MLP(), (8,))
params = network.init(jax.random.key(0))
inputs = jax.random.normal(jax.random.key(1), (6, 8))


def outputs(params):
    return network.apply(params, inputs)


kernel = jax.jit(lambda params: nts.ntk.exact(outputs, params))(params)
jacobian = jax.jit(jax.jacrev(outputs))(params)
trace = float(jnp.trace(kernel))
squared = sum(float(jnp.sum(x**2)) for x in jax.tree.leaves(jacobian))
print(f"{kernel.shape[0]} outputs: 6 inputs with 4 each")
print(f"trace {trace:.2f}, sum of eigenvalues {float(np.linalg.eigvalsh(kernel).sum()):.2f}")
print(f"squared norm of the Jacobian {squared:.2f}")

# %% [markdown]
# ## Three estimators
#
# The Jacobian of a real network does not fit into memory. But one random vector, a *probe*, is
# enough for an unbiased estimate:
#
#  - `ntk.jvp`: $\|J v\|^2$ with a *tangent* $v$ in the space of the weights, by forward mode;
#  - `ntk.vjp`: $\|J^\top u\|^2$ with a *cotangent* $u$ in the space of the outputs, by reverse
#    mode;
#  - `ntk.finite_difference`: $\|f(\theta + \sigma v) - f(\theta)\|^2 / \sigma^2$ with $\sigma =
#    0.01$, which is what the authors use.
#
# For the first two the standard deviation of one estimate is $\sqrt 2\,\|\Theta\|_F$.

# %%
ESTIMATORS = {
    "jvp": nts.ntk.jvp,
    "vjp": nts.ntk.vjp,
    "finite difference": nts.ntk.finite_difference,
}
NUM_DRAWS = 200 if SMALL else 4000
keys = jax.random.split(jax.random.key(2), NUM_DRAWS)
estimates = {
    name: np.asarray(jax.jit(jax.vmap(lambda key, e=estimator: e(key, outputs, params)))(keys))
    for name, estimator in ESTIMATORS.items()
}
theory = np.sqrt(2) * float(jnp.linalg.norm(kernel)) / trace
print(f"standard deviation by theory: {theory:.1%} of the trace")
for name, values in estimates.items():
    mean, deviation = values.mean() / trace, values.std() / trace
    error = deviation / np.sqrt(NUM_DRAWS)
    print(f"{name:18} mean {mean:.3f} ± {error:.3f} of it, standard deviation {deviation:.1%}")

# %% [markdown]
# ## From the trace to a score
#
# The score of a weight is how much the expected trace depends on its mask entry,
# $\left|\partial\,\mathrm{tr}\,\Theta(m) / \partial m\right|$, where the mask multiplies the
# weights. Put like this it is a few lines. `criteria.ntk_sap` is these lines with fresh weights,
# fresh noise and a fresh probe in every sample, and with batch normalisation done right.


# %%
def mask_gradient(key, estimator, network):
    """One sample of the derivative of the trace with respect to the mask, as one vector."""
    weights_key, inputs_key, probe_key = jax.random.split(key, 3)
    params = network.init(weights_key)
    inputs = jax.random.normal(inputs_key, (6, 8))

    def trace_of(mask):
        def masked_outputs(weights):
            return network.apply(nts.masks.merge(nts.masks.apply(mask, weights), params), inputs)

        weights = nts.masks.map_prunable(lambda m, p: p, mask, params)
        return estimator(probe_key, masked_outputs, weights)

    dense = nts.masks.map_prunable(lambda m, p: jnp.ones_like(p), nts.masks.create(params), params)
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(jax.grad(trace_of)(dense))])


# %% [markdown]
# How many samples does a score take? The picture compares the mean of a few samples with the mean
# of many other ones, weight by weight.

# %%
MANY = 128 if SMALL else 2048
keys = jax.random.split(jax.random.key(3), 2 * MANY)


@functools.partial(jax.jit, static_argnames="estimator")
def samples_by(estimator, keys):
    return jax.lax.map(lambda key: mask_gradient(key, estimator, network), keys, batch_size=64)


figure, axes = plt.subplots()
counts = 2 ** np.arange(int(np.log2(MANY)) + 1)
for name, estimator in ESTIMATORS.items():
    samples = np.asarray(samples_by(estimator, keys))
    many = samples[MANY:].mean(axis=0)
    agreement = [np.corrcoef(samples[:n].mean(axis=0), many)[0, 1] for n in counts]
    axes.semilogx(counts, agreement, base=2, label=name)
axes.set(xlabel="samples in the mean", ylabel=f"correlation with\nthe mean of {MANY} others")
axes.legend()
plt.show()

# %% [markdown]
# In this dense network all weights of a layer play the same part, so that their *expected* scores
# are equal: in the first rounds, chance decides which of a layer's weights go, and the criterion
# how many.
#
# ## The finite difference is not quite the derivative
#
# With the same draws, compare the scores by a finite difference of step $\sigma$ with those by the
# exact directional derivative. For a smooth activation the difference falls with $\sigma$. With
# ReLU it does not: where a unit switches on or off between $\theta$ and $\theta + \sigma v$, the
# finite difference has a term that the derivative lacks, the rarer but the larger the smaller
# $\sigma$ is. Which of the two prunes better is a question for experiments; the library has both.

# %%
SIGMAS = 10.0 ** (np.array([-2, -1]) if SMALL else np.arange(-4, -0.4, 0.5))
pairs = jax.random.split(jax.random.key(4), 16 if SMALL else 256)


@functools.partial(jax.jit, static_argnames="network")
def difference(sigma, network):
    """The difference of the two scores, relative to the one by the derivative; both as RMS."""

    def squares(key):
        finite = functools.partial(nts.ntk.finite_difference, sigma=sigma)
        one, other = (mask_gradient(key, each, network) for each in (finite, nts.ntk.jvp))
        return jnp.sum((one - other) ** 2), jnp.sum(other**2)

    differences, sizes = jax.vmap(squares)(pairs)
    return jnp.sqrt(differences.sum() / sizes.sum())


figure, axes = plt.subplots()
for name, activation in {"ReLU": nn.relu, "tanh": jnp.tanh}.items():
    activated = nts.linen(MLP(activation), (8,))
    relative = [float(difference(sigma, activated)) for sigma in SIGMAS]
    axes.loglog(SIGMAS, relative, label=name)
axes.axvline(0.01, color="black", linewidth=1, linestyle="--")
axes.set(xlabel="step σ of the finite difference (dashed: the authors')")
axes.set(ylabel="difference of the scores,\nrelative to their size")
axes.legend()
plt.show()

# %% [markdown]
# ## Round by round
#
# Now a convolutional network for the 8×8 digits, pruned to 5 %.


# %%
class ConvNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        for features in (4,) if SMALL else (16, 32):
            x = nn.Conv(features, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(10)(x.mean(axis=(1, 2)))


DENSITY, ROUNDS = 0.05, 4 if SMALL else 20
network = nts.linen(ConvNet(), (8, 8, 1), train=False)
params = network.init(jax.random.key(0))
num_samples, batch_size = (1, 20) if SMALL else (5, 100)
score = nts.criteria.ntk_sap(network, num_samples=num_samples, batch_size=batch_size)
schedule = nts.schedules.exponential(DENSITY, rounds=ROUNDS)
mask, history = nts.prune(jax.random.key(1), params, score, schedule=schedule)
print(f"{nts.masks.num_kept(mask)} of {nts.masks.num_prunable(mask)} weights kept")

# %%
rounds = [info.round for info in history]
figure, (left, right) = plt.subplots(1, 2)
for path in history[0].layer_densities:
    kept = [100 * info.layer_densities[path] for info in history]
    left.plot(rounds, kept, label=path.split("/")[0])
left.plot(rounds, [100 * info.density for info in history], "k--", linewidth=1, label="all")
left.set(xlabel="round", ylabel="weights kept (%)", yscale="log")
left.legend()
right.plot(rounds, [info.metrics["trace"] for info in history])
right.set(xlabel="round", ylabel="trace before the round, estimated", ylim=(0, None))
plt.show()

# %% [markdown]
# Layers are not treated alike, though nothing but the trace was asked for. The trace itself is
# estimated anew in every round, from few samples, so it jumps; what the search wants is that it
# stays while the weights go.

# %% [markdown]
# ## The spectrum that is left
#
# The exact kernel of all outputs for a few real digits, of the dense network and of networks pruned
# to the same density by four criteria, before any training. No search saw these images. A line ends
# where the eigenvalues are as good as 0: below a millionth of that network's largest.

# %%
from sklearn.datasets import load_digits

NUM_IMAGES = 6 if SMALL else 30
digits = jnp.asarray(load_digits().images[:NUM_IMAGES, ..., None] / 8 - 1, jnp.float32)


def eigenvalues(mask):
    """Those of the kernel of the pruned network, in descending order."""
    return nts.ntk.eigenvalues(nts.ntk.pruned_kernel(network, params, mask, digits))


criteria = {
    "SynFlow": (nts.criteria.synflow(network), schedule),
    "magnitude": (nts.criteria.magnitude(), [DENSITY]),
    "random": (nts.criteria.random(), [DENSITY]),
}
pruned = {"dense": nts.masks.create(params), "NTK-SAP": mask}
for name, (criterion, its_schedule) in criteria.items():
    pruned[name], _ = nts.prune(jax.random.key(5), params, criterion, schedule=its_schedule)
spectra = {name: eigenvalues(mask) for name, mask in pruned.items()}

figure, (left, right) = plt.subplots(1, 2)
for name, values in spectra.items():
    values = np.where(values > 1e-6 * values[0], values, np.nan)  # Below that is rounding.
    order = np.arange(1, len(values) + 1)
    left.semilogy(order, values, marker="", label=name)
    right.semilogy(order, 100 * values / spectra["dense"], marker="")
left.set(xlabel="eigenvalue, in order of size", ylabel="eigenvalue")
left.legend()
right.set(xlabel="eigenvalue, in order of size", ylabel="of the dense network's (%)")
plt.show()

for name, values in spectra.items():
    share, rank = values.sum() / spectra["dense"].sum(), np.sum(values > 1e-6 * values[0])
    print(f"{name:10} trace {share:7.1%} of the dense network's, rank {rank:4}")

# %% [markdown]
# A spectrum before training says how learning starts, not how well it ends: `python -m
# experiments.report` draws it beside the accuracies of many runs.
