"""The job that a configuration describes: data, network, compiled steps, random keys."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import ntksap_jax as nts
from experiments import data
from experiments.cifar import pretrained
from experiments.cifar.choices import MODELS
from experiments.cifar.config import Config
from experiments.processes import distributed
from experiments.shell.errors import UserError
from experiments.training import inputs, steps
from experiments.training.inputs import Inputs
from ntksap_jax import flops, masks
from ntksap_jax.types import Network


class Job(NamedTuple):
    """What the runs of one command share: they differ in the criterion only.

    `trained` are variables to start from, if they are not random; `num_parameters` counts biases
    and normalisation too; `kernel_flops` are those of each kernel for one image, see `flops.count`.
    """

    images: Inputs
    model: nn.Module
    network: Network
    trained: dict[str, Any] | None
    num_parameters: int
    num_prunable: int
    kernel_flops: dict[str, int]
    optimizer: optax.GradientTransformation
    train_step: steps.TrainStep
    eval_step: steps.EvalStep


class Keys(NamedTuple):
    """A key for each thing that is drawn at random."""

    init: jax.Array
    search: jax.Array
    order: jax.Array
    augmentation: jax.Array
    pruning_batch: jax.Array
    shuffle: jax.Array
    redrawn: jax.Array


def make_keys(seed: int) -> Keys:
    """Makes the keys of a seed."""
    return Keys(*jax.random.split(jax.random.key(seed), len(Keys._fields)))


def make_job(config: Config) -> Job:
    """Loads the data and makes the network; nothing is compiled yet.

    The last job is kept, for a process that carries out several runs of the same network and
    training, as a worker of a sweep does: what is compiled for it, too, is used again.

    Raises:
        UserError: data that are not there, or options that do not go together.
    """
    key = Config(**{name: getattr(config, name) for name in _WHAT_COUNTS})
    if key not in _jobs:
        _jobs.clear()
        _jobs[key] = _make_job(key)
    job = _jobs[key]
    options, prunable = config.search, job.num_prunable
    if options.rounds > prunable:
        raise UserError(f"--rounds: {options.rounds} is more than the {prunable} weights")
    if round(options.density * prunable) < 1:
        raise UserError(f"--density: {options.density:g} of {prunable} weights is none")
    return job


_WHAT_COUNTS = ("dataset", "data_dir", "image_size", "data_workers", "model", "weights", "training")
"""Fields of the configuration that a job depends on."""

_jobs: dict[Config, Job] = {}
"""The last one, and only that while another is made: they are large."""


def _make_job(config: Config) -> Job:
    dataset = data.load(
        config.dataset,
        data_dir=config.data_dir,
        image_size=config.image_size,
        num_workers=config.data_workers,
    )
    model = MODELS[config.model](num_classes=dataset.num_classes)
    trained = None
    if config.weights is not None:
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *dataset.image_shape)))
        trained = distributed.arrays_from_leader(
            functools.partial(pretrained.load, config.weights, config, shapes), like=shapes
        )
    try:
        network = nts.linen(
            model,
            dataset.image_shape,
            batch_stats=None if trained is None else trained["batch_stats"],
            train=False,
        )
    except ValueError as error:
        raise UserError(
            f"--model {config.model} cannot take the images of {config.dataset}: {error}"
        ) from error
    params = jax.eval_shape(network.init, jax.random.key(0))
    images = inputs.make(dataset, config.training.batch_size)
    per_epoch, options = images.steps_per_epoch, config.training
    if round(options.warmup_epochs * per_epoch) >= options.epochs * per_epoch:
        raise UserError(
            f"--warmup-epochs: {options.warmup_epochs:g} leaves none of the "
            f"{options.epochs * per_epoch} steps for the rest of the schedule"
        )
    optimizer = steps.make_optimizer(options, per_epoch)
    return Job(
        images=images,
        model=model,
        network=network,
        trained=trained,
        num_parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
        num_prunable=masks.num_prunable(masks.create(params)),
        kernel_flops=flops.count(network),
        optimizer=optimizer,
        train_step=steps.make_train_step(model, optimizer, images.augment),
        eval_step=steps.make_eval_step(model, images.normalise),
    )


def init_variables(config: Config, job: Job, *, redrawn: bool = False) -> dict[str, Any]:
    """Returns the original weights, which every run of the command starts from.

    They are drawn at random, or those of `--weights`.

    Args:
        config: its seed decides.
        job: data and network.
        redrawn: draw others, independent of the original ones: a sanity check of a mask.
    """
    if job.trained is not None and not redrawn:
        return job.trained
    keys = make_keys(config.seed)
    key = keys.redrawn if redrawn else keys.init
    return steps.init_variables(job.model, key, job.images.dataset.image_shape)
