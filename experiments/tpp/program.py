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

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.shell import command_line, exits, interruption
from experiments.shell import console as screen
from experiments.shell.configuration import to_dict
from experiments.storage import files, locking, run_folder
from experiments.tpp import config as config_lib
from experiments.tpp import (
    dense,
    finetune,
    measure,
    plan,
    regularise,
    removal,
    selection,
    stage,
    summary,
)
from experiments.tpp import job as job_lib
from experiments.tpp.config import Config
from experiments.tpp.job import Job
from experiments.tpp.presets import PRESETS
from ntksap_jax.structured import shrinking

PROG = "python -m experiments.tpp"

StopRequested = Callable[[], bool]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program; mistakes and interruptions end it with one line and a non-zero code.

    Args:
        arguments: the words after the program's name; by default those of the command line.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    again = [*(word for word in arguments if word != "--resume"), "--resume"]
    with exits.in_one_line(PROG, again):
        if arguments[:1] == ["report"]:
            # Another program, which knows this one; this one knows no more than its name.
            os.execv(sys.executable, [sys.executable, "-m", "experiments.report", *arguments[1:]])
        else:
            config = command_line.parse(arguments, PRESETS, prog=PROG)
            run(config, screen.open_console())


def run(config: Config, console: Console) -> list[dict[str, Any]]:
    """Carries out the configured run, and those it is to be compared with.

    Args:
        config: from the command line, checked.
        console: where plan, progress and summary go.

    Returns:
        The summary of each run.

    Raises:
        UserError: something that the user can put right.
        RunFailed: a loss that is not finite.
        Preempted: SIGTERM came; what was done is saved.
    """
    methods = dict.fromkeys((config.method, *config.compare))
    configs = [config_lib.with_method(config, method) for method in methods]
    runs = {config.runs_dir / config_lib.run_name(each): each for each in configs}
    for folder, each in runs.items():
        run_folder.check(folder, to_dict(each))
    job = job_lib.make(config)
    selection.layer_ratios(config, job)  # Before anything is trained.
    with contextlib.ExitStack() as stack:
        stop_requested = stack.enter_context(interruption.deferred())
        for folder, each in runs.items():
            run_folder.make(folder)
            stack.enter_context(locking.hold(folder))
            # Again: another program may have been there until now.
            run_folder.check(folder, to_dict(each))
        screen.show_plan(console, "Plan", plan.describe(config, job, list(runs)))
        for folder, each in runs.items():
            run_folder.prepare(folder, to_dict(each), data_source=job.dataset.source)
        summaries = [
            run_folder.read_summary(folder)
            if run_folder.is_complete(folder)
            else run_one(each, job, folder, console, stop_requested)
            for folder, each in runs.items()
        ]
    summary.show(list(runs), summaries, job, console)
    return summaries


def run_one(
    config: Config, job: Job, folder: Path, console: Console, stop_requested: StopRequested
) -> dict[str, Any]:
    """Carries out one run; writes everything to its folder, and returns the summary."""
    console.rule(config_lib.run_name(config), align="left", style="dim")
    method = config_lib.method_of(config)
    start = initial_variables(config, job, console, stop_requested)

    def choose(variables: Any) -> selection.Keep:
        return selection.load_or(
            folder / "keep.json",
            job,
            lambda: selection.choose(config, job, variables, console),
        )

    # TPP and GReg-1 regularise with the choice in mind, the others choose afterwards.
    knows_choice = method.regulariser in ("tpp", "greg1")
    keep = choose(start) if knows_choice else {}
    variables = start
    regularised: list[run_folder.Row] = []
    if method.regulariser is not None:
        variables, regularised = regularise.carry_out(
            *(config, job, start, keep, folder, console), stop_requested=stop_requested
        )
    keep = keep if knows_choice else choose(variables)
    pruned = removal.remove(config, job, variables, keep)
    shrinking.save(folder / "pruned.safetensors", pruned.model, pruned.variables)

    final = pruned
    epochs: list[run_folder.Row] = []
    if method.prunes:
        trained, epochs = stage.carry_out(
            finetune.make_stage(
                config,
                job,
                pruned.model,
                folder=folder,
                run=_identity(folder, keep),
            ),
            *(pruned.variables, config, job, console),
            stop_requested=stop_requested,
        )
        final = measure.Network(pruned.model, trained)
    shrinking.save(folder / "network.safetensors", final.model, final.variables)

    results = summary.make(
        config, job, keep, start=start, pruned=pruned, final=final, epochs=epochs
    )
    summary.draw(folder, results, regularised, epochs)
    run_folder.write_json(folder / "summary.json", results)
    return results


def initial_variables(
    config: Config, job: Job, console: Console, stop_requested: StopRequested
) -> Any:
    """Returns the dense network: random where it is pruned before training, else trained."""
    if config_lib.method_of(config).criterion is not None:
        return job_lib.init_variables(config, job, job.model, job_lib.make_keys(config.seed).init)
    return dense.pretrained(config, job, console, stop_requested=stop_requested).variables


def _identity(folder: Path, keep: selection.Keep) -> str:
    chosen = {path: kept.tolist() for path, kept in keep.items()}
    return run_folder.identity(folder, files.digest(chosen))
