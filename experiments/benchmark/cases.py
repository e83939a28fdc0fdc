"""The cases: what is timed, under which name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar, get_args

from experiments.benchmark.types import Case, Estimator
from experiments.cifar.choices import CRITERIA
from experiments.shell.configuration import unknown
from experiments.shell.errors import UserError


def _all() -> Iterator[Case]:
    for model, shape, batch_size in (
        ("resnet20", (32, 32, 3), 100),
        ("vgg16_bn", (32, 32, 3), 100),
        ("resnet50", (64, 64, 3), 16),
    ):
        for estimator in get_args(Estimator):
            name = f"sample-{estimator}-{model}"
            yield Case(name, "sample", model, shape, batch_size, estimator=estimator)
    yield Case("round-resnet20", "round", num_samples=5)
    yield Case("search-resnet20", "search", num_samples=5, num_rounds=20, cold=True)
    for millions in (1, 11, 25):
        name, number = f"selection-{millions}M", millions * 10**6
        # There are no images, and so there is one layout.
        yield Case(name, "selection", batch_size=0, num_scores=number, layouts=("nchw",))
    yield Case("train-resnet20-masked", "train", batch_size=128, masked=True)
    yield Case("train-resnet20-dense", "train", batch_size=128)
    for size, channels in ((32, 16), (16, 32), (8, 64), (32, 64), (8, 256), (2, 512)):
        name = f"convolution-{channels}-of-{size}x{size}"
        yield Case(name, "convolution", "", (size, size, channels))
    for name, criterion in CRITERIA.items():
        if criterion is not None:
            yield Case(f"criterion-{name}", "criterion", criterion=name, layouts=())


T = TypeVar("T")

CASES = {case.name: case for case in _all()}
"""Name to case, in the order in which they are run."""


def choose(known: Mapping[str, T], names: Sequence[str]) -> dict[str, T]:
    """Returns those of these names, or whose names begin so; all of them without any name.

    Raises:
        UserError: a word that no name begins with.

    Example:
        >>> list(choose(CASES, ["selection-1", "train"]))
        ['selection-1M', 'selection-11M', 'train-resnet20-masked', 'train-resnet20-dense']
    """
    chosen: set[str] = set()
    for name in names:
        # A full name means that one alone: `criterion-synflow` is not also `criterion-synflow_l2`.
        found = {name} & known.keys() or {each for each in known if each.startswith(name)}
        if not found:
            raise UserError(f"--case: {unknown('case', name, known)}")
        chosen |= found
    return {name: item for name, item in known.items() if not names or name in chosen}
