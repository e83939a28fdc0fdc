"""What the parent and its child processes exchange. Imports neither JAX nor PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

OURS = "ours"
TORCH_LAYOUTS = ("nchw", "channels_last")
"""How PyTorch may lay images out; the sides of a case are `OURS` and some of these."""

STEP = "step"
"""The name of what a case times; a side may time other things beside it."""
MATMUL = "matmul"
"""A matrix product, timed in the same rounds: what the machine can do at that moment."""
MATMUL_SIZE = 2048
"""Rows and columns: 17 GFLOP."""
CONVOLUTION_CALLS = 10
"""Of each sum in a step; one takes only milliseconds."""
DENSITY = 0.05
"""At the end of the search, of one-shot selection, and in training."""
SEARCH_ROUNDS = 20

Estimator = Literal["finite_difference", "jvp", "vjp"]
Steps = Mapping[str, Callable[[], Any]]
"""Functions without arguments that return when their work is done; `STEP` first."""


@dataclass(frozen=True)
class Case:
    """What is timed.

    Attributes:
        name: what the command line calls it.
        kind: which function of either side does it.
        model: name of the network.
        input_shape: of one image, (H, W, C); of a convolution, of its outputs too.
        batch_size: images, of noise or of training data; 0 where there are none.
        estimator: of the trace.
        num_samples: draws of weights, inputs and probe in a round of the search.
        num_rounds: rounds of the search.
        num_scores: how many scores selection ranks.
        masked: train under a mask.
        criterion: name of the criterion.
        layouts: PyTorch's sides; none where there is nothing to compare with.
        cold: compilation is part of the time: there is one round only, and none to warm up.
    """

    name: str
    kind: Literal["sample", "round", "search", "selection", "train", "criterion", "convolution"]
    model: str = "resnet20"
    input_shape: tuple[int, int, int] = (32, 32, 3)
    batch_size: int = 100
    estimator: Estimator = "finite_difference"
    num_samples: int = 1
    num_rounds: int = 1
    num_scores: int = 0
    masked: bool = False
    criterion: str = ""
    layouts: tuple[str, ...] = TORCH_LAYOUTS
    cold: bool = False

    @property
    def has_flops(self) -> bool:
        """Whether its floating-point operations are counted."""
        return self.kind not in ("selection", "criterion")

    @property
    def leaf_sizes(self) -> list[int]:
        """Selection ranks the scores of ten equal layers at once."""
        return [self.num_scores // 10] * 10


@dataclass(frozen=True)
class Prepared:
    """One side of a case, ready to be timed.

    Attributes:
        steps: what to time.
        versions: of what the times depend on.
        flops: nominal floating-point operations of a step, see `nominal_flops`; None where they are
            not counted, or where the other side counts them.
        compile_seconds: returns what this process has spent on compilation so far.
    """

    steps: Steps
    versions: dict[str, str]
    flops: float | None = None
    compile_seconds: Callable[[], float] = float


@dataclass(frozen=True)
class Ready:
    """What a child says of itself before its first step; `memory` in MiB, NaN if not on Linux."""

    versions: dict[str, str]
    flops: float | None
    compile_seconds: float
    memory: float


@dataclass(frozen=True)
class Round:
    """What a child measured when it took every step once.

    Attributes:
        seconds: by name of the step.
        compile_seconds: the part of them that was compilation.
        memory_peak: MiB at most since it started, or was warm; NaN if not on Linux.
    """

    seconds: dict[str, float]
    compile_seconds: dict[str, float]
    memory_peak: float


@dataclass(frozen=True)
class Side:
    """All that was measured of one side of a case."""

    ready: Ready
    warm_up: list[Round]
    rounds: list[Round]

    def seconds(self, step: str) -> list[float]:
        """Returns the times of a step, or of `STEP` if there is none of this name, by round."""
        return [measured.seconds.get(step, measured.seconds[STEP]) for measured in self.rounds]
