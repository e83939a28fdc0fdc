"""A wrong model gives one error, before anything is compiled, that says what to use instead."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx

import ntksap_jax as nts

KEY = jax.random.key(0)
SHAPE = (3,)


def init(key):
    return {"kernel": jax.random.normal(key, (3, 2))}


def apply(params, inputs):
    return inputs @ params["kernel"]


# -- Linen ---------------------------------------------------------------------------------------


class Counting(nn.Module):
    @nn.compact
    def __call__(self, x):
        self.variable("count", "calls", jnp.zeros, ()).value += 1
        return nn.Dense(2)(x)


class OwnNoise(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x) + jax.random.normal(self.make_rng("dropout"), (2,))


WITH_STATE = nn.Sequential([nn.Dense(4), lambda x: (x, {"mean": x.mean(0)})])


class SharedNorm(nn.Module):
    @nn.compact
    def __call__(self, x):
        norm = nn.BatchNorm(use_running_average=True)
        return norm(2 * norm(x) + 1)


class PaddedNorm(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=True)(x, mask=jnp.ones(x.shape, bool))


LINEN = {
    "norm twice": (SharedNorm(), ValueError, "'BatchNorm_0' is called twice"),
    "padded": (PaddedNorm(), ValueError, "'BatchNorm_0' is given a mask"),
    "bound": (nn.Dense(2).bind({}), TypeError, "a bound module; pass the module itself"),
    "class": (nn.Dense, TypeError, "model: got the class Dense, expected a flax.linen module"),
    "nnx": (
        nnx.Linear(3, 2, rngs=nnx.Rngs(0)),
        TypeError,
        r"Linear, which is of flax.nnx \(for that use ntksap_jax.nnx\(lambda rngs",
    ),
    "equinox": (
        eqx.nn.Linear(3, 2, key=KEY),
        TypeError,
        r"Linear, which is of equinox \(for that use ntksap_jax.plain.*eqx.partition",
    ),
    "function": (lambda x: x, TypeError, r"model: got function.*use ntksap_jax.plain\("),
    "state": (Counting(), ValueError, r"state in collection\(s\) count.*use ntksap_jax.plain"),
    "dropout": (
        nn.Sequential([nn.Dense(2), nn.Dropout(0.5, deterministic=False)]),
        ValueError,
        r"mean evaluation.*train=False.*dropout",
    ),
    "make_rng": (OwnNoise(), ValueError, r"mean evaluation.*train=False.*dropout"),
    "outputs and state": (
        WITH_STATE,
        ValueError,
        r"model: output '1/mean' of the 2 that it returns has shape \(4,\) for 2 examples.*as "
        r"if it were a state.*It returns '0': shape \(2, 4\).*output_fn=",
    ),
    "outputs and classes": (
        nn.Sequential([nn.Dense(4), lambda x: (x, x.argmax(-1))]),
        ValueError,
        r"output '1' of the 2.*int32.*output_fn=",
    ),
}


@pytest.mark.parametrize(("model", "kind", "message"), LINEN.values(), ids=LINEN.keys())
def test_linen(model, kind, message):
    with pytest.raises(kind, match=message):
        nts.linen(model, SHAPE)


# -- Plain functions -----------------------------------------------------------------------------


class Torch:
    """Looks like a module of PyTorch, which need not be installed for this."""

    __module__ = "torch.nn"

    def __call__(self, x):
        return x


def equinox_model(key):
    return eqx.nn.MLP(3, 2, 4, 1, key=key)


PLAIN = {
    "equinox as apply": (
        init,
        eqx.nn.Linear(3, 2, key=KEY),
        TypeError,
        "apply: got Linear, which is of equinox.*eqx.partition",
    ),
    "equinox as params": (
        equinox_model,
        lambda model, x: jax.vmap(model)(x),
        ValueError,
        r"init: leaf 'activation' of the params is a \w+, expected a pytree of arrays.*partition",
    ),
    "linen as init": (nn.Dense(2), apply, TypeError, r"init: got Dense.*use ntksap_jax.linen\("),
    "torch": (init, Torch(), TypeError, "apply: got Torch, which is of torch.*exchange.from_torch"),
    "no function": ({"kernel": 1}, apply, TypeError, "init: got dict, expected a function"),
    "no key": (lambda: {}, apply, ValueError, "init: cannot be called as init.key."),
    "not traceable": (
        init,
        lambda params, x: np.asarray(x) @ params["kernel"],
        ValueError,
        "apply: cannot be applied .* in jax.numpy.*TracerArrayConversionError",
    ),
    "state of apply": (
        init,
        lambda params, state, x: apply(params, x),
        ValueError,
        r"apply: cannot be applied.*apply\(params, inputs\).*missing 1 required",
    ),
    "state of init": (
        lambda key: (init(key), {"mean": jnp.zeros(2)}),
        apply,
        ValueError,
        r"apply: cannot be applied.*of what init returns.*TypeError",
    ),
    "outputs and state": (
        init,
        lambda params, x: (apply(params, x), {"mean": apply(params, x).mean(0)}),
        ValueError,
        r"output '1/mean' of the 2.*shape \(2,\) for 2 exa.*output_fn=lambda outputs",
    ),
    "loss": (init, lambda params, x: apply(params, x).sum(), ValueError, r"shape \(\) for 2 exam"),
    "nothing": (init, lambda params, x: None, ValueError, "apply: returns no array"),
    "classes": (init, lambda params, x: apply(params, x).argmax(-1), ValueError, "dtype int32"),
    "float indices": (
        lambda key: {"table": jax.random.normal(key, (5, 2))},
        lambda params, x: params["table"][x],
        ValueError,
        "dtype float32.*type of the inputs is `dtype`.*integer",
    ),
}


@pytest.mark.parametrize(("init", "apply", "kind", "message"), PLAIN.values(), ids=PLAIN.keys())
def test_plain(init, apply, kind, message):
    with pytest.raises(kind, match=message):
        nts.plain(init, apply, SHAPE)


def test_several_outputs_are_as_good_as_one():
    network = nts.plain(
        init, lambda params, x: {"a": apply(params, x), "b": apply(params, x)[:, 0]}, SHAPE
    )
    assert network.apply(network.init(KEY), jnp.ones((4, 3)))["b"].shape == (4,)


# -- nnx -----------------------------------------------------------------------------------------


class Tied(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(3, 3, rngs=rngs)
        self.second = nnx.Linear(3, 3, rngs=rngs)
        self.second.kernel = self.first.kernel

    def __call__(self, x):
        return self.second(self.first(x))


class Twice(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(3, 3, rngs=rngs)
        self.second = self.first

    def __call__(self, x):
        return self.second(self.first(x))


class Custom(nnx.Module):
    """A linear layer, another part, and a call that misuses it."""

    def __init__(self, call, rngs, parts):
        self.layer = nnx.Linear(3, 3, rngs=rngs)
        self.call = call
        for name, part in parts.items():
            setattr(self, name, part)

    def __call__(self, x):
        return self.call(self, x)


def custom(call, **parts):
    """Returns what makes such a model, with parts that are functions of `rngs`."""
    return lambda rngs: Custom(call, rngs, {name: part(rngs) for name, part in parts.items()})


def norm(rngs):
    return nnx.BatchNorm(3, rngs=rngs)


@nnx.remat
def rematted(layer, x):
    return layer(x)


EXISTING = nnx.Linear(3, 2, rngs=nnx.Rngs(0))


NNX = {
    "model": (
        EXISTING,
        TypeError,
        r"make: got a model, Linear, expected a function.*lambda rngs.*nnx_params\(model\)",
    ),
    "linen": (nn.Dense(2), TypeError, r"make: got Dense, which is of.flax.linen.*jax.linen\("),
    "equinox": (eqx.nn.Linear(3, 2, key=KEY), TypeError, "Linear, which is of equinox.*partition"),
    "no function": (3, TypeError, "make: got int, expected a function that makes a flax.nnx model"),
    "returns linen": (lambda rngs: nn.Dense(2), TypeError, "make: returned Dense.*jax.linen"),
    "arguments": (
        lambda: EXISTING,
        TypeError,
        r"make: cannot be called as make\(rngs\), such as lambda rngs",
    ),
    "same model": (lambda rngs: EXISTING, ValueError, "returned the same model twice.*nnx_params"),
    "tied": (Tied, ValueError, "'first/kernel' and 'second/kernel' are one and the same.*`attend`"),
    "shared layer": (
        Twice,
        ValueError,
        "'first' and 'second' are one and the same.*ntksap_jax.plain",
    ),
    "noise": (
        custom(lambda m, x: x + jax.random.normal(m.rngs.noise(), (3,)), rngs=lambda rngs: rngs),
        ValueError,
        r"draws random numbers \('rngs/.*evaluation",
    ),
    "dropout": (
        custom(
            lambda m, x: m.dropout(x, deterministic=False),
            dropout=lambda rngs: nnx.Dropout(0.5, rngs=rngs),
        ),
        ValueError,
        r"draws random numbers \('dropout/.*evaluation",
    ),
    "training": (
        custom(lambda m, x: m.norm(x, use_running_average=False), norm=norm),
        ValueError,
        "BatchNorm 'norm' is in training mode.*train=False",
    ),
    "norm twice": (
        custom(lambda m, x: m.norm(2 * m.norm(x)), norm=norm),
        ValueError,
        "BatchNorm 'norm' is called twice",
    ),
    "norm twice, each in a transform": (
        custom(lambda m, x: rematted(m.norm, 2 * rematted(m.norm, x)), norm=norm),
        ValueError,
        "BatchNorm 'norm' is called twice",
    ),
    "padded": (
        custom(lambda m, x: m.norm(x, mask=jnp.ones(x.shape, bool)), norm=norm),
        ValueError,
        "BatchNorm 'norm' is given a mask",
    ),
    "random table": (
        custom(
            lambda m, x: m.layer(x * m.table[...]),
            table=lambda rngs: nnx.Variable(jax.random.normal(rngs(), (3,))),
        ),
        ValueError,
        "'table' is random but no nnx.Param",
    ),
    "outputs and state": (
        custom(lambda m, x: (x, {"mean": x.mean(0)})),
        ValueError,
        "output '1/mean' of the 2.*output_fn=",
    ),
    "input size": (
        lambda rngs: nnx.Linear(7, 2, rngs=rngs),
        ValueError,
        r"model: cannot be applied to inputs of shape \(2, 3\) and dtype float32",
    ),
}
if hasattr(nnx, "List"):  # Flax before 0.12 keeps arrays that are no Variables, and so do we.
    NNX["bare array"] = (
        custom(lambda m, x: x + m.table, table=lambda rngs: jnp.arange(3.0)),
        ValueError,
        "model: 'table' is a bare array.*nnx.Variable",
    )


@pytest.mark.parametrize(("make", "kind", "message"), NNX.values(), ids=NNX.keys())
def test_nnx(make, kind, message):
    with pytest.raises(kind, match=message):
        nts.nnx(make, SHAPE)


def test_inputs_of_other_names_cannot_be_traced_for_shrinking():
    with pytest.raises(ValueError, match=r"cannot be initialised from inputs of shape \{'x': "):
        nts.structured.trace(nn.Dense(2), {"x": (3,)})


class ByMutability(nn.Module):
    """Trains whenever its averages may change, as jax-resnet does."""

    @nn.compact
    def __call__(self, x):
        frozen = not self.is_mutable_collection("batch_stats")
        return nn.Dense(2)(nn.BatchNorm(use_running_average=frozen)(x))


def test_a_model_that_trains_where_statistics_are_mutable_is_told_what_to_pass():
    with pytest.raises(ValueError, match=r"in training mode.*is mutable, pass training=\{\}"):
        nts.linen(ByMutability(), SHAPE)
    network = nts.linen(ByMutability(), SHAPE, training={})
    params, x = network.init(KEY), jnp.arange(15.0).reshape(5, 3)
    dense = params["Dense_0"]
    expected = (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5) @ dense["kernel"] + dense["bias"]
    np.testing.assert_allclose(jax.jit(network.apply)(params, x), expected, rtol=1e-4, atol=1e-5)


def test_unbiased_statistics_of_one_value():
    network = nts.nnx(lambda rngs: nnx.BatchNorm(3, rngs=rngs), SHAPE)
    with pytest.raises(ValueError, match="sees a single value per feature.*larger batch_size"):
        network.calibrate(network.init(KEY), jnp.ones((1, 3)), unbiased=True)


def test_no_program_is_compiled_for_an_error():
    with oracles.count_compilations() as compiled:
        with pytest.raises(ValueError, match="state"):
            nts.linen(WITH_STATE, SHAPE)
        with pytest.raises(ValueError, match="loss"):
            nts.plain(init, lambda params, x: apply(params, x).sum(), SHAPE)
    assert compiled == []
