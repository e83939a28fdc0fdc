"""The first stage of a run: find the mask, round by round, on from where a former session ended."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jax.sharding import NamedSharding, PartitionSpec

import ntksap_jax as nts
from experiments import data
from experiments.cifar import factories, search_files
from experiments.cifar.choices import CRITERIA, parse_scope
from experiments.cifar.config import Config
from experiments.cifar.job import Job, make_keys
from experiments.processes import distributed
from experiments.shell import console as screen
from experiments.shell import errors
from experiments.shell.errors import Preempted, RunFailed, UserError
from experiments.storage import run_folder
from experiments.storage.run_folder import Row
from experiments.training import failures, tensorboard
from experiments.training.loop import Session
from ntksap_jax import masks, schedules
from ntksap_jax.types import Batch, Key, Mask, Metrics, Params, RoundInfo, ScoreFn, Scores


def find_mask(
    config: Config, job: Job, params: Any, folder: Path, session: Session
) -> tuple[list[Row], Mask]:
    """Prunes round by round, on from the last intact round if there is one.

    Returns:
        The rows of search.csv, none if nothing is to be searched for; and the mask.

    Raises:
        UserError: options that do not go together, or files that are damaged.
        RunFailed: scores that are not finite.
        Preempted: SIGTERM came; the last round is saved.
    """
    options, criterion = config.search, CRITERIA[config.search.criterion]
    with errors.at("the search cannot go on"):
        dense = masks.create(params, exclude=options.exclude if criterion is not None else ())
    read = functools.cache(lambda: _read_former(folder, params, session.warn))
    rows, is_there, is_complete = distributed.from_leader(
        lambda: (read()[0], read()[1] is not None, read()[2])
    )
    mask = distributed.arrays_from_leader(lambda: read()[1], like=dense) if is_there else dense
    if is_complete:
        return rows, mask
    if criterion is None:
        _save_mask(folder, [], dense)
        return [], dense

    keys, table, console = make_keys(config.seed), folder / "search.csv", session.console
    num_rounds = options.num_rounds
    with (
        screen.track(
            console, "Pruning", done=len(rows), total=num_rounds, unit="round"
        ) as progress,
        tensorboard.events(table, rows, by="round", wanted=session.tensorboard) as add_event,
    ):

        def on_round(info: RoundInfo, mask: Mask) -> None:
            row = search_files.round_row(info, mask)
            distributed.check_same(lambda: {f"mask after round {info.round}": row["sha256"]})
            rows.append(row)
            if distributed.is_leader():
                search_files.save_round(folder, rows, mask)
            add_event(row)
            progress.advance()
            for line in (*info.notes, _describe_round(info, num_rounds)):
                progress.line(line)
            if session.stop_requested():
                raise Preempted

        floors = {"min_weights": options.min_weights, "min_channels": options.min_channels}
        score, last_call = _remembering(_make_score(config, job))
        try:
            mask, _ = nts.prune(
                keys.search,
                params,
                score,
                schedule=schedules.exponential(options.density, rounds=num_rounds),
                mask=mask,
                start_round=len(rows),
                batch=pruning_batch(config, job),
                scope=parse_scope(options.scope, **floors),
                regrow=criterion.regrow,
                on_round=on_round,
            )
        except UserError:
            raise
        except (ValueError, FloatingPointError) as error:
            if not last_call:
                raise UserError(f"the search cannot go on: {error}") from error
            number = len(rows) + 1
            # The others wait for it: who fails first ends all.
            about = {"error": str(error), "round": number}
            place = distributed.from_leader(lambda: failures.save(folder, about, **last_call))
            raise RunFailed(_describe_failure(error, number, params, place)) from error
    if options.shuffle_mask:
        mask = masks.shuffle(keys.shuffle, mask)
    _save_mask(folder, rows, mask)
    return rows, mask


def _save_mask(folder: Path, rows: list[Row], mask: Mask) -> None:
    if distributed.is_leader():
        search_files.save_mask(folder, rows, mask)


def _make_score(config: Config, job: Job) -> ScoreFn:
    """Makes the criterion: the samples of NTK-SAP over all devices, the others on one a process."""
    if job.images.mesh.size == 1:
        return factories.make_score(job.network, config.search)
    samples = NamedSharding(job.images.mesh, PartitionSpec("data"))
    score = factories.make_score(job.network, config.search, samples=samples)
    return lambda *args: distributed.local(score(*args))


def _read_former(
    folder: Path, params: Params, say: Callable[[str], None]
) -> tuple[list[Row], Mask | None, bool]:
    """Returns the rows and the mask of a former session, if any; and whether that was all."""
    try:
        if complete := search_files.load_mask(folder, params):
            rows, mask = complete
            if rows:
                # What people read follows what is verified.
                run_folder.write_table(folder / "search.csv", rows)
            return rows, mask, True
    except UserError as error:
        # If the mask is damaged, the last rounds may still be there.
        if not (folder / "search").exists():
            raise
        say(f"the mask is made again from the last rounds of the search: {error}")
    return *search_files.load_round(folder, params, say=say), False


def pruning_batch(config: Config, job: Job) -> Any:
    """Returns the training images that the search looks at, if it does; the seed chooses them."""
    if not config.search.needs_data:
        return None
    return data.pruning_batch(
        job.images.dataset, make_keys(config.seed).pruning_batch, config.search.samples_per_class
    )


# -- Scores that are not finite ------------------------------------------------------------------


def _remembering(score: ScoreFn) -> tuple[ScoreFn, dict[str, Any]]:
    """Returns the criterion, and a dictionary that holds the arguments of its last call."""
    last_call: dict[str, Any] = {}

    def remembered(key: Key, params: Params, mask: Mask, batch: Batch) -> tuple[Scores, Metrics]:
        last_call.update(key=key, params=params, mask=mask)
        if batch is not None:
            last_call["batch"] = batch
        return score(key, params, mask, batch)

    return remembered, last_call


def _describe_failure(error: Exception, number: int, params: Params, place: str) -> str:
    if isinstance(error, FloatingPointError):
        what = f"--debug-nans found an {failures.operation(error)}, in round {number}"
    else:
        what = str(error).rstrip(".")
    return (
        f"the search cannot go on: {what} ({failures.describe_weights(params)}). Try --resume "
        "--debug-nans to find the operation, another --estimator, or --exclude for that layer; "
        f"weights, mask and key are in {place}"
    )


def _describe_round(info: RoundInfo, num_rounds: int) -> str:
    metrics = "".join(f"  {name} {value:.4g}" for name, value in info.metrics.items())
    return (
        f"round {info.round:>3}/{num_rounds}  density {info.density:.4f}  "
        f"kept {info.num_kept:,}{metrics}  {info.seconds:.1f} s"
    )
