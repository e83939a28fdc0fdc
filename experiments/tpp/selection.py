"""Which filters go: by a ratio a layer, or by one threshold down to a budget; kept in a file."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

import ntksap_jax as nts
from experiments import data
from experiments.processes import distributed
from experiments.shell import console as screen
from experiments.shell import errors
from experiments.shell.errors import UserError
from experiments.storage import files, run_folder
from experiments.tpp import measure, shared
from experiments.tpp.config import Config
from experiments.tpp.job import Job
from experiments.tpp.methods import METHODS, Method
from ntksap_jax import criteria, schedules, structured
from ntksap_jax.structured import Cost, tpp

Keep = dict[str, np.ndarray]

LATENCY_BATCH_SIZE = 128
LATENCY_REPEATS = 15
"""For --latency-budget: images a pass, and timed passes of each network that is tried."""


def check(configs: Sequence[Config], job: Job) -> None:
    """Looks for what the methods of the runs cannot do, before anything is trained.

    Raises:
        UserError: patterns that match nothing, a budget that cannot be reached, too few steps.
    """
    for config in configs:
        _check(config, job)


def _check(config: Config, job: Job) -> None:
    method, ratios = METHODS[config.method], layer_ratios(config, job)
    if method.regulariser == "tpp":
        try:
            tpp.regularise(optax.identity(), job.channels, {}, config.regularise.settings)
        except ValueError as error:
            told = str(error).replace("stabilise_steps", "--stabilise-steps")
            raise UserError(told.replace("zero_out_interval=", "--zero-out-interval ")) from error
    if config.budget is None or not method.prunes:
        return
    what, density = config.budget
    if what == "latency" and method.criterion is not None:
        raise UserError(
            f"--latency-budget: {config.method} prunes before training in many small steps, too "
            "many to time each. Use --flops-budget"
        )
    if what == "latency" and run_folder.is_complete(shared.dense_folder(config, job)):
        return  # Nothing is lost any more, and times differ from one day to another.
    scores = {
        path: np.zeros(layer.num_filters)
        for path, layer in job.channels.layers.items()
        if layer.removable and (method.criterion is not None or ratios.get(path))
    }
    cost: Any = _untrained_latency(job) if what == "latency" else what
    try:
        structured.select_global(scores, job.channels, density=density, cost=cost)
    except ValueError as error:
        reason = str(error).removeprefix("density: ")
        raise UserError(f"--{what}-budget {density:g}: {reason}") from error


def choose(config: Config, job: Job, variables: Any, console: Console) -> Keep:
    """Chooses the filters of the dense network that stay; see `check`."""
    method = METHODS[config.method]
    if not method.prunes:
        return {}
    with errors.at(f"--method {config.method}"):
        if method.criterion is not None:
            return _search(config, job, method, variables, console)
        return by_l1(config, job, variables)


def by_l1(config: Config, job: Job, variables: Any) -> Keep:
    """Chooses by the L1 norm of the filters, by ratio or budget."""
    ratios = layer_ratios(config, job)
    scores = structured.l1(variables["params"], job.channels)
    if config.budget is None:
        return structured.select(scores, ratios)
    layers = {path: scores[path] for path, ratio in ratios.items() if ratio > 0}
    what, density = config.budget
    cost: Any = functools.partial(_latency, job, variables) if what == "latency" else what
    keep = structured.select_global(layers, job.channels, density=density, cost=cost)
    return {path: kept for path, kept in keep.items() if path in layers}


def layer_ratios(config: Config, job: Job) -> dict[str, float]:
    """Returns the ratio of each layer; raises a `UserError` for patterns that do not fit."""
    with errors.at("--patterns, --skip"):
        patterns: Any = dict.fromkeys(config.patterns, config.ratio)
        return structured.ratios(job.channels, patterns, skip=config.skip)


def _latency(job: Job, variables: Any, keep: Mapping[str, Any]) -> float:
    """Measures the median time of the network that a choice of filters leaves."""
    network = measure.Network(*structured.shrink(job.model, variables, job.channels, keep))
    shape = (LATENCY_BATCH_SIZE, *job.images.dataset.image_shape)
    return measure.latency_at({"": network}, shape, repeats=LATENCY_REPEATS)[""][1]


def _untrained_latency(job: Job) -> Callable[[Mapping[str, Any]], float]:
    """Times the dense network and the smallest one, of which `select_global` asks first."""
    example = jnp.zeros((1, *job.images.dataset.image_shape))
    shapes = jax.eval_shape(job.model.init, jax.random.key(0), example)
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    calls = itertools.count()
    return lambda keep: _latency(job, variables, keep) if next(calls) < 2 else 0.0


def cost_left(config: Config, job: Job) -> Cost:
    """Returns what the network costs after pruning by the ratio."""
    ratios = layer_ratios(config, job)
    layers = job.channels.layers
    scores = {path: np.zeros(layers[path].num_filters) for path in ratios}
    return structured.cost(job.channels, structured.select(scores, ratios))


# -- Before training -----------------------------------------------------------------------------


def _search(config: Config, job: Job, method: Method, variables: Any, console: Console) -> Keep:
    by_ratio = cost_left(config, job).flops / structured.cost(job.channels).flops
    kind, budget = config.budget or ("flops", by_ratio)
    rounds = method.rounds or config.search.rounds
    batch = None
    if method.criterion == "snip":
        batch = data.pruning_batch(
            job.images.dataset, job.keys.pruning_batch, config.search.samples_per_class
        )
    network = nts.linen(job.model, job.images.dataset.image_shape, train=False)
    score = {
        "ntk_sap": lambda: criteria.ntk_sap(
            network,
            num_samples=config.search.num_samples,
            batch_size=config.search.noise_batch_size,
            signed=True,
        ),
        "snip": lambda: criteria.snip(network, signed=True),
        "synflow": lambda: criteria.synflow(network),
    }[str(method.criterion)]()
    with screen.track(console, "pruning", total=rounds, unit="round") as tracker:
        return structured.prune(
            *(job.keys.search, variables["params"], score, job.channels),
            schedule=schedules.exponential(budget, rounds=rounds),
            cost=cast(Any, kind),
            batch=batch,
            on_round=lambda index, keep: tracker.advance(),
        )


# -- File ----------------------------------------------------------------------------------------


def load_or_choose(path: Path, config: Config, job: Job, variables: Any, console: Console) -> Keep:
    """Reads the choice of an earlier session, or chooses; all processes have the leader's.

    The file holds `{layer: indices of the filters that stay}` as JSON, with its SHA-256.

    Raises:
        UserError: the file is damaged.
    """

    def read_or_choose() -> dict[str, list[int]]:
        if not path.exists():
            indices = indices_of(choose(config, job, variables, console))
            run_folder.write_json(path, files.seal(indices))
            return indices
        return files.read_sealed(path, advice="Delete it to choose again")

    layers = job.channels.layers
    return {
        layer: np.isin(np.arange(layers[layer].num_filters), kept)
        for layer, kept in distributed.from_leader(read_or_choose).items()
    }


def indices_of(keep: Keep) -> dict[str, list[int]]:
    """Returns the indices of the filters that stay, as JSON can hold them."""
    return {layer: np.flatnonzero(kept).tolist() for layer, kept in keep.items()}
