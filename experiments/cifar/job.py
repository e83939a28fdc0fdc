"""The job that a configuration describes: data, network, compiled steps, random keys."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import ntksap_jax as nts
from experiments.cifar import pretrained
from experiments.cifar.choices import MODELS
from experiments.cifar.config import Config
from experiments.processes import distributed
from experiments.shell import errors
from experiments.shell.errors import UserError
from experiments.training import inputs, steps
from experiments.training.inputs import Inputs
from ntksap_jax import flops, masks
from ntksap_jax.types import Network

MAX_EIGENVALUES = 4000
"""More take minutes an epoch for the eigenvalues alone."""


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
    options, prunable, classes = config.search, job.num_prunable, job.images.dataset.num_classes
    if options.rounds > prunable:
        raise UserError(f"--rounds: {options.rounds} is more than the {prunable} weights")
    if round(options.density * prunable) < 1:
        raise UserError(f"--density: {options.density:g} of {prunable} weights is none")
    eigenvalues = config.spectrum_samples * classes**2
    if eigenvalues > MAX_EIGENVALUES:
        raise UserError(
            f"--spectrum-samples: {config.spectrum_samples} images of each of {classes} classes "
            f"with as many outputs give {eigenvalues} eigenvalues, expected at most "
            f"{MAX_EIGENVALUES}: at most {MAX_EIGENVALUES // classes**2} images a class here"
        )
    return job


_WHAT_COUNTS = ("dataset", "data_dir", "image_size", "data_workers", "model", "weights", "training")
"""Fields of the configuration that a job depends on."""

_jobs: dict[Config, Job] = {}
"""The last one, and only that while another is made: they are large."""


def _make_job(config: Config) -> Job:
    options = config.training
    images = inputs.load(config, options.batch_size)
    image_shape = images.dataset.image_shape
    model = MODELS[config.model](num_classes=images.dataset.num_classes)
    trained = None
    if config.weights is not None:
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
        trained = distributed.arrays_from_leader(
            functools.partial(pretrained.load, config.weights, config, shapes), like=shapes
        )
    with errors.at(f"--model {config.model} cannot take the images of {config.dataset}"):
        statistics = None if trained is None else trained["batch_stats"]
        network = nts.linen(model, image_shape, batch_stats=statistics, train=False)
    params = jax.eval_shape(network.init, jax.random.key(0))
    per_epoch = images.steps_per_epoch
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

    They are drawn at random, as the seed decides, or those of `--weights`; `redrawn` draws others,
    independent of the original ones: a sanity check of a mask.
    """
    if job.trained is not None and not redrawn:
        return job.trained
    keys = make_keys(config.seed)
    key = keys.redrawn if redrawn else keys.init
    return steps.init_variables(job.model, key, job.images.dataset.image_shape)
