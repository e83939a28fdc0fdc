"""Groups runs: a section for each set-up, a line for each criterion, a cell for each density.

Runs that differ in data, network or training belong to different sections; those that differ in how
the mask was found, to different lines; in density, to different cells. A cell averages over seeds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.cifar import choices
from experiments.cifar.config import TrainingConfig
from experiments.report.runs import Run
from experiments.shell.errors import UserError

DENSE = "dense"
VARIANTS = {
    "shuffle_mask": "mask shuffled",
    "redraw_weights": "weights redrawn",
    "invert_scores": "scores inverted",
}
"""The sanity checks, and what a line that makes one is called."""

NOTE, NO_NOTE = "note on the images", "none"
"""The fact that says what a reader must know about the images, and that there is nothing."""

Facts = dict[str, str]
"""What a set-up is, in words, by the name of the option."""


class Cell(NamedTuple):
    """One criterion at one density: runs that differ only in the seed, sorted by it."""

    density: float
    runs: tuple[Run, ...]


class Line(NamedTuple):
    """One criterion with its options, over the densities."""

    name: str  # Criterion, sanity checks, and the options in which lines of the criterion differ.
    options: dict[str, Any]  # Those that decide, with density and seed, which mask is found.
    place: int  # Number among the lines of the same criterion, from 0.
    cells: tuple[Cell, ...]  # From the highest density to the lowest.

    @property
    def criterion(self) -> str:
        """The criterion's name."""
        return str(self.options["criterion"])

    @property
    def is_variant(self) -> bool:
        """Whether it is a sanity check of another line."""
        return bool(_checks(self.options))


class Section(NamedTuple):
    """One set-up."""

    number: int  # From 1.
    facts: Facts  # Data, network and training, in words.
    lines: tuple[Line, ...]  # Dense first, then by criterion.

    @property
    def pruned(self) -> list[Line]:
        """The lines that prune."""
        return [line for line in self.lines if line.criterion != DENSE]

    @property
    def dense(self) -> list[Line]:
        """The lines that do not prune."""
        return [line for line in self.lines if line.criterion == DENSE]

    @property
    def cells(self) -> list[tuple[Line, Cell]]:
        """All cells, each with its line."""
        return [(line, cell) for line in self.lines for cell in line.cells]

    def at(self, density: float) -> list[tuple[Line, Cell]]:
        """The lines that prune to a density, each with its cell."""
        pruned = ((line, cell) for line, cell in self.cells if line.criterion != DENSE)
        return [(line, cell) for line, cell in pruned if cell.density == density]

    @property
    def note(self) -> str:
        """What a reader must know about the images; empty if there is nothing."""
        return "" if self.facts[NOTE] == NO_NOTE else self.facts[NOTE]

    @property
    def has_single_seeds(self) -> bool:
        """Whether there are cells with a single seed."""
        return any(len(cell.runs) == 1 for _, cell in self.cells)

    @property
    def densities(self) -> list[float]:
        """The densities that anything was pruned to, descending."""
        return sorted({cell.density for line in self.pruned for cell in line.cells}, reverse=True)

    @property
    def title(self) -> str:
        """Data set, network and length of training."""
        size = self.facts.get("image size")
        pixels = f" at {size} pixels" if size != "as it is" else ""
        pretrained = ", pretrained" if self.facts["weights"] != "random" else ""
        epochs = self.facts["epochs"]
        return (
            f"{self.facts['data set']}{pixels}, {self.facts['network']}{pretrained}, "
            f"{epochs} epoch{'s' * (epochs != '1')}"
        )


# -- Grouping ------------------------------------------------------------------------------------


def group(runs: Sequence[Run]) -> list[Section]:
    """Sorts runs into sections, lines and cells.

    Raises:
        UserError: two runs of the same configuration, seed included.
    """
    by_facts = partition(runs, lambda run: tuple(_facts(run).items()))
    return [
        Section(number, dict(facts), tuple(_lines(by_facts[facts])))
        for number, facts in enumerate(sorted(by_facts), start=1)
    ]


def differing(sections: Sequence[Section]) -> list[str]:
    """Returns the names of the facts in which sections differ."""
    names = sections[0].facts if sections else ()
    return [name for name in names if len({section.facts[name] for section in sections}) > 1]


def _facts(run: Run) -> Facts:
    config, summary = run.config, run.summary
    return {
        "data set": config.dataset,
        "image size": str(config.image_size or "as it is"),
        "network": config.model,
        "weights": str(config.weights or "random"),
        **training_facts(config.training),
        "layers not pruned": ", ".join(config.search.exclude) or "none",
        NOTE: summary.dataset_note or NO_NOTE,
        "source of the images": summary.dataset_source,
    }


def training_facts(training: TrainingConfig) -> Facts:
    """Says in words how a network is trained; equal words, equal training."""
    drops = [str(epoch) for epoch in training.drop_epochs if epoch < training.epochs]
    if training.lr_schedule == "cosine":
        schedule = "cosine to 0"
    else:
        schedule = f"x 0.1 after epoch {', '.join(drops)}" if drops else "constant"
    return {
        "epochs": str(training.epochs),
        "batch size": str(training.batch_size),
        "learning rate": f"{training.learning_rate:g}",
        "schedule": schedule,
        "warm-up epochs": f"{training.warmup_epochs:g}",
        "momentum": f"{training.momentum:g}{' (Nesterov)' if training.nesterov else ''}",
        "weight decay": f"{training.weight_decay:g}",
    }


def _lines(runs: Sequence[Run]) -> Iterator[Line]:
    order = [DENSE, *choices.CRITERIA]
    by_options = partition(runs, lambda run: str(_options(run)))
    groups = [(_options(members[0]), members) for members in by_options.values()]
    groups.sort(key=lambda pair: (len(_checks(pair[0])), str(pair[0])))
    by_criterion = partition(groups, lambda pair: pair[0]["criterion"])
    for criterion in sorted(by_criterion, key=order.index):
        alternatives = [options for options, _ in by_criterion[criterion]]
        for place, (options, members) in enumerate(by_criterion[criterion]):
            yield Line(_name(options, alternatives), options, place, tuple(_cells(members)))


def _cells(runs: Sequence[Run]) -> list[Cell]:
    by_density = partition(runs, lambda run: run.config.search.density)
    cells = []
    for density in sorted(by_density, reverse=True):
        members = sorted(by_density[density], key=lambda run: run.config.seed)
        for one, two in itertools.pairwise(members):
            if one.config.seed == two.config.seed:
                raise UserError(
                    f"{one.folder} and {two.folder} hold the same configuration and seed. Report "
                    "on one of them, or give one another --label"
                )
        cells.append(Cell(density, tuple(members)))
    return cells


def partition(values: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    """Groups values by a key, in the order in which the keys first appear."""
    groups: dict[Any, list[Any]] = {}
    for value in values:
        groups.setdefault(key(value), []).append(value)
    return groups


def density_text(density: float) -> str:
    """Returns a density with three significant digits."""
    return f"{density:.3g}"


# -- Options of a line -----------------------------------------------------------------------------


def _options(run: Run) -> dict[str, Any]:
    """Returns the options that decide, with density and seed, which mask is found."""
    search = run.config.search
    criterion = {"criterion": search.criterion, "label": run.config.label}
    if search.criterion == DENSE:
        return criterion
    names = [*VARIANTS, "balanced", "rescale", "scope", "min_weights", "min_channels", "rounds"]
    if search.needs_data:
        names.append("samples_per_class")
    if search.criterion == "ntk_sap":
        names += ["reinit", "fresh_share", "inputs", "estimator", "num_samples", "calibrate"]
        if search.estimator == "finite_difference":
            names.append("sigma")
        if search.inputs == "noise":
            names.append("noise_batch_size")
    values = {name: getattr(search, name) for name in names}
    return {**criterion, **values, "rounds": search.num_rounds}


def _checks(options: Mapping[str, Any]) -> list[str]:
    return [words for name, words in VARIANTS.items() if options.get(name)]


def _name(options: Mapping[str, Any], alternatives: Sequence[Mapping[str, Any]]) -> str:
    """Names a line: criterion, checks and scope always, other options where lines differ."""
    parts = [options["criterion"], *_checks(options)]
    if options.get("scope", "global") != "global":
        parts.append(f"scope {options['scope']}")
    for name, value in options.items():
        told = name in ("criterion", "scope", *VARIANTS) or value == ""
        if not told and any(other.get(name) != value for other in alternatives):
            parts.append(f"{name.replace('_', ' ')} {value}")
    return ", ".join(parts)
