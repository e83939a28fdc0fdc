"""Whether a published curve was measured in the set-up of a section, and if not, what differs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from experiments.cifar.config import Config, SearchConfig
from experiments.cifar.presets import PRESETS
from experiments.report import published
from experiments.report.published import Point, Publication
from experiments.report.setups import NO_NOTE, NOTE, Section, training_facts

PAPER_PRESETS = "paper"
"""What the names of the presets start with that carry a paper's settings."""

SEARCH_FIELDS = (
    "rounds",
    "reinit",
    "inputs",
    "estimator",
    "sigma",
    "num_samples",
    "noise_batch_size",
    "calibrate",
)


class Comparison(NamedTuple):
    """A publication beside a section.

    Attributes:
        publication: paper and place.
        curves: the curves to show. Where two papers ran a criterion, that of the earlier one.
        differences: one phrase for each difference of the set-ups; none: the same set-up.
    """

    publication: Publication
    curves: dict[str, tuple[Point, ...]]
    differences: tuple[str, ...]

    @property
    def is_same(self) -> bool:
        """Whether the set-ups are the same."""
        return not self.differences


def compare(section: Section) -> list[Comparison]:
    """Finds what is published on the section's data set of the criteria that were run.

    Of the section's own network, if there is anything; otherwise of others.
    """
    found = published.on(section.facts["data set"])
    same_model = [each for each in found if each.model == section.facts["network"]]
    wanted = {line.criterion for line in section.pruned}
    shown: set[tuple[str, str]] = set()
    comparisons = []
    for each in same_model or found:
        curves = {
            name: points
            for name, points in each.curves.items()
            if name in wanted and (each.model, name) not in shown
        }
        shown |= {(each.model, name) for name in curves}
        if curves:
            comparisons.append(Comparison(each, curves, tuple(_differences(section, each))))
    return comparisons


def label(comparisons: Sequence[Comparison]) -> str:
    """Names published curves of one network: same set-up or other, and whose they are."""
    first, *rest = comparisons
    papers = [first.publication.paper]
    papers += [f"{', '.join(each.curves)}: {each.publication.paper}" for each in rest]
    if first.is_same:
        return f"published, same set-up: {'; '.join(papers)}"
    model, epochs = first.publication.model, first.publication.epochs
    training = f", {epochs} epochs" if epochs else ""
    return f"published, other set-up: {model}{training}; {'; '.join(papers)}"


def search_differences(section: Section) -> list[str]:
    """Says in what our NTK-SAP differs from the paper's, a phrase a line of the section."""
    preset = _preset(section.facts["data set"], section.facts["network"])
    if preset is None:
        return []
    phrases = []
    for line in section.pruned:
        if line.criterion == "ntk_sap" and not line.is_variant:
            different = _options(line.search, preset.search)
            if different:
                phrases.append(f"{line.name}: {', '.join(different)}")
    return phrases


def _differences(section: Section, publication: Publication) -> Iterable[str]:
    facts = section.facts
    if facts["network"] != publication.model:
        yield f"network: {facts['network']} (paper: {publication.model})"
    preset = _preset(facts["data set"], publication.model)
    if preset is None:
        if facts["epochs"] != str(publication.epochs):
            yield f"epochs: {facts['epochs']} (paper: {publication.epochs or 'not stated'})"
        yield "the paper's training is not on record as a preset"
        theirs = {}
    else:
        theirs = {
            **training_facts(preset.training),
            "image size": str(preset.image_size or "as it is"),
        }
    plain = {"weights": "random", "layers not pruned": "none", NOTE: NO_NOTE}
    for name, value in {**theirs, **plain}.items():
        if facts[name] != value:
            yield f"{name}: {facts[name]} (paper: {value})"


def _preset(dataset: str, model: str) -> Config | None:
    for name, (_, config) in PRESETS.items():
        if name.startswith(PAPER_PRESETS) and (config.dataset, config.model) == (dataset, model):
            return config
    return None


def _options(search: SearchConfig, paper: SearchConfig) -> list[str]:
    names = [name for name in SEARCH_FIELDS if getattr(search, name) != getattr(paper, name)]
    if search.estimator != "finite_difference" and "sigma" in names:
        names.remove("sigma")
    return [
        f"{name.replace('_', ' ')}: {getattr(search, name)} (paper: {getattr(paper, name)})"
        for name in names
    ]
