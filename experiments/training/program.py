"""What the programs that train have in common: from their arguments to the summaries of their runs.

One command makes one run or several, for comparison, each in a folder of its own.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    more: str = "",
) -> None:
    """Runs a program; mistakes and interruptions end it with one line and a non-zero code.

    Presets, name and further lines of the help are those of `command_line.parse`; `run` carries a
    configuration out.
    """
    again = [*(word for word in arguments if word != "--resume"), "--resume"]
    with exits.in_one_line(prog, again):
        config = command_line.parse(arguments, presets, prog=prog, more=more)
        # Within, too: by their exit codes processes tell each other how they end.
        with joining.joined(config.processes), exits.in_one_line(prog, again):
            run(config, screen.open_console(quiet=not distributed.is_leader()))


def carry_out(
    runs: Mapping[Path, C],
    config: C,
    console: Console,
    *,
    make_job: Callable[[C], Any],
    plan: Callable[[C, Any, Sequence[Path]], list[tuple[str, str]]],
    run_one: Callable[[Any, Session, Path, C], Summary],
    show: Callable[[Sequence[Path], Sequence[Summary], Console], None],
) -> list[Summary]:
    """Carries out the runs that are not complete; returns the summaries of all.

    Args:
        runs: folder to configuration.
        config: of the command.
        console: where plan, progress and summary go.
        make_job: makes what the runs have in common, of which this uses `images`.
        plan: makes the plan, as (name, value) rows.
        run_one: carries out a run.
        show: prints the summary.

    Raises:
        UserError: something that the user can put right.
        RunFailed: processes differ in their options, or numbers are not finite.
        Preempted: SIGTERM came; what was done is saved.
    """
    tensorboard.check(config.tensorboard)
    _check(runs)
    distributed.meet()
    job, folders = make_job(config), list(runs)
    with _session(config, runs, job.images, console, lambda: plan(config, job, folders)) as session:
        summaries = []
        for folder, each in runs.items():
            done = distributed.from_leader(functools.partial(_summary, folder))
            if done is None:
                if session.stop_requested():
                    raise Preempted
                console.rule(folder.name, align="left", style="dim")
                done = run_one(job, session, folder, each)
            summaries.append(done)
    if distributed.is_leader():
        show(folders, summaries, console)
    return summaries


def _check(runs: Mapping[Path, Any]) -> None:
    for folder, config in runs.items() if distributed.is_leader() else ():
        run_folder.check(folder, to_dict(config))


def _summary(folder: Path) -> Summary | None:
    return run_folder.read_summary(folder) if run_folder.is_complete(folder) else None


@contextlib.contextmanager
def _session(
    config: RunConfig,
    runs: Mapping[Path, Any],
    images: Inputs,
    console: Console,
    plan: Callable[[], list[tuple[str, str]]],
) -> Iterator[Session]:
    """Locks and prepares the folders of the runs and shows the plan; yields how they run."""
    distributed.check_same(lambda: _facts(config, images))
    is_leader = distributed.is_leader()
    with contextlib.ExitStack() as stack:
        stop_requested = distributed.stop_agreed
        if not distributed.is_joined():
            stop_requested = stack.enter_context(interruption.deferred())
        if config.debug_nans:
            stack.enter_context(jax.debug_nans(True))
        for folder in runs if is_leader else ():
            run_folder.make(folder)
            stack.enter_context(locking.hold(folder))
        _check(runs)  # Again: another program may have been there until now.
        screen.show_plan(console, "Plan", plan())
        for folder, each in runs.items() if is_leader else ():
            run_folder.prepare(folder, to_dict(each), data_source=images.dataset.source)
        try:
            events = config.tensorboard and is_leader
            yield Session(console, stop_requested, config.save_minutes, tensorboard=events)
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
