"""Structured pruning of random models: shrunk is masked, every kernel is accounted for.

`RANDOM_MODELS=5000 pytest -m long tests/test_random_models.py` tries so many.
"""

import functools
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import draw

from ntksap_jax import _jaxprs, flops, masks, structured
from ntksap_jax.structured.channels import filter_channels

QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
FEW, MANY = 3, int(os.environ.get("RANDOM_MODELS", 100))


def initial_shapes(model, shape):
    """The shapes of a model's variables, None if its steps do not fit together."""
    try:
        return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape), jnp.float32))
    except Exception:  # whatever the steps raise
        return None


def random_values(shapes, r):
    def one(path, leaf):
        scale = 1 / math.sqrt(max(math.prod(leaf.shape[:-1]), 1))
        values = r.normal(size=leaf.shape) * scale if leaf.ndim > 1 else r.normal(size=leaf.shape)
        return np.abs(values) + 0.1 if path[-1].key == "var" else np.asarray(values)

    return jax.tree_util.tree_map_with_path(one, shapes)


def random_keep(channels, r):
    keep = {}
    for first, *_ in structured.groups(channels):
        numbers = filter_channels(channels, first)
        alive = r.random(channels.num_channels) < r.uniform(0.3, 0.9)
        alive[r.choice(numbers)] = True
        keep[first] = alive[numbers]
    return keep


@functools.cache
def flops_by_xla(primitive, params, shapes):
    """XLA's count for one product; zeros that a forward convolution pads with cost something."""
    params = dict(params)
    if primitive.name == "conv_general_dilated" and set(params["lhs_dilation"]) == {1}:
        spec = params["dimension_numbers"].lhs_spec
        padded = list(shapes[0])
        for axis, (before, after) in zip(spec[2:], params["padding"], strict=True):
            padded[axis] += before + after
        shapes = (tuple(padded), shapes[1])
        params["padding"] = ((0, 0),) * len(params["padding"])
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    lowered = jax.jit(lambda *operands: primitive.bind(*operands, **params)).lower(*arrays)
    return int(lowered.cost_analysis()["flops"])


def counts_of(model, shapes, shape):
    """FLOPs by kernel, after a comparison of their sum with XLA's counts.

    That is of all products of what is made of params with what depends on the inputs.
    """
    total, leaves = 0, masks.leaf_paths(shapes)
    program = jax.make_jaxpr(model.apply)(shapes, jnp.zeros((1, *shape), jnp.float32))

    def step(times, eqn, operands, where):
        nonlocal total
        if eqn.primitive.name == "scan":
            inner = functools.partial(step, times * eqn.params["length"])
            kinds = [bool(kind) for kind in operands]
            for axis in range(eqn.params["num_carry"]):
                kinds[eqn.params["num_consts"] + axis] = True
            return _jaxprs.walk(eqn.params["jaxpr"], kinds, inner, constant=lambda value: None)
        if _jaxprs.called(eqn) is not None:
            return None
        if eqn.primitive.name in ("dot_general", "conv_general_dilated") and set(operands) == {
            True,
            False,
        }:
            sizes = tuple(var.aval.shape for var in eqn.invars)
            total += times * flops_by_xla(eqn.primitive, tuple(eqn.params.items()), sizes)
        known = [kind for kind in operands if kind is not None]
        return [any(known) if known else None] * len(eqn.outvars)

    arguments = [False] * len(leaves) + [True]
    _jaxprs.walk(program, arguments, functools.partial(step, 1), constant=lambda value: None)
    paths = [path.removeprefix("params/") if path[:7] == "params/" else None for path in leaves]
    counts = flops.count_program(program, paths)
    assert sum(counts.values()) == total
    return counts


def check(seed):
    """Checks the properties for a random model; returns whether some of its filters went."""
    model, shape = draw(seed)
    with jax.enable_x64(True):
        shapes = initial_shapes(model, shape)
        if shapes is None:
            return False
        r = np.random.default_rng(seed)
        counts = counts_of(model, shapes, shape)
        try:
            channels = structured.trace(model, shape)
        except ValueError as error:
            assert "no filter of any layer can be removed" in str(error)
            return False
        kernels = {*counts, *masks.leaf_paths(masks.create(shapes["params"]))}
        whole = {path for path, layer in channels.layers.items() if not layer.removable}
        assert kernels <= {*channels.layers, *channels.reasons}
        assert whole <= channels.reasons.keys()
        keep = random_keep(channels, r)
        variables = random_values(shapes, r)
        try:
            small, fewer = structured.shrink(model, variables, channels, keep)
        except ValueError as error:
            assert "the model's own code" in str(error)
            return False
        x = r.normal(size=(3, *shape))

        def both(variables, fewer, x):
            zeroed = structured.zero_out(variables, channels, keep)
            outputs = model.apply(zeroed, x), small.apply(fewer, x)
            return *outputs, model.apply(variables, x)

        compiled = jax.jit(both).lower(variables, fewer, x).compile(QUICKLY)
        want, got, whole_model = map(np.asarray, compiled(variables, fewer, x))
        if not np.all(np.isfinite(whole_model)):  # then a filter of zeros may well matter
            return False
        scale = np.max(np.abs(want), initial=1.0, where=np.isfinite(want))
        np.testing.assert_allclose(got, want, atol=1e-7 * scale, rtol=1e-7)
        cost = structured.cost(channels, keep)
        assert cost.params == sum(leaf.size for leaf in jax.tree.leaves(fewer["params"]))
        assert cost.flops == sum(counts_of(small, fewer, shape).values())
    return True


def test_a_few_random_models():
    assert sum(map(check, range(FEW))) > FEW / 4


@pytest.mark.long
def test_many_random_models():
    assert sum(map(check, range(FEW, FEW + MANY))) > MANY / 4
