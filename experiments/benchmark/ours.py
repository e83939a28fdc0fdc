"""Our side: each case through the library's public functions, as a user calls them."""

from __future__ import annotations

import functools
import importlib.metadata
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ntksap_jax as nts
from experiments.benchmark import nominal_flops
from experiments.benchmark.types import (
    CONVOLUTION_CALLS,
    DENSITY,
    MATMUL,
    MATMUL_SIZE,
    SEARCH_ROUNDS,
    STEP,
    Case,
    Prepared,
    Steps,
)
from experiments.cifar import choices, factories
from experiments.cifar.config import SearchConfig, TrainingConfig
from experiments.training import steps as training
from ntksap_jax import criteria, masks, ntk, ops, schedules, scopes
from ntksap_jax.types import Batch, Mask, Network, Params, ScoreFn


def prepare(case: Case) -> Prepared:
    """Makes the network and the functions to time, with a matrix product where rates count."""
    makers: dict[str, Callable[[Case], Steps]] = {
        "sample": _sample,
        "round": _round,
        "search": _search,
        "selection": _selection,
        "train": _train,
        "criterion": _criterion,
        "convolution": _convolution,
    }
    packages = ("jax", "jaxlib", "flax", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    flops = nominal_flops.count(case)
    clock = compile_clock()
    steps = {**makers[case.kind](case), **(_matmul() if case.has_flops else {})}
    return Prepared(steps, versions, flops, clock)


def compile_clock() -> Callable[[], float]:
    """Returns a function that says how many seconds JAX has spent on compilation from now on."""
    spans: list[tuple[float, float]] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            end = time.perf_counter()
            start = end - duration_secs
            while spans and spans[-1][1] > start:  # Part of this one, as a trace within a trace.
                start = min(start, spans.pop()[0])
            spans.append((start, end))

    jax.monitoring.register_event_duration_secs_listener(listen)
    return lambda: sum(end - start for start, end in spans)


def _matmul() -> Steps:
    left, right = jax.random.normal(jax.random.key(0), (2, MATMUL_SIZE, MATMUL_SIZE))
    product = jax.jit(jnp.matmul).lower(left, right).compile()
    return {MATMUL: lambda: product(left, right).block_until_ready()}


# -- Scores --------------------------------------------------------------------------------------


def _sample(case: Case) -> Steps:
    network = _network(case)
    return _scoring(network, _ntk_sap(network, case), batch=None)


def _criterion(case: Case) -> Steps:
    network = _network(case)
    config = SearchConfig(criterion=case.criterion, noise_batch_size=case.batch_size)
    batch = _images_and_labels(case) if config.needs_data else None
    return _scoring(network, factories.make_score(network, config), batch=batch)


def _scoring(network: Network, score: ScoreFn, *, batch: Batch) -> Steps:
    params, keys = network.init(jax.random.key(0)), _keys()
    mask = masks.create(params)
    return {STEP: lambda: jax.block_until_ready(score(next(keys), params, mask, batch))}


def _round(case: Case) -> Steps:
    network = _network(case)
    params, keys = network.init(jax.random.key(0)), _keys()
    schedule = schedules.exponential(DENSITY, rounds=SEARCH_ROUNDS)[:1]
    score = _ntk_sap(network, case)
    return {STEP: lambda: _prune(next(keys), params, score, schedule)}


def _search(case: Case) -> Steps:
    """The weights are drawn within the time: that too is compiled by whoever runs a search."""
    network = _network(case)
    score, keys = _ntk_sap(network, case), _keys()
    schedule = schedules.exponential(DENSITY, rounds=case.num_rounds)
    scored: list[Any] = []

    def recording_score(*arguments: Any) -> Any:
        scored.append(score(*arguments))
        return scored[-1]

    def search() -> None:
        scored.clear()
        _prune(next(keys), network.init(next(keys)), recording_score, schedule)

    def search_without_scoring() -> None:
        """The same rounds once more, all compiled, with the scores of the first time."""
        again = iter(scored)
        _prune(next(keys), network.init(next(keys)), lambda *_: next(again), schedule)

    return {STEP: search, "neither compiling nor scoring": search_without_scoring}


def _prune(key: jax.Array, params: Params, score: ScoreFn, schedule: np.ndarray) -> None:
    mask, _ = nts.prune(key, params, score, schedule=schedule)
    jax.block_until_ready(masks.apply(mask, params))


def _network(case: Case) -> Network:
    return nts.linen(choices.MODELS[case.model](), case.input_shape, train=False)


def _ntk_sap(network: Network, case: Case) -> ScoreFn:
    return criteria.ntk_sap(
        network,
        estimator=getattr(ntk, case.estimator),
        num_samples=case.num_samples,
        batch_size=case.batch_size,
    )


def _keys() -> Iterator[jax.Array]:
    """Another key for every call: the same draws again would not be what a search does."""
    return (jax.random.fold_in(jax.random.key(1), call) for call in itertools.count())


# -- Selection -----------------------------------------------------------------------------------


def _selection(case: Case) -> Steps:
    random = np.random.default_rng(0)
    scores = {
        f"layer_{index}": jnp.asarray(random.random(size, np.float32))
        for index, size in enumerate(case.leaf_sizes)
    }
    mask = jax.tree.map(lambda s: jnp.ones(s.shape, bool), scores)
    scope = scopes.Global()
    counts = scope.counts(mask, DENSITY)
    under_jit = jax.jit(scope.keep_top)

    return {
        STEP: lambda: jax.block_until_ready(scope.select(scores, mask, density=DENSITY)),
        "under jit": lambda: jax.block_until_ready(under_jit(scores, mask, counts)),
    }


# -- Training ------------------------------------------------------------------------------------


def _train(case: Case) -> Steps:
    """The step that `experiments.cifar` takes, without augmentation; without a mask it is dense."""
    model = choices.MODELS[case.model]()
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *case.input_shape)))
    optimizer = training.make_optimizer(TrainingConfig(), steps_per_epoch=390)
    train_step = training.make_train_step(model, optimizer, lambda key, images: images)
    key, (images, labels) = jax.random.key(2), _images_and_labels(case)

    def under(mask: Mask | None) -> Callable[[], None]:
        state = training.init_state(variables, optimizer, mask)

        def step() -> None:
            nonlocal state
            state, _ = jax.block_until_ready(train_step(key, state, images, labels))

        return step

    if not case.masked:
        return {STEP: under(None)}
    params = variables["params"]
    mask, _ = nts.prune(jax.random.key(1), params, criteria.random(), schedule=[DENSITY])
    return {STEP: under(mask), "dense": under(None)}


def _images_and_labels(case: Case) -> tuple[jax.Array, jax.Array]:
    images = jax.random.normal(jax.random.key(3), (case.batch_size, *case.input_shape))
    return images, jnp.arange(case.batch_size) % 10


# -- Convolutions --------------------------------------------------------------------------------


def _convolution(case: Case) -> Steps:
    """As many channels out as in, so that the images are as good as a cotangent."""
    *_, channels = case.input_shape
    images, _ = _images_and_labels(case)
    kernel = jax.random.normal(jax.random.key(4), (3, 3, channels, channels))

    def call(*sums: Callable[..., jax.Array]) -> None:
        for each, _ in itertools.product(sums, range(CONVOLUTION_CALLS)):
            jax.block_until_ready(each(images, kernel, images))

    alone = {name: functools.partial(call, each) for name, each in CONVOLUTION_SUMS.items()}
    return {STEP: functools.partial(call, *CONVOLUTION_SUMS.values()), **alone}


CONVOLUTION_SUMS: dict[str, Callable[..., jax.Array]] = {
    "outputs": jax.jit(lambda x, w, y: ops.conv2d(x, w)),
    "input gradient": jax.jit(lambda x, w, y: jax.vjp(lambda x: ops.conv2d(x, w), x)[1](y)[0]),
    "kernel gradient": jax.jit(lambda x, w, y: jax.vjp(lambda w: ops.conv2d(x, w), w)[1](y)[0]),
}
"""The sums that a layer needs, functions of images, kernel and cotangent."""
