"""Models that start with zeros in the place of scales, heads, gates and adapters."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

import ntksap_jax as nts
from ntksap_jax import _zeros, criteria, masks

KEY = jax.random.key(0)
ZEROS = nn.initializers.zeros
WIDTH = 6


class Branch(nn.Module):
    """A residual branch whose normalisation ends in zero scales, as in flax's ImageNet example."""

    @nn.compact
    def __call__(self, x):
        branch = nn.Dense(WIDTH, name="kernels")(nn.relu(x))
        return x + nn.BatchNorm(True, scale_init=ZEROS, name="norm")(branch)


class LayerScale(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + self.param("gamma", ZEROS, (WIDTH,)) * nn.Dense(WIDTH)(nn.relu(x))


class LayerScaleByEinsum(nn.Module):
    """A product of inner products' operation that sums over nothing."""

    @nn.compact
    def __call__(self, x):
        scale = self.param("gamma", ZEROS, (WIDTH,))
        return x + jnp.einsum("bd,d->bd", nn.Dense(WIDTH)(nn.relu(x)), scale)


class ReZero(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + 0.5 * self.param("alpha", ZEROS, ()) * nn.Dense(WIDTH)(nn.relu(x))


class Gate(nn.Module):
    """As in Flamingo: of a scalar's tanh."""

    @nn.compact
    def __call__(self, x):
        return x + jnp.tanh(self.param("gate", ZEROS, ())) * nn.Dense(WIDTH)(nn.relu(x))


class Queries(nn.Module):
    """An attention whose queries are learned."""

    @nn.compact
    def __call__(self, x):
        tokens = jnp.tile(self.param("tokens", ZEROS, (1, 3, WIDTH)), (len(x), 1, 1))
        return nn.MultiHeadDotProductAttention(2)(tokens, x[:, None]).sum(1)


class Adapter(nn.Module):
    @nn.compact
    def __call__(self, x):
        inner = nn.relu(nn.Dense(2, name="down")(x))
        return x + nn.Dense(WIDTH, kernel_init=ZEROS, name="up")(inner)


class LowRank(nn.Module):
    @nn.compact
    def __call__(self, x):
        down = self.param("kernel", nn.initializers.lecun_normal(), (WIDTH, 2))
        return x + x @ down @ self.param("lora_b", ZEROS, (2, WIDTH))


class Head(nn.Module):
    """Zero by a deviation of 0, as well as by `zeros`."""

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.variance_scaling(0.0, "fan_in", "truncated_normal")
        return nn.Dense(3, kernel_init=init)(x)


class Attention(nn.Module):
    """Kernels with two axes of outputs."""

    @nn.compact
    def __call__(self, x):
        attend = nn.MultiHeadDotProductAttention(2, kernel_init=ZEROS, name="attend")
        return attend(x[:, None] + jnp.ones((2, 1)))


class Harmless(nn.Module):
    """Zeros that are no factors."""

    @nn.compact
    def __call__(self, x):
        x = x + self.param("position", ZEROS, (WIDTH,)) + 0.1 * self.param("other", ZEROS, (WIDTH,))
        token = jnp.broadcast_to(self.param("token", ZEROS, (1, WIDTH)), x.shape)
        return nn.Dense(3)(jnp.concatenate([x, token], -1)) * (1 + self.param("s", ZEROS, (3,)))


class Stack(nn.Module):
    @nn.compact
    def __call__(self, x):
        def layer(branch, x, _):
            return branch(x), None

        scanned = nn.scan(layer, {"params": 0}, split_rngs={"params": True}, length=2)
        return scanned(LayerScale(name="layers"), x, None)[0]


class Inside(nn.Module):
    """Of a loop, of a branch, and of what each device does."""

    @nn.compact
    def __call__(self, x):
        gates = [self.param(name, ZEROS, (WIDTH,)) for name in "abc"]
        turn = lambda i, x: x + gates[0] * jnp.tanh(x)  # noqa: E731
        x = jax.lax.fori_loop(0, jnp.int32(x[0, 0]), turn, x)
        x = jax.lax.cond(x.sum() > 0, lambda x: gates[1] * x, jnp.tanh, x)
        mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        specs = (P("data"), P())
        each = jax.shard_map(jnp.multiply, mesh=mesh, in_specs=specs, out_specs=P("data"))
        return each(nn.Dense(WIDTH)(x), gates[2])


KERNEL = np.sqrt(2 / WIDTH)
PARTS = {
    "residual": (Branch(), {"norm/scale": None}),
    "layer scale": (LayerScale(), {"gamma": None}),
    "layer scale by einsum": (LayerScaleByEinsum(), {"gamma": None}),
    "rezero": (ReZero(), {"alpha": None}),
    "gate": (Gate(), {"gate": None}),
    "queries": (Queries(), {"tokens": np.sqrt(2 / 3)}),
    "adapter": (Adapter(), {"up/kernel": 1}),  # of two inputs
    "lora": (LowRank(), {"lora_b": 1}),
    "head": (Head(), {"Dense_0/kernel": KERNEL}),
    "attention": (
        Attention(),
        {f"attend/{name}/kernel": KERNEL for name in ("query", "key", "value", "out")},
    ),
    "scan": (Stack(), {"layers/gamma": None}),
    "inside": (Inside(), {"a": None, "b": None, "c": None}),
    "harmless": (Harmless(), {}),
}


@pytest.mark.parametrize(("model", "wanted"), PARTS.values(), ids=PARTS.keys())
def test_factors_that_init_makes_zero_are_told_from_other_zeros(model, wanted):
    network = nts.linen(model, (WIDTH,))
    params = jax.eval_shape(network.init, KEY)
    found = _zeros.of_init(network)(masks.create(params)).zeros
    assert {zero.path: zero.std for zero in found} == pytest.approx(wanted)


def test_zeros_of_nnx_models():
    def make(rngs):
        first, last = (
            nnx.Linear(WIDTH, WIDTH, rngs=rngs),
            nnx.Linear(WIDTH, 3, kernel_init=ZEROS, rngs=rngs),
        )
        return nnx.Sequential(first, nnx.LayerNorm(WIDTH, scale_init=ZEROS, rngs=rngs), last)

    network = nts.nnx(make, (WIDTH,))
    found = _zeros.of_init(network)(masks.create(jax.eval_shape(network.init, KEY))).zeros
    assert [zero.path.rsplit("/", 1)[-1] for zero in found] == ["scale", "kernel"]


# -- Weights that are the same for every key -------------------------------------------------------


def of_nnx(*, fixed_head):
    def make(rngs):
        first = nnx.Linear(4, WIDTH, rngs=nnx.Rngs(0))
        last = nnx.Linear(WIDTH, 3, rngs=nnx.Rngs(1) if fixed_head else rngs)
        return nnx.Sequential(first, last)

    return nts.nnx(make, (4,))


@pytest.mark.parametrize(
    "criterion",
    [criteria.ntk_sap, lambda n: criteria.fresh_weights(criteria.magnitude(), n)],
    ids=["ntk_sap", "fresh_weights"],
)
def test_weights_that_ignore_the_key_cannot_be_drawn_anew(criterion):
    network = of_nnx(fixed_head=True)
    match = "init ignores its key.*'layers/0/kernel', 'layers/1/kernel' are fixed.*reinit=False"
    with pytest.raises(ValueError, match=match):
        nts.prune(KEY, network.init(KEY), criterion(network), schedule=[0.5])


def test_leaves_that_ignore_the_key_are_told():
    """A pretrained part, of a model whose head is drawn."""
    network = of_nnx(fixed_head=False)
    score = criteria.fresh_weights(criteria.magnitude(), network)
    _, [info] = nts.prune(KEY, network.init(KEY), score, schedule=[0.5])
    assert info.notes == (
        "Leaf 'layers/0/kernel' is the same in every draw, since init does not use its key.",
    )


# -- All of them, with every criterion -----------------------------------------------------------


FACTORS = ("residual", "layer scale", "rezero", "adapter", "lora")
NETWORK = nts.linen(
    nn.Sequential([nn.Dense(WIDTH), *(PARTS[name][0].clone() for name in FACTORS), Head()]),
    (4,),
)
PARAMS = NETWORK.init(KEY)
BATCH = (jax.random.normal(KEY, (4, 4)), jnp.arange(4) % 3)
SAMPLES = {"num_samples": 2, "batch_size": 3}
FRESH = {
    "ntk_sap": functools.partial(criteria.ntk_sap, **SAMPLES),
    "fresh snip": lambda network: criteria.fresh_weights(criteria.snip(network), network),
    "fresh magnitude": lambda network: criteria.fresh_weights(criteria.magnitude(), network),
}
GIVEN = {
    "ntk_sap of given weights": functools.partial(criteria.ntk_sap, reinit=False, **SAMPLES),
    "snip": criteria.snip,
    "force": criteria.force,
    "grasp": criteria.grasp,
    "synflow": criteria.synflow,
    "px": criteria.px,
    "magnitude": lambda network: criteria.magnitude(),
}
CAUSE = "Leaves 'layers_1/norm/scale', 'layers_2/gamma'"
NEITHER = {"random": lambda network: criteria.random(), "erk": lambda network: criteria.erk()}


@pytest.mark.parametrize("name", [*FRESH, *GIVEN, *NEITHER])
def test_models_that_start_with_zeros_are_pruned(name):
    """At once, or after the one step that the message names; the given params are left alone."""
    score = (FRESH | GIVEN | NEITHER)[name](NETWORK)
    search = functools.partial(nts.prune, schedule=[0.5, 0.3], batch=BATCH)
    scored = PARAMS
    if name in GIVEN:
        cause = (
            CAUSE if name != "magnitude" else "Leaves 'layers_4/up/kernel', 'layers_6/.*/kernel'"
        )
        with pytest.raises(
            ValueError, match=rf"round 1 .*{cause}.* all zero .*criteria.fill_zeros"
        ):
            search(KEY, PARAMS, score)
        scored = criteria.fill_zeros(KEY, PARAMS, NETWORK)
    mask, history = search(KEY, scored, score)
    assert masks.num_kept(mask) == round(0.3 * masks.num_prunable(mask))
    scores, _ = score(KEY, scored, masks.create(PARAMS), BATCH)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(scores))
    said = any(note.startswith(CAUSE) for note in history[0].notes)
    assert said == (name in FRESH)
    assert history[1].notes == ()
    assert not np.any(PARAMS["layers_1"]["norm"]["scale"])
