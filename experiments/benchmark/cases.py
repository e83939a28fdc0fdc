"""The cases: what is timed, under which name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from experiments.benchmark.types import Case
from experiments.cifar.choices import CRITERIA
from experiments.shell.configuration import unknown
from experiments.shell.errors import UserError


def _all() -> Iterator[Case]:
    for model, shape, batch_size in (
        ("resnet20", (32, 32, 3), 100),
        ("vgg16_bn", (32, 32, 3), 100),
        ("resnet50", (64, 64, 3), 16),
    ):
        for estimator in ("finite_difference", "jvp", "vjp"):
            yield Case(
                name=f"sample-{estimator}-{model}",
                kind="sample",
                model=model,
                input_shape=shape,
                batch_size=batch_size,
                estimator=estimator,
            )
    yield Case(name="round-resnet20", kind="round", num_samples=5)
    yield Case(
        name="search-resnet20",
        kind="search",
        num_samples=5,
        num_rounds=20,
        cold=True,
    )
    for millions in (1, 11, 25):
        yield Case(
            name=f"selection-{millions}M",
            kind="selection",
            batch_size=0,
            num_scores=millions * 10**6,
            layouts=("nchw",),  # There are no images.
        )
    for masked in (True, False):
        yield Case(
            name=f"train-resnet20-{'masked' if masked else 'dense'}",
            kind="train",
            batch_size=128,
            masked=masked,
        )
    for size, channels in ((32, 16), (16, 32), (8, 64), (32, 64), (8, 256), (2, 512)):
        yield Case(
            name=f"convolution-{channels}-of-{size}x{size}",
            kind="convolution",
            model="",
            input_shape=(size, size, channels),
        )
    for name, criterion in CRITERIA.items():
        if criterion is not None:
            yield Case(name=f"criterion-{name}", kind="criterion", criterion=name, layouts=())


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
    for name in names:
        if not any(candidate.startswith(name) for candidate in known):
            raise UserError(f"--case: {unknown('case', name, known)}")

    def is_chosen(candidate: str) -> bool:
        # A full name means that one alone: `criterion-synflow` is not also `criterion-synflow_l2`.
        return any(
            candidate == name or name not in known and candidate.startswith(name) for name in names
        )

    return {name: item for name, item in known.items() if not names or is_chosen(name)}
