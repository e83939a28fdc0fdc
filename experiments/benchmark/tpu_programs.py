"""What `--aot` has the TPU compiler compile, and what it tells about each program."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from experiments.benchmark.types import Estimator


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program to compile.

    Attributes:
        name: what the command line calls it.
        depth: of a ResNet for CIFAR.
        width: channels of its first stage.
        estimator: of the trace; None for a forward pass alone.
        batch_size: images in a sample.
        num_samples: draws of weights, inputs and probe.
        vmap_samples: how many of them are vectorised.
        devices: how many TPU cores it is for.
        sharded: what is spread over them.
    """

    name: str
    depth: int = 8
    width: int = 16
    estimator: Estimator | None = "jvp"
    batch_size: int = 100
    num_samples: int = 1
    vmap_samples: int = 1
    devices: int = 1
    sharded: Literal["samples", "inputs"] = "samples"


@dataclass(frozen=True)
class Cost:
    """What a compiled program does, on each device.

    Attributes:
        flops: floating-point operations, by the compiler's count. What a loop does is counted once.
        forward_flops: those of one forward pass over one sample's images, by XLA's count.
        bytes_accessed: bytes read and written, by the compiler's count.
        temporary_bytes: memory for everything but arguments and results.
        largest_array_bytes: of the largest array in the program.
        jacobian_bytes: of the dense Jacobian of all outputs, which must appear nowhere.
        num_collectives: operations in which devices exchange data.
        collective_bytes: bytes of their results.
        compile_seconds: how long the compiler took.
    """

    flops: float
    forward_flops: float
    bytes_accessed: float
    temporary_bytes: int
    largest_array_bytes: int
    jacobian_bytes: int
    num_collectives: int
    collective_bytes: int
    compile_seconds: float


def _all() -> Iterator[Program]:
    for estimator in (None, *get_args(Estimator)):
        yield Program(name=f"resnet20-{estimator or 'forward'}", depth=20, estimator=estimator)
    # How it grows, on a network that compiles sooner.
    base = Program(name="resnet8-jvp")
    yield base
    growth: dict[str, dict[str, Any]] = {
        "samples-5": {"num_samples": 5},
        "batch-200": {"batch_size": 200},
        "width-32": {"width": 32},
        "vmap-2": {"num_samples": 2, "vmap_samples": 2},
        "vmap-5": {"num_samples": 5, "vmap_samples": 5},
        "devices-8": {"num_samples": 8, "devices": 8},
        "devices-8-samples-40": {"num_samples": 40, "devices": 8},
        "devices-8-inputs": {"devices": 8, "batch_size": 800, "sharded": "inputs"},
    }
    for name, changes in growth.items():
        yield dataclasses.replace(base, name=f"{base.name}-{name}", **changes)


PROGRAMS = {program.name: program for program in _all()}
"""Name to program, in the order in which they are compiled."""
