"""Groups runs: a section for each set-up, a line for each criterion, a cell for each density.

Runs that differ in data, network or training belong to different sections; those that differ in how
the mask was found, to different lines; in density, to different cells. A cell averages over seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.cifar import choices, factories
from experiments.cifar.config import SearchConfig, TrainingConfig
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
    """One criterion with its options, over the densities.

    Attributes:
        name: criterion, sanity checks, and the options in which lines of the criterion differ.
        criterion: the criterion's name.
        is_variant: whether it is a sanity check of another line.
        place: number among the lines of the same criterion, from 0.
        search: the options, with the density and seed of one of its runs.
        cells: from the highest density to the lowest.
    """

    name: str
    criterion: str
    is_variant: bool
    place: int
    search: SearchConfig
    cells: tuple[Cell, ...]

    def at(self, density: float) -> Cell | None:
        """Returns the cell of a density, if there is one."""
        return next((cell for cell in self.cells if cell.density == density), None)


class Section(NamedTuple):
    """One set-up.

    Attributes:
        number: from 1.
        facts: data, network and training, in words.
        lines: dense first, then by criterion.
    """

    number: int
    facts: Facts
    lines: tuple[Line, ...]

    @property
    def runs(self) -> list[Run]:
        """All runs, line by line."""
        return [run for line in self.lines for cell in line.cells for run in cell.runs]

    @property
    def pruned(self) -> list[Line]:
        """The lines that prune."""
        return [line for line in self.lines if line.criterion != DENSE]

    @property
    def dense(self) -> list[Line]:
        """The lines that do not prune."""
        return [line for line in self.lines if line.criterion == DENSE]

    def at(self, density: float) -> list[tuple[Line, Cell]]:
        """The lines that prune to a density, each with its cell."""
        return [
            (line, cell) for line in self.pruned for cell in line.cells if cell.density == density
        ]

    @property
    def note(self) -> str:
        """What a reader must know about the images; empty if there is nothing."""
        return "" if self.facts[NOTE] == NO_NOTE else self.facts[NOTE]

    @property
    def has_single_seeds(self) -> bool:
        """Whether there are cells with a single seed."""
        return any(len(cell.runs) == 1 for line in self.lines for cell in line.cells)

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
    return [
        Section(number, dict(facts), tuple(_lines(members)))
        for number, (facts, members) in enumerate(
            sorted(partition(runs, lambda run: tuple(_facts(run).items())).items()), start=1
        )
    ]


def differing(sections: Sequence[Section]) -> list[str]:
    """Returns the names of the facts in which sections differ."""
    names = sections[0].facts if sections else ()
    return [name for name in names if len({section.facts[name] for section in sections}) > 1]


def _facts(run: Run) -> Facts:
    config, summary = run.config, run.summary
    training = config.training
    return {
        "data set": config.dataset,
        "image size": str(config.image_size or "as it is"),
        "network": config.model,
        "weights": str(config.weights or "random"),
        **training_facts(training),
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


def _lines(runs: Sequence[Run]) -> list[Line]:
    order = [DENSE, *(name for name in choices.CRITERIA if name != DENSE)]
    by_options = partition(runs, lambda run: tuple(options(run).items()))
    by_criterion = partition(by_options, lambda key: dict(key)["criterion"])
    lines = []
    for criterion in sorted(by_criterion, key=order.index):
        keys = sorted(by_criterion[criterion], key=lambda key: (len(_checks(dict(key))), str(key)))
        alternatives = list(map(dict, keys))
        for place, (key, named) in enumerate(zip(keys, alternatives, strict=True)):
            line = Line(
                name=_name(named, alternatives),
                criterion=criterion,
                is_variant=bool(_checks(named)),
                place=place,
                search=by_options[key][0].config.search,
                cells=tuple(_cells(by_options[key])),
            )
            lines.append(line)
    return lines


def _cells(runs: Sequence[Run]) -> list[Cell]:
    by_density = partition(runs, lambda run: run.config.search.density)
    for twins in partition(runs, lambda run: (run.config.search.density, run.config.seed)).values():
        if len(twins) > 1:
            raise UserError(
                f"{twins[0].folder} and {twins[1].folder} hold the same configuration and seed. "
                "Report on one of them, or give one another --label"
            )
    return [
        Cell(density, tuple(sorted(members, key=lambda run: run.config.seed)))
        for density, members in sorted(by_density.items(), reverse=True)
    ]


def partition(values: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    """Groups values by a key, in the order in which the keys first appear."""
    groups: dict[Any, list[Any]] = {}
    for value in values:
        groups.setdefault(key(value), []).append(value)
    return groups


# -- Options of a line -----------------------------------------------------------------------------


def options(run: Run) -> dict[str, Any]:
    """Returns the options that decide, with density and seed, which mask is found."""
    search = run.config.search
    found: dict[str, Any] = {"criterion": search.criterion, "label": run.config.label}
    if search.criterion == DENSE:
        return found
    for name in (*VARIANTS, "scope", "min_weights", "min_channels"):
        found[name] = getattr(search, name)
    found["rounds"] = factories.num_rounds(search)
    if factories.needs_data(search):
        found["samples_per_class"] = search.samples_per_class
    if search.criterion == "ntk_sap":
        for name in ("reinit", "inputs", "estimator", "num_samples", "calibrate"):
            found[name] = getattr(search, name)
        if search.estimator == "finite_difference":
            found["sigma"] = search.sigma
        if search.inputs == "noise":
            found["noise_batch_size"] = search.noise_batch_size
    return found


def _checks(key: Mapping[str, Any]) -> list[str]:
    return [words for name, words in VARIANTS.items() if key.get(name)]


def _name(key: Mapping[str, Any], alternatives: Sequence[Mapping[str, Any]]) -> str:
    """Names a line: criterion, checks and scope always, other options where lines differ."""
    parts = [key["criterion"], *_checks(key)]
    if key.get("scope", "global") != "global":
        parts.append(f"scope {key['scope']}")
    for name, value in key.items():
        told = name in ("criterion", "scope", *VARIANTS)
        if not told and any(other.get(name) != value for other in alternatives):
            parts.append(f"{name.replace('_', ' ')} {value}".strip() if value != "" else "")
    return ", ".join(part for part in parts if part)
