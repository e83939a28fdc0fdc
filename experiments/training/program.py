"""What the programs that train have in common: from their arguments to the summaries of their runs.

One command makes one run or several, for comparison, each in a folder of its own.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import flax
import jax
import optax
from rich.console import Console

from experiments.processes import distributed, joining
from experiments.shell import command_line, exits, interruption
from experiments.shell import console as screen
from experiments.shell.configuration import to_dict
from experiments.shell.errors import Preempted, RunFailed
from experiments.storage import locking, run_folder
from experiments.training import failures, tensorboard
from experiments.training.config import RunConfig
from experiments.training.inputs import Inputs
from experiments.training.loop import Session

C = TypeVar("C", bound=RunConfig)
Summary = dict[str, Any]


def main(
    arguments: Sequence[str],
    *,
    prog: str,
    presets: Mapping[str, tuple[str, C]],
    run: Callable[[C, Console], Any],
) -> None:
    """Runs a program; mistakes and interruptions end it with one line and a non-zero code.

    Args:
        arguments: the words after the program's name.
        prog: the program's name.
        presets: name to (one line for the help, configuration).
        run: carries it out.
    """
    again = [*(word for word in arguments if word != "--resume"), "--resume"]
    with exits.in_one_line(prog, again):
        config = command_line.parse(arguments, presets, prog=prog)
        # Within, too: by their exit codes processes tell each other how they end.
        with joining.joined(config.processes), exits.in_one_line(prog, again):
            run(config, screen.open_console(quiet=not distributed.is_leader()))


def check(config: RunConfig, runs: Mapping[Path, Any]) -> None:
    """Raises a `UserError` unless the runs can start or go on; then connects all devices."""
    tensorboard.check(config.tensorboard)
    if distributed.is_leader():
        for folder, each in runs.items():
            run_folder.check(folder, to_dict(each))
    distributed.meet()


@contextlib.contextmanager
def session(
    config: RunConfig,
    runs: Mapping[Path, Any],
    images: Inputs,
    *,
    plan: Callable[[], list[tuple[str, str]]],
    console: Console,
) -> Iterator[Session]:
    """Locks and prepares the folders of the runs and shows the plan; yields how they run.

    Args:
        config: of the command.
        runs: folder to configuration, checked.
        images: what is trained on.
        plan: makes the plan as (name, value) rows.
        console: where plan, progress and summary go.

    Raises:
        RunFailed: processes differ in their options, or `--debug-nans` found something.
    """
    distributed.check_same(lambda: _facts(config, images))
    is_leader = distributed.is_leader()
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
        screen.show_plan(console, "Plan", plan())
        for folder, each in runs.items() if is_leader else ():
            run_folder.prepare(folder, to_dict(each), data_source=images.dataset.source)
        try:
            yield Session(console, stop_requested, config.save_minutes, config.tensorboard)
        except FloatingPointError as error:
            raise RunFailed(f"--debug-nans found an {failures.operation(error)}") from error


def _facts(config: RunConfig, images: Inputs) -> dict[str, str]:
    """Returns what must be the same in all processes of a run."""
    values = to_dict(config)
    options = run_folder.computed(values) | {"compare": values["compare"]}
    for name in [name for name, value in options.items() if isinstance(value, dict)]:
        options |= options.pop(name)
    return {
        **{f"--{name.replace('_', '-')}": str(value) for name, value in options.items()},
        "images": images.dataset.source,
        "versions": f"jax {jax.__version__}, flax {flax.__version__}, optax {optax.__version__}",
    }


def carry_out(
    runs: Mapping[Path, C], run_one: Callable[[Path, C], Summary], at: Session
) -> list[Summary]:
    """Carries out the runs that are not complete; returns the summaries of all."""
    summaries = []
    for folder, config in runs.items():
        if is_all_done([folder]):
            summaries.append(
                distributed.from_leader(functools.partial(run_folder.read_summary, folder))
            )
        elif at.stop_requested():
            raise Preempted
        else:
            at.console.rule(folder.name, align="left", style="dim")
            summaries.append(run_one(folder, config))
    return summaries


def is_all_done(runs: Iterable[Path]) -> bool:
    """Says whether all runs are complete."""
    return distributed.from_leader(lambda: all(map(run_folder.is_complete, runs)))
