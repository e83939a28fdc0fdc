"""Structured pruning: whole filters go, and the network really gets smaller and faster.

    python -m experiments.tpp demo                     handwritten digits, about a minute
    python -m experiments.tpp mlp-linear-short --compare l1 l1-orthp
    python -m experiments.tpp resnet56-cifar10 --method tpp --ratio 0.9
    python -m experiments.tpp demo --help              every option
    python -m experiments.tpp report runs/tpp          tables and pictures of all runs in there

It reads from top to bottom: plan, data and network, pretraining, regularisation, pruning,
fine-tuning, report. A run folder holds

    config.json, environment.json   what was asked for, and where it ran
    keep.json                       the filters that stay
    regularise.csv                  training with a penalty: strength, penalty, sizes of the filters
    pruned.safetensors              the small network right after pruning
    metrics.csv                     its training, a row an epoch
    network.safetensors             the small network at the end; `structured.load` reads both
    checkpoints/                    training states, of which --resume goes on
    summary.json, *.png             the results; summary.json says that the run is complete

Runs that start from the same dense network share it, in the folder `dense` of `--runs-dir`; those
that differ in their fine-tuning only share the regularised one too, in `regularised`. Exit codes
are those of `experiments.shell.exits`.
"""

from __future__ import annotations

import functools
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.processes import distributed
from experiments.shell import errors
from experiments.storage import files, run_folder
from experiments.tpp import config as config_lib
from experiments.tpp import job as job_lib
from experiments.tpp import measure, plan, regularise, selection, shared, summary, training_stages
from experiments.tpp.config import Config
from experiments.tpp.job import Job
from experiments.tpp.measure import Network
from experiments.tpp.methods import METHODS
from experiments.tpp.presets import PRESETS
from experiments.training import program as common
from experiments.training.loop import Session
from ntksap_jax import structured
from ntksap_jax.structured import trainability

PROG = "python -m experiments.tpp"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program; mistakes and interruptions end it with one line and a non-zero code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["report"]:
        # Another program, which knows this one; this one knows no more than its name.
        os.execv(sys.executable, [sys.executable, "-m", "experiments.report", *arguments[1:]])
    else:
        more = f"{PROG} report RUNS_DIR makes tables and pictures of all runs in there.\n"
        common.main(arguments, prog=PROG, presets=PRESETS, run=run, more=more)


def run(config: Config, console: Console) -> list[dict[str, Any]]:
    """Carries out the configured run and those it is compared with: see `common.carry_out`."""
    methods = dict.fromkeys((config.method, *config.compare))
    configs = [config_lib.with_method(config, method) for method in methods]

    def make_job(config: Config) -> Job:
        job = job_lib.make(config)
        distributed.from_leader(functools.partial(selection.check, configs, job))
        return job

    return common.carry_out(
        {config.runs_dir / config_lib.run_name(each): each for each in configs},
        config,
        console,
        make_job=make_job,
        plan=plan.describe,
        run_one=run_one,
        show=summary.show,
    )


def run_one(job: Job, session: Session, folder: Path, config: Config) -> dict[str, Any]:
    """Carries out one run; writes everything to its folder, and returns the summary."""
    method = METHODS[config.method]
    if method.criterion is not None:  # Pruned before training.
        start = job_lib.init_variables(job, job.model, job.keys.init)
    else:
        start = training_stages.pretrained(config, job, session)

    def choose(variables: Any) -> selection.Keep:
        return selection.load_or_choose(
            folder / "keep.json", config, job, variables, session.console
        )

    # TPP and GReg-1 regularise with the choice in mind, the others choose afterwards.
    knows_choice = method.regulariser in ("tpp", "greg1")
    keep = choose(start) if knows_choice else {}
    variables = start
    regularised: list[run_folder.Row] = []
    if method.regulariser is not None:
        variables, regularised = regularise.carry_out(config, job, start, keep, folder, session)
    keep = keep if knows_choice else choose(variables)
    pruned = remove(config, job, variables, keep)
    pruned_score = measure.evaluate(job.images, pruned)
    _save(folder / "pruned.safetensors", pruned)

    final = pruned
    epochs: list[run_folder.Row] = []
    if method.prunes:
        scratch = method.from_scratch
        recipe = config.pretrain.recipe if scratch else config.finetune.recipe
        trained, epochs = training_stages.train(
            *(config, job, session, pruned, recipe),
            name="Training" if scratch else "Fine-tuning",
            folder=folder,
            run=distributed.from_leader(
                lambda: run_folder.identity(
                    folder, files.digest([shared.ORDER, selection.indices_of(keep)])
                )
            ),
            key=job.keys.finetune,
        )
        final = Network(pruned.model, trained)
    _save(folder / "network.safetensors", final)

    def finish() -> dict[str, Any]:
        results = summary.make(
            *(config, job, keep),
            start=start,
            pruned=pruned,
            pruned_score=pruned_score,
            final=final,
            epochs=epochs,
        )
        summary.draw(folder, results, regularised, epochs)
        run_folder.write_json(folder / "summary.json", results)
        return results

    return distributed.from_leader(finish)


def remove(config: Config, job: Job, variables: Any, keep: selection.Keep) -> Network:
    """Returns the small network: the weights at hand, OrthP's, or fresh ones.

    Raises:
        UserError: filters that cannot go.
    """
    method = METHODS[config.method]
    if not method.prunes:
        return Network(job.model, variables)
    with errors.at(f"--method {config.method}"):
        model, small = structured.shrink(job.model, variables, job.channels, keep)
    if method.redraw:
        small = job_lib.init_variables(job, model, job.keys.redrawn)
    if method.orthp:
        channels = structured.trace(model, job.images.dataset.image_shape, train=False)
        gain = 1.0 if job.is_linear else math.sqrt(2)
        small = {**small, "params": trainability.orthp(small["params"], channels, gain=gain)}
    return Network(model, small)


def _save(path: Path, network: Network) -> None:
    if distributed.is_leader():
        structured.save(path, network.model, network.variables)
