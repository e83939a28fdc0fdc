"""The records that parent and worker processes speak. Imports neither JAX nor PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

OURS = "ours"
TORCH_LAYOUTS = ("nchw", "channels_last")
"""How PyTorch may lay images out; the sides of a case are `OURS` and some of these."""

STEP = "step"
"""The name of what a case times; a worker may time other things beside it."""
MATMUL = "matmul"
"""A matrix product, timed in the same rounds: what the machine can do at that moment."""
MATMUL_SIZE = 2048
"""Rows and columns: 17 GFLOP."""
CONVOLUTION_CALLS = 10
"""Of each sum in a step; one takes only milliseconds."""

Estimator = Literal["finite_difference", "jvp", "vjp"]


@dataclass(frozen=True, kw_only=True)
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
        warm_up: one call before the first that counts. Without, compilation is part of the time.
        max_repeats: for cases that take minutes.
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
    warm_up: bool = True
    max_repeats: int | None = None

    @property
    def has_flops(self) -> bool:
        """Whether its floating-point operations are counted."""
        return self.kind not in ("selection", "criterion")

    @property
    def leaf_sizes(self) -> list[int]:
        """Selection ranks the scores of ten equal layers at once."""
        return [self.num_scores // 10] * 10


class Prepared(NamedTuple):
    """A case, ready to be timed on one side.

    Attributes:
        steps: functions without arguments that return when their work is done; `STEP` first.
        details: called after a round: further numbers about the last call of `STEP`, by name.
        compile_seconds: spent on compilation while preparing.
    """

    steps: Mapping[str, Callable[[], Any]]
    details: Callable[[], dict[str, float]] = dict
    compile_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SideTimes:
    """What was measured of one side of a case.

    Attributes:
        seconds: by name of the step, one number a round.
        first_seconds: by name of the step, of the call that warmed it up, if there was one.
        compile_seconds: spent on compilation before that.
        details: by name, one number a round.
        memory_before: MiB that the process held before the first step: imports, model, data.
        memory_peak: MiB at most, compilation included.
        memory_peak_warm: MiB at most in the rounds that count, after compilation; None where the
            system does not tell.
    """

    seconds: dict[str, list[float]]
    first_seconds: dict[str, float] = field(default_factory=dict)
    compile_seconds: float = 0.0
    details: dict[str, list[float]] = field(default_factory=dict)
    memory_before: float = 0.0
    memory_peak: float = 0.0
    memory_peak_warm: float | None = None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was measured of a case.

    Attributes:
        case: what was timed.
        flops: nominal floating-point operations of one step, see `nominal_flops`; None where they
            are not counted.
        sides: by name of the side.
    """

    case: Case
    flops: float | None
    sides: dict[str, SideTimes]
