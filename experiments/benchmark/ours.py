"""Our side: each case through the library's public functions, as a user calls them."""

from __future__ import annotations

import functools
import importlib.metadata
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ntksap_jax as nts
from experiments.benchmark import nominal_flops
from experiments.benchmark.types import (
    CONVOLUTION_CALLS,
    DENSITY,
    MATMUL_SIZE,
    SEARCH_ROUNDS,
    STEP,
    Case,
    Prepared,
)
from experiments.cifar import choices, factories
from experiments.cifar.config import SearchConfig, TrainingConfig
from experiments.training import steps as training
from ntksap_jax import criteria, masks, ntk, ops, schedules, scopes
from ntksap_jax.types import Network, Params, ScoreFn

ESTIMATORS: dict[str, ntk.Estimator] = {
    "finite_difference": ntk.finite_difference,
    "jvp": ntk.jvp,
    "vjp": ntk.vjp,
}


def prepare(case: Case) -> Prepared:
    """Makes the network and the functions to time."""
    makers: dict[str, Callable[[Case], Prepared]] = {
        "sample": _sample,
        "round": _round,
        "search": _search,
        "selection": _selection,
        "train": _train,
        "criterion": _criterion,
        "convolution": _convolution,
    }
    return makers[case.kind](case)


def matmul() -> Callable[[], Any]:
    """Makes the matrix product that the rates are compared with."""
    left, right = jax.random.normal(jax.random.key(0), (2, MATMUL_SIZE, MATMUL_SIZE))
    product = jax.jit(jnp.matmul)
    return lambda: product(left, right).block_until_ready()


def _prepared(
    case: Case, steps: Mapping[str, Callable[[], Any]], compile_seconds: float = 0.0
) -> Prepared:
    packages = ("jax", "jaxlib", "flax", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return Prepared(steps, versions, nominal_flops.count(case), compile_seconds)


# -- Scores --------------------------------------------------------------------------------------


def _sample(case: Case) -> Prepared:
    network = _network(case)
    params, compile_seconds = _draw(network)
    mask, score, keys = masks.create(params), _ntk_sap(network, case), _keys()

    def step() -> None:
        jax.block_until_ready(score(next(keys), params, mask, None))

    return _prepared(case, {STEP: step}, compile_seconds)


def _round(case: Case) -> Prepared:
    network = _network(case)
    params, compile_seconds = _draw(network)
    score, keys = _ntk_sap(network, case), _keys()
    schedule = schedules.exponential(DENSITY, rounds=SEARCH_ROUNDS)[:1]

    def step() -> None:
        mask, _ = nts.prune(next(keys), params, score, schedule=schedule)
        jax.block_until_ready(masks.apply(mask, params))

    return _prepared(case, {STEP: step}, compile_seconds)


def _search(case: Case) -> Prepared:
    """The weights are drawn within the time: that too is compiled by whoever runs a search."""
    network = _network(case)
    score, keys = _ntk_sap(network, case), _keys()
    schedule = schedules.exponential(DENSITY, rounds=case.num_rounds)

    def step() -> None:
        params = network.init(next(keys))
        mask, _ = nts.prune(next(keys), params, score, schedule=schedule)
        jax.block_until_ready(masks.apply(mask, params))

    return _prepared(case, {STEP: step})


def _criterion(case: Case) -> Prepared:
    network = _network(case)
    params, compile_seconds = _draw(network)
    config = SearchConfig(criterion=case.criterion, noise_batch_size=case.batch_size)
    mask, score, keys = masks.create(params), factories.make_score(network, config), _keys()
    batch = _images_and_labels(case) if factories.needs_data(config) else None

    def step() -> None:
        jax.block_until_ready(score(next(keys), params, mask, batch))

    return _prepared(case, {STEP: step}, compile_seconds)


def _network(case: Case) -> Network:
    return nts.linen(choices.MODELS[case.model](), case.input_shape, train=False)


def _draw(network: Network) -> tuple[Params, float]:
    """Draws weights; says how long the function that draws them took to compile."""
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        params = jax.block_until_ready(network.init(jax.random.key(0)))
        seconds.append(time.perf_counter() - started)
    return params, seconds[0] - seconds[1]


def _ntk_sap(network: Network, case: Case) -> ScoreFn:
    return criteria.ntk_sap(
        network,
        estimator=ESTIMATORS[case.estimator],
        num_samples=case.num_samples,
        batch_size=case.batch_size,
    )


def _keys() -> Iterator[jax.Array]:
    """Another key for every call: the same draws again would not be what a search does."""
    return (jax.random.fold_in(jax.random.key(1), call) for call in itertools.count())


# -- Selection -----------------------------------------------------------------------------------


def _selection(case: Case) -> Prepared:
    random = np.random.default_rng(0)
    scores = {
        f"layer_{index}": jnp.asarray(random.random(size, np.float32))
        for index, size in enumerate(case.leaf_sizes)
    }
    mask = jax.tree.map(lambda s: jnp.ones(s.shape, bool), scores)
    scope = scopes.Global()
    counts = scope.counts(mask, DENSITY)
    under_jit = jax.jit(scope.keep_top)

    return _prepared(
        case,
        {
            STEP: lambda: jax.block_until_ready(scope.select(scores, mask, density=DENSITY)),
            "under jit": lambda: jax.block_until_ready(under_jit(scores, mask, counts)),
        },
    )


# -- Training ------------------------------------------------------------------------------------


def _train(case: Case) -> Prepared:
    dense = _dense_training(case)
    steps = {STEP: _masked_training(case), "dense": dense} if case.masked else {STEP: dense}
    return _prepared(case, steps)


def _masked_training(case: Case) -> Callable[[], None]:
    """The step that `experiments.cifar` takes, without augmentation."""
    model, variables, optimizer = _model_and_optimizer(case)
    params = variables["params"]
    mask, _ = nts.prune(jax.random.key(1), params, criteria.random(), schedule=[DENSITY])
    state = training.init_state(variables, optimizer, mask)
    train_step = training.make_train_step(model, optimizer, lambda key, images: images)
    key, (images, labels) = jax.random.key(2), _images_and_labels(case)

    def step() -> None:
        nonlocal state
        state, metrics = jax.block_until_ready(train_step(key, state, images, labels))

    return step


def _dense_training(case: Case) -> Callable[[], None]:
    """The same step where nothing knows of masks."""
    model, variables, optimizer = _model_and_optimizer(case)
    state = (variables["params"], variables["batch_stats"], optimizer.init(variables["params"]))
    images, labels = _images_and_labels(case)

    @jax.jit
    def train_step(state: Any, images: jax.Array, labels: jax.Array) -> Any:
        params, batch_stats, opt_state = state

        def loss_fn(params: Any) -> Any:
            logits, updated = model.apply(
                {"params": params, "batch_stats": batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return jnp.mean(losses), (logits, updated["batch_stats"])

        (loss, (logits, new_stats)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        num_correct = jnp.sum(jnp.argmax(logits, axis=-1) == labels)
        return (optax.apply_updates(params, updates), new_stats, opt_state), (loss, num_correct)

    def step() -> None:
        nonlocal state
        state, metrics = jax.block_until_ready(train_step(state, images, labels))

    return step


def _model_and_optimizer(case: Case) -> tuple[Any, Any, optax.GradientTransformation]:
    model = choices.MODELS[case.model]()
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *case.input_shape)))
    return model, variables, training.make_optimizer(TrainingConfig(), steps_per_epoch=390)


def _images_and_labels(case: Case) -> tuple[jax.Array, jax.Array]:
    images = jax.random.normal(jax.random.key(3), (case.batch_size, *case.input_shape))
    return images, jnp.arange(case.batch_size) % 10


# -- Convolutions --------------------------------------------------------------------------------


def _convolution(case: Case) -> Prepared:
    """As many channels out as in, so that the images are as good as a cotangent."""
    *_, channels = case.input_shape
    images, _ = _images_and_labels(case)
    kernel = jax.random.normal(jax.random.key(4), (3, 3, channels, channels))

    def call(*sums: Callable[..., jax.Array]) -> None:
        for each, _ in itertools.product(sums, range(CONVOLUTION_CALLS)):
            jax.block_until_ready(each(images, kernel, images))

    sums = convolution_sums()
    alone = {name: functools.partial(call, each) for name, each in sums.items()}
    return _prepared(case, {STEP: functools.partial(call, *sums.values()), **alone})


def convolution_sums() -> dict[str, Callable[..., jax.Array]]:
    """Returns the sums that a layer needs, functions of images, kernel and cotangent."""
    return {
        "outputs": jax.jit(lambda x, w, y: ops.conv2d(x, w)),
        "input gradient": jax.jit(lambda x, w, y: jax.vjp(lambda x: ops.conv2d(x, w), x)[1](y)[0]),
        "kernel gradient": jax.jit(lambda x, w, y: jax.vjp(lambda w: ops.conv2d(x, w), w)[1](y)[0]),
    }
