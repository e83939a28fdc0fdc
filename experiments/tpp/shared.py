"""Folders of what several runs have in common: computed by the first that needs it, then read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.processes import distributed
from experiments.shell.configuration import to_dict
from experiments.shell.errors import Held, Preempted
from experiments.storage import files, locking, run_folder
from experiments.tpp.config import Config, network_name
from experiments.tpp.job import Job

ORDER = 2
"""Raised with the order of the images: a stage that another order began is not gone on with."""

WAIT_SECONDS = 2.0
"""Between two looks at whether a signal came, while another program is in the folder."""

WHAT_COUNTS = (
    *("dataset", "image_size", "augment", "model", "width", "seed"),
    *("batch_size", "momentum", "weight_decay", "pretrain"),
)
"""Fields of the configuration that the dense network depends on."""


def dense_identity(config: Config, job: Job) -> dict[str, Any]:
    """Returns all that the dense network of a configuration depends on."""
    values = to_dict(config)
    counts = {name: values[name] for name in WHAT_COUNTS}
    return {**counts, "data": job.images.dataset.source, "order": ORDER}


def dense_folder(config: Config, job: Job) -> Path:
    """Returns the folder of the dense network that a configuration asks for."""
    return path(config, "dense", dense_identity(config, job))


def path(config: Config, kind: str, identity: Mapping[str, Any]) -> Path:
    """Returns the folder `kind/network-seed-digest` of `--runs-dir` for what has this identity."""
    digest = files.digest(identity)[:10]
    return config.runs_dir / kind / f"{network_name(config)}-seed{config.seed}-{digest}"


@contextlib.contextmanager
def folder(
    config: Config, kind: str, identity: Mapping[str, Any], stop_requested: Callable[[], bool]
) -> Iterator[tuple[Path, str]]:
    """Makes the folder if need be, and waits until no other program is in it; in the leader.

    Yields:
        The folder, and what identifies its checkpoints.

    Raises:
        UserError: it cannot be made.
        Preempted: SIGTERM came while another program was in it.
    """
    place = path(config, kind, identity)
    with contextlib.ExitStack() as stack:

        def enter() -> bool:
            run_folder.make(place)
            try:
                stack.enter_context(locking.hold(place, seconds=WAIT_SECONDS))
            except Held:
                return False
            return True

        # All processes ask together, so that they agree on when to stop.
        while not distributed.from_leader(enter):
            if stop_requested():
                raise Preempted
        if distributed.is_leader():
            files.remove_leftovers(place)
            run_folder.write_json(place / "config.json", identity)
        yield place, distributed.from_leader(lambda: run_folder.identity(place))
