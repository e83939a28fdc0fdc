"""The main job: prune a network before training, and train what is left, on real images.

    python -m experiments.cifar demo                      handwritten digits, a few minutes
    python -m experiments.cifar short                     CIFAR-10, a few epochs
    python -m experiments.cifar paper-cifar10             the paper's set-up, 160 epochs
    python -m experiments.cifar demo --help               every option

It reads from top to bottom: plan, data and network, search, training, summary. Exit codes: see
`experiments.shell.exits`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.cifar import config as config_lib
from experiments.cifar import plan, search_files, search_stage, summary, training_stage
from experiments.cifar.config import Config
from experiments.cifar.job import Job, init_variables, make_job
from experiments.cifar.presets import PRESETS
from experiments.processes import distributed
from experiments.storage import run_folder
from experiments.training import loop
from experiments.training import program as common
from experiments.training.loop import Session
from ntksap_jax import masks

PROG = "python -m experiments.cifar"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program; mistakes and interruptions end it with one line and a non-zero code."""
    words = sys.argv[1:] if arguments is None else arguments
    common.main(words, prog=PROG, presets=PRESETS, run=run)


def run(config: Config, console: Console) -> list[dict[str, Any]]:
    """Carries out the configured run and those it is compared with: see `common.carry_out`."""
    criteria = dict.fromkeys((config.search.criterion, *config.compare))
    configs = [config_lib.with_criterion(config, criterion) for criterion in criteria]
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
    """Searches and trains; writes everything to the run folder, and returns the summary."""
    variables = init_variables(config, job)
    rounds, mask = search_stage.find_mask(config, job, variables["params"], folder, session)
    if config.search.redraw_weights:
        variables = init_variables(config, job, redrawn=True)
    if config.search.rescale:
        variables = {**variables, "params": masks.rescale(variables["params"], mask)}
    stage, state = training_stage.make(config, job, variables, mask, folder)
    _, epochs = loop.train(stage, state, job.images, session)

    def finish() -> dict[str, Any]:
        results = summary.make(config, job, mask, rounds, epochs)
        summary.draw(folder, results, rounds, epochs)
        run_folder.write_json(folder / "summary.json", results)
        search_files.drop_rounds(folder)
        return results

    return distributed.from_leader(finish)
