"""Params in boxes and other containers: the same leaves, names and masks as in plain dicts."""

from typing import NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import ntksap_jax as nts
from ntksap_jax import criteria, exchange, masks, structured

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (4, 3))
LABELS = jnp.arange(4) % 2


class Net(nnx.Module):
    def __init__(self, rngs):
        self.layers = getattr(nnx, "List", list)(
            [nnx.Linear(3, 5, rngs=rngs), nnx.Linear(5, 2, rngs=rngs)]
        )

    def __call__(self, x):
        return self.layers[1](nnx.relu(self.layers[0](x)))


NNX = nts.nnx(Net, (3,))


def in_state():
    state = nnx.state(Net(nnx.Rngs(0)), nnx.Param)
    return NNX, state, nnx.to_pure_dict(state)


def boxed(box, wrap=lambda params: params):
    lecun = nn.initializers.lecun_normal()
    dense = [nn.Dense(size, kernel_init=box(lecun, (None, "model"))) for size in (5, 2)]
    network = nts.linen(nn.Sequential([dense[0], nn.relu, dense[1]]), (3,))
    params = network.init(KEY)
    return network, wrap(params), nn.meta.unbox(params)


CONTAINERS = {
    "nnx.State": in_state,
    "Partitioned": lambda: boxed(nn.with_partitioning),
    "LogicallyPartitioned": lambda: boxed(nn.with_logical_partitioning),
    "FrozenDict": lambda: boxed(lambda init, axes: init, flax.core.freeze),
}


@pytest.mark.parametrize("make", CONTAINERS.values(), ids=CONTAINERS)
def test_masks_and_scores_are_those_of_the_same_params_in_dicts(make):
    network, params, plain = make()
    mask = masks.create(params)
    assert list(masks.leaf_paths(mask)) == list(masks.leaf_paths(masks.create(plain)))
    score = criteria.snip(network)
    scores, _ = score(KEY, params, mask, (X, LABELS))
    want, _ = score(KEY, plain, masks.create(plain), (X, LABELS))
    assert jax.tree.structure(scores) == jax.tree.structure(mask)
    for path, leaf in masks.leaf_paths(want).items():
        np.testing.assert_allclose(masks.leaf_paths(scores)[path], leaf, rtol=1e-5, atol=1e-7)
    # Fresh weights come in dicts, and go into the box.
    fresh, _ = jax.eval_shape(criteria.ntk_sap(network, batch_size=2), KEY, params, mask, None)
    assert jax.tree.structure(fresh) == jax.tree.structure(mask)
    pruned = masks.apply(masks.create(plain), params)
    assert jax.tree.structure(pruned) == jax.tree.structure(params)


def test_params_in_boxes_shrink_and_are_saved(tmp_path):
    init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    model = nn.Sequential([nn.Dense(5, kernel_init=init), nn.relu, nn.Dense(2, kernel_init=init)])
    variables = jax.jit(model.init)(KEY, X)
    channels = structured.trace(model, (3,))
    keep = {"layers_0/kernel": np.arange(5) < 3}
    zeroed = structured.zero_out(variables, channels, keep)
    small, fewer = structured.shrink(model, variables, channels, keep)
    assert fewer["params"]["layers_0"]["kernel"].names == (None, "model")
    structured.save(tmp_path / "small.safetensors", small, fewer)
    read, plain = structured.load(tmp_path / "small.safetensors", model)
    for network, values in ((small, fewer), (read, plain)):
        np.testing.assert_allclose(network.apply(values, X), model.apply(zeroed, X), atol=1e-6)


def test_an_nnx_model_is_trained_under_a_mask():
    model = Net(nnx.Rngs(0))
    params = exchange.nnx_params(model)
    mask, _ = nts.prune(KEY, params, criteria.magnitude(), schedule=[0.4])
    tx = nts.constrain_to_mask(optax.adamw(0.1), mask)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, grads = nnx.value_and_grad(lambda model: jnp.mean((model(X) - 1) ** 2))(model)
        optimizer.update(model, grads)
        return loss

    losses = [step(model, optimizer) for _ in range(5)]
    assert losses[-1] < losses[0]
    trained = exchange.nnx_params(model)
    for path, leaf in masks.leaf_paths(mask).items():
        np.testing.assert_array_equal(masks.leaf_paths(trained)[path] == 0, ~np.asarray(leaf))
    with pytest.raises(TypeError, match=r"optimizer: got Optimizer.*nnx.Optimizer\(model, constr"):
        nts.constrain_to_mask(optimizer, mask)


def test_an_optimiser_that_is_running_goes_on_under_a_mask():
    params = {"kernel": jnp.array([[1.0, 2.0]])}
    mask = {"kernel": jnp.array([[True, False]])}
    adam = optax.adam(0.1)
    _, state = adam.update(params, adam.init(params), params)
    constrained = nts.constrain_to_mask(adam, mask)
    want, _ = adam.update(params, state, params)
    updates, state = constrained.update(params, state, params)
    np.testing.assert_allclose(updates["kernel"], [[want["kernel"][0, 0], -2.0]], rtol=1e-6)
    updates, state = constrained.update(params, state, params)
    assert isinstance(state, nts.types.ConstrainToMaskState) and updates["kernel"][0, 1] == -2


def test_kernels_of_other_names_are_told_once_with_the_include_that_takes_them():
    ones = jnp.ones((2, 3))
    params = {
        "a": {"W": ones, "b": jnp.ones(3)},
        "b": {"weight": ones, "pos_embedding": ones},
        "norm": {"weight": jnp.ones(3)},
    }
    for tree, pattern in (
        (params, "^(b/weight|a/W)$"),  # "weight" alone would take the norm's
        ({"a": params["a"], "b": params["b"]}, "(^|/)(W|weight)$"),
    ):
        _, history = nts.prune(KEY, tree, criteria.magnitude(), schedule=[0.5, 0.4])
        [note] = history[0].notes
        assert "'a/W'" in note and repr(pattern) in note and not history[1].notes
        mask = masks.create(tree, include=pattern)
        assert set(masks.leaf_paths(mask)) == {"a/W", "b/weight"}
        assert not nts.prune(KEY, tree, criteria.magnitude(), schedule=[0.5], mask=mask)[1][0].notes


class Projections(NamedTuple):
    query: jax.Array
    value: jax.Array


def test_a_field_that_is_called_as_the_array_in_a_box_keeps_its_name():
    params = {"attend": Projections(jnp.ones((2, 2)), jnp.ones((2, 2))), "kernel": jnp.ones((2, 2))}
    assert list(masks.leaf_paths(params)) == ["attend/query", "attend/value", "kernel"]
    mask = masks.create(params, include="value$")
    assert mask["attend"].query is None and masks.num_prunable(mask) == 4
