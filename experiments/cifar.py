"""The main job: prune a network before training, and train what is left, on real images.

    python -m experiments.cifar demo                      handwritten digits, under two minutes
    python -m experiments.cifar short                     CIFAR-10, a few epochs
    python -m experiments.cifar paper-cifar10             the paper's set-up, 160 epochs
    python -m experiments.cifar demo --help               every option

It reads from top to bottom: plan, data and network, search, training, summary.
"""

from __future__ import annotations

import functools
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments import (
    checkpoints,
    choices,
    command_line,
    data,
    plan,
    run_folder,
    spectrum,
    summary,
    training,
)
from experiments import config as config_lib
from experiments import console as screen
from experiments.choices import CRITERIA
from experiments.command_line import UserError
from experiments.config import Config
from experiments.job import Job, init_variables, make_job, make_keys
from experiments.presets import PRESETS
from ntksap_jax import masks, schedules, search, sharding
from ntksap_jax.types import Mask, RoundInfo

PROG = "python -m experiments.cifar"
EVAL_BATCH_SIZE = 500


class RunFailed(Exception):
    """A run that cannot go on; the message is shown as one line."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program; mistakes and interruptions end it with one line and a non-zero code.

    Args:
        arguments: the words after the program's name; by default those of the command line.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        config = command_line.parse(arguments, PRESETS, prog=PROG)
        config_lib.check(config)
        run(config, screen.open_console())
    except UserError as error:
        _stop(f"error: {error}", code=2)
    except RunFailed as error:
        _stop(f"error: {error}", code=1)
    except KeyboardInterrupt:
        again = [*(word for word in arguments if word != "--resume"), "--resume"]
        _stop(f"interrupted; to go on where it stopped: {PROG} {shlex.join(again)}", code=130)


def _stop(message: str, *, code: int) -> None:
    print(" ".join(message.split()), file=sys.stderr)
    sys.exit(code)


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
        RunFailed: a loss that is not finite.
    """
    runs = {
        config.runs_dir / config_lib.run_name(each): each
        for each in (
            config_lib.with_criterion(config, criterion)
            for criterion in (config.search.criterion, *config.compare)
        )
    }
    for folder, each in runs.items():
        run_folder.check(folder, each)

    job = make_job(config) if job is None else job
    spectrum.check(config, job)
    screen.show_plan(console, "Plan", plan.describe(config, job, list(runs)))
    for folder, each in runs.items():
        run_folder.prepare(folder, each, data_source=job.dataset.source)

    # Drawn once: compiling a draw for every shape of kernel takes longer on CPU than a round.
    variables = None if all(map(run_folder.is_complete, runs)) else init_variables(config, job)
    summaries = [
        run_folder.read_summary(folder)
        if run_folder.is_complete(folder)
        else run_one(each, job, variables, folder, console)
        for folder, each in runs.items()
    ]
    summary.show(list(runs), summaries, console)
    return summaries


def run_one(
    config: Config, job: Job, variables: Any, folder: Path, console: Console
) -> dict[str, Any]:
    """Searches and trains; writes everything to the run folder, and returns the summary."""
    console.rule(config_lib.run_name(config), align="left", style="dim")
    mask = find_mask(config, job, variables["params"], folder, console)
    rounds = run_folder.read_table(folder / "search.csv")
    if config.search.redraw_weights:
        variables = init_variables(config, job, redrawn=True)
    epochs = train(config, job, variables, mask, folder, console)

    results = summary.make(config, job, mask, rounds, epochs)
    summary.draw(folder, results, rounds, epochs)
    run_folder.write_json(folder / "summary.json", results)
    return results


# -- Search --------------------------------------------------------------------------------------


def find_mask(config: Config, job: Job, params: Any, folder: Path, console: Console) -> Mask:
    """Prunes round by round, on from the last completed round if there is one."""
    found = run_folder.load_mask(folder, params)
    options, criterion = config.search, CRITERIA[config.search.criterion]
    if found is not None:
        if criterion is not None and not (folder / "search.csv").exists():
            raise UserError(f"{folder / 'search.csv'} is missing. Restore it, or delete {folder}")
        return found
    if criterion is None:
        mask = masks.create(params)
        run_folder.save_mask(folder, mask)
        return mask

    keys = make_keys(config.seed)
    rows, mask = run_folder.load_round(folder, params)
    num_rounds = choices.num_rounds(options)
    with screen.track(
        console, "Pruning", done=len(rows), total=num_rounds, unit="round"
    ) as progress:

        def on_round(info: RoundInfo, mask: Mask) -> None:
            rows.append(run_folder.round_row(info, mask))
            run_folder.save_round(folder, rows, mask)
            progress.advance()
            progress.line(_describe_round(info, num_rounds))

        try:
            mask, _ = search.prune(
                keys.search,
                params,
                choices.make_score(job.network, options),
                schedule=schedules.exponential(options.density, rounds=num_rounds),
                mask=masks.create(params, exclude=options.exclude) if mask is None else mask,
                start_round=len(rows),
                batch=pruning_batch(config, job),
                scope=choices.parse_scope(options.scope),
                min_weights=options.min_weights,
                min_channels=options.min_channels,
                regrow=criterion.regrow,
                on_round=on_round,
            )
        except ValueError as error:
            raise UserError(f"the search cannot go on: {error}") from error
    if options.shuffle_mask:
        mask = masks.shuffle(keys.shuffle, mask)
    run_folder.save_mask(folder, mask)
    return mask


def pruning_batch(config: Config, job: Job) -> Any:
    """Returns the training images that the search looks at, if it does; the seed chooses them."""
    if not choices.needs_data(config.search):
        return None
    return data.pruning_batch(
        job.dataset, make_keys(config.seed).pruning_batch, config.search.samples_per_class
    )


# -- Training ------------------------------------------------------------------------------------


def train(
    config: Config, job: Job, variables: Any, mask: Mask, folder: Path, console: Console
) -> list[run_folder.Row]:
    """Trains what is left, on from the last checkpoint if there is one; returns a row an epoch."""
    num_epochs, steps = config.training.epochs, job.steps_per_epoch
    state = training.init_state(
        variables["params"], variables.get("batch_stats", {}), mask, job.optimizer
    )
    state = sharding.replicate(state, job.mesh)

    with checkpoints.open_manager(folder / "checkpoints") as manager:
        done = manager.latest_step() or 0
        if done:
            state = checkpoints.restore(manager, done, state)
        # Rows are written before their checkpoint: one without it is of an epoch to be done again.
        rows = run_folder.read_table(folder / "metrics.csv")[:done]
        if len(rows) < done:
            raise UserError(
                f"{folder / 'metrics.csv'} holds {len(rows)} of the {done} epochs that the "
                "checkpoints are past. Restore it, or delete the run folder and train again"
            )
        measure_spectrum = spectrum.follow(
            config, job, variables["params"], mask, folder, done=done
        )
        with screen.track(
            console, "Training", done=done * steps, total=num_epochs * steps, unit="step"
        ) as progress:
            for epoch in range(done + 1, num_epochs + 1):
                try:
                    state, row = train_epoch(config, job, state, epoch, progress.advance)
                except training.Diverged as error:
                    raise RunFailed(
                        f"the loss is not finite at step {error.step} (epoch {epoch}). Try a lower "
                        f"--learning-rate or a longer --warmup-epochs; {folder} keeps what was "
                        f"done until the end of epoch {epoch - 1}"
                    ) from error
                rows.append(row)
                run_folder.write_table(folder / "metrics.csv", rows)
                measure_spectrum(epoch, state.params)
                checkpoints.save(manager, epoch, state)
                progress.line(_describe_epoch(row, num_epochs))
    return rows


def train_epoch(
    config: Config,
    job: Job,
    state: training.TrainState,
    epoch: int,
    on_step: Callable[[], None],
) -> tuple[training.TrainState, run_folder.Row]:
    """Trains for one epoch and evaluates; returns the new state and a row of metrics.csv."""
    started = time.perf_counter()
    dataset, keys = job.dataset, make_keys(config.seed)
    place = functools.partial(sharding.shard_batch, mesh=job.mesh)
    state, on_train = training.train_epoch(
        keys.augmentation,
        state,
        map(place, dataset.train_batches(keys.order, epoch, config.training.batch_size)),
        train_step=job.train_step,
        on_step=on_step,
    )
    on_test = training.evaluate(
        state,
        map(place, dataset.test_batches(-(-EVAL_BATCH_SIZE // job.mesh.size) * job.mesh.size)),
        eval_step=job.eval_step,
    )
    step = int(state.step)
    schedule = training.learning_rate(config.training, job.steps_per_epoch)
    return state, {
        "epoch": epoch,
        "step": step,
        "learning_rate": float(schedule(step - 1)),
        "train_loss": on_train.loss,
        "train_accuracy": on_train.accuracy,
        "test_loss": on_test.loss,
        "test_accuracy": on_test.accuracy,
        "seconds": round(time.perf_counter() - started, 3),
    }


def _describe_round(info: RoundInfo, num_rounds: int) -> str:
    metrics = "".join(f"  {name} {value:.4g}" for name, value in info.metrics.items())
    return (
        f"round {info.round:>3}/{num_rounds}  density {info.density:.4f}  "
        f"kept {info.num_kept:,}{metrics}  {info.seconds:.1f} s"
    )


def _describe_epoch(row: run_folder.Row, num_epochs: int) -> str:
    return (
        f"epoch {row['epoch']:>3}/{num_epochs}  learning rate {row['learning_rate']:.4f}  "
        f"loss {row['train_loss']:.3f}  test loss {row['test_loss']:.3f}  "
        f"test accuracy {row['test_accuracy']:.2%}  {screen.duration(row['seconds'])}"
    )


if __name__ == "__main__":
    main()
