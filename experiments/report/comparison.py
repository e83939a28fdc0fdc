"""Whether a published curve was measured in the set-up of a section, and if not, what differs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from experiments.cifar.config import Config
from experiments.cifar.presets import PRESETS
from experiments.report import published
from experiments.report.published import Point, Publication
from experiments.report.setups import NO_NOTE, NOTE, Section, training_facts

PAPER_PRESETS = "paper"
"""Presets whose names start so carry a paper's settings."""


class Comparison(NamedTuple):
    """A publication beside a section."""

    publication: Publication  # Paper and place.
    # By criterion. Where two papers ran one, that of the earlier paper.
    curves: dict[str, tuple[Point, ...]]
    differences: tuple[str, ...]  # Between the set-ups, a phrase each.

    @property
    def is_same(self) -> bool:
        """Whether the set-ups are the same."""
        return not self.differences


def compare(section: Section) -> list[Comparison]:
    """Finds published curves of the section's criteria, on its data set.

    Those of the section's own network, if there are any; otherwise those of other networks.
    """
    published_here = published.on(section.facts["data set"])
    same_model = [paper for paper in published_here if paper.model == section.facts["network"]]
    wanted = {line.criterion for line in section.pruned}
    shown: set[tuple[str, str]] = set()
    comparisons = []
    for paper in same_model or published_here:
        curves = {
            name: points
            for name, points in paper.curves.items()
            if name in wanted and (paper.model, name) not in shown
        }
        shown |= {(paper.model, name) for name in curves}
        if curves:
            comparisons.append(Comparison(paper, curves, tuple(_differences(section, paper))))
    return comparisons


def same_set_up(comparisons: Sequence[Comparison]) -> dict[str, tuple[Point, ...]]:
    """Returns the curves that were measured in the section's own set-up, by criterion."""
    return {name: points for it in comparisons if it.is_same for name, points in it.curves.items()}


def label(comparisons: Sequence[Comparison]) -> str:
    """Names published curves of another set-up, all of one network: its training, the papers."""
    first, *rest = comparisons
    papers = [first.publication.paper]
    papers += [f"{', '.join(more.curves)}: {more.publication.paper}" for more in rest]
    model, epochs = first.publication.model, first.publication.epochs
    training = f", {epochs} epochs" if epochs else ""
    return f"published, other set-up: {model}{training}; {'; '.join(papers)}"


def search_differences(section: Section) -> list[str]:
    """Says how our NTK-SAP differs from the paper's, one phrase for each line of the section."""
    preset = _preset(section.facts["data set"], section.facts["network"])
    phrases = []
    for line in section.pruned:
        if preset is not None and line.criterion == "ntk_sap" and not line.is_variant:
            different = [
                f"{name.replace('_', ' ')}: {value} (paper: {getattr(preset.search, name)})"
                for name, value in line.options.items()
                if name != "label" and value != getattr(preset.search, name)
            ]
            if different:
                phrases.append(f"{line.name}: {', '.join(different)}")
    return phrases


def _differences(section: Section, publication: Publication) -> Iterable[str]:
    facts = section.facts
    if facts["network"] != publication.model:
        yield f"network: {facts['network']} (paper: {publication.model})"
    theirs = {"weights": "random", "layers not pruned": "none", NOTE: NO_NOTE}
    preset = _preset(facts["data set"], publication.model)
    if preset is None:
        if facts["epochs"] != str(publication.epochs):
            yield f"epochs: {facts['epochs']} (paper: {publication.epochs or 'not stated'})"
        yield "the paper's training is not on record as a preset"
    else:
        size = str(preset.image_size or "as it is")
        theirs = {**training_facts(preset.training), "image size": size, **theirs}
    for name, value in theirs.items():
        if facts[name] != value:
            yield f"{name}: {facts[name]} (paper: {value})"


def _preset(dataset: str, model: str) -> Config | None:
    for name, (_, config) in PRESETS.items():
        if name.startswith(PAPER_PRESETS) and (config.dataset, config.model) == (dataset, model):
            return config
    return None
