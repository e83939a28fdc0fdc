"""The main job: prune a network before training, and train what is left, on real images.

    python -m experiments.cifar demo                      handwritten digits, under two minutes
    python -m experiments.cifar short                     CIFAR-10, a few epochs
    python -m experiments.cifar paper-cifar10             the paper's set-up, 160 epochs
    python -m experiments.cifar demo --help               every option

It reads from top to bottom: plan, data and network, search, training, summary. Exit codes: see
`experiments.shell.exits`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax
import jax
import optax
from rich.console import Console

from experiments.cifar import config as config_lib
from experiments.cifar import plan, search_files, search_stage, spectrum, summary
from experiments.cifar.config import Config
from experiments.cifar.job import Job, init_variables, make_job
from experiments.cifar.presets import PRESETS
from experiments.processes import distributed, joining
from experiments.shell import command_line, exits, interruption
from experiments.shell import console as screen
from experiments.shell.configuration import to_dict
from experiments.shell.errors import Preempted, RunFailed
from experiments.storage import locking, run_folder
from experiments.training import failures as faults
from experiments.training import loop as training_stage

PROG = "python -m experiments.cifar"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program; mistakes and interruptions end it with one line and a non-zero code.

    Args:
        arguments: the words after the program's name; by default those of the command line.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    again = [*(word for word in arguments if word != "--resume"), "--resume"]
    with exits.in_one_line(PROG, again):
        config = command_line.parse(arguments, PRESETS, prog=PROG)
        # Within, too: by their exit codes processes tell each other how they end.
        with joining.joined(config.processes), exits.in_one_line(PROG, again):
            run(config, screen.open_console(quiet=not distributed.is_leader()))


def run(config: Config, console: Console, *, job: Job | None = None) -> list[dict[str, Any]]:
    """Carries out the configured run, and those it is to be compared with.

    Args:
        config: from the command line, checked.
        console: where plan, progress and summary go.
        job: what `make_job` made for a configuration that differs in search and seed only, if
            there is one: its compiled steps are used again.

    Returns:
        The summary of each run.

    Raises:
        UserError: something that the user can put right.
        RunFailed: a score or loss that is not finite.
        Preempted: SIGTERM came; what was done is saved.
    """
    runs = {
        config.runs_dir / config_lib.run_name(each): each
        for each in (
            config_lib.with_criterion(config, criterion)
            for criterion in (config.search.criterion, *config.compare)
        )
    }
    is_leader = distributed.is_leader()
    if is_leader:
        for folder, each in runs.items():
            run_folder.check(folder, to_dict(each))

    distributed.meet()
    job = make_job(config) if job is None else job
    spectrum.check(config, job)
    distributed.check_same(lambda: _facts(config, job))
    with contextlib.ExitStack() as stack:
        stop_requested = distributed.stop_agreed
        if not distributed.is_joined():
            stop_requested = stack.enter_context(interruption.deferred())
        if config.debug_nans:
            stack.enter_context(jax.debug_nans(True))
        for folder, each in runs.items() if is_leader else ():
            run_folder.make(folder)
            stack.enter_context(locking.hold(folder))
            # Again: another program may have been there until now.
            run_folder.check(folder, to_dict(each))
        screen.show_plan(console, "Plan", plan.describe(config, job, list(runs)))
        for folder, each in runs.items() if is_leader else ():
            run_folder.prepare(folder, to_dict(each), data_source=job.dataset.source)
        try:
            return _run_all(runs, config, job, console, stop_requested)
        except FloatingPointError as error:
            raise RunFailed(f"--debug-nans found an {faults.operation(error)}") from error


def _facts(config: Config, job: Job) -> dict[str, str]:
    """What must be the same in all processes of a run."""
    options = run_folder.computed(to_dict(config)) | {"compare": config.compare}
    nested = options.pop("search") | options.pop("training")
    return {
        **{f"--{name.replace('_', '-')}": str(value) for name, value in (options | nested).items()},
        "images": job.dataset.source,
        "versions": f"jax {jax.__version__}, flax {flax.__version__}, optax {optax.__version__}",
    }


def _run_all(
    runs: dict[Path, Config],
    config: Config,
    job: Job,
    console: Console,
    stop_requested: Callable[[], bool],
) -> list[dict[str, Any]]:
    # Drawn once: compiling a draw for every shape of kernel takes longer on CPU than a round.
    found = distributed.from_leader(
        lambda: [
            run_folder.read_summary(folder) if run_folder.is_complete(folder) else None
            for folder in runs
        ]
    )
    variables = None if all(found) else init_variables(config, job)
    summaries = [
        run_one(each, job, variables, folder, console, stop_requested) if known is None else known
        for known, (folder, each) in zip(found, runs.items(), strict=True)
    ]
    if distributed.is_leader():
        summary.show(list(runs), summaries, console)
    return summaries


def run_one(
    config: Config,
    job: Job,
    variables: Any,
    folder: Path,
    console: Console,
    stop_requested: Callable[[], bool],
) -> dict[str, Any]:
    """Searches and trains; writes everything to the run folder, and returns the summary."""
    if stop_requested():
        raise Preempted
    console.rule(config_lib.run_name(config), align="left", style="dim")
    rounds, mask = search_stage.find_mask(
        config, job, variables["params"], folder, console, stop_requested=stop_requested
    )
    if config.search.redraw_weights:
        variables = init_variables(config, job, redrawn=True)
    epochs = training_stage.train(
        config, job, variables, mask, folder, console, stop_requested=stop_requested
    )

    def finish() -> dict[str, Any]:
        results = summary.make(config, job, mask, rounds, epochs)
        summary.draw(folder, results, rounds, epochs)
        run_folder.write_json(folder / "summary.json", results)
        search_files.drop_rounds(folder)
        return results

    return distributed.from_leader(finish)
