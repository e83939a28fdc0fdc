"""What our programs cost on a TPU, by its own compiler, on a machine without one.

The compiler (libtpu) works ahead of time for a topology that is only described. Nothing is run, so
there are no times: work, bytes, memory and what devices exchange are those of the true program.
Here neither JAX nor libtpu is imported; `tpu_compiler` does that, in a process of its own.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from experiments.benchmark import child
from experiments.benchmark.results import Table, make_table, number
from experiments.benchmark.types import Estimator
from experiments.shell.errors import UserError

# -- Programs --------------------------------------------------------------------------------------


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


def check_topology(topology: str) -> None:
    """Raises a `UserError` unless it looks like the name of a TPU topology.

    Example:
        >>> check_topology("v5e:2x4")
    """
    if not re.fullmatch(r"v\d+\w*:\d+(x\d+){1,2}", topology):
        raise UserError(
            f"--aot: got {topology!r}, expected a kind of TPU and the shape of the slice, such as "
            "v5e:2x4"
        )


# -- The compiler ----------------------------------------------------------------------------------

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",  # The devices of this machine.
    "TPU_SKIP_MDS_QUERY": "1",  # There is no server to ask what kind of TPU this is.
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # No TPU that two processes could fight for.
    "TPU_MIN_LOG_LEVEL": "3",
}


def compiler_is_installed() -> bool:
    """Whether libtpu is."""
    return importlib.util.find_spec("libtpu") is not None


def ask(topology: str, program: Program) -> Cost:
    """Compiles a program in a process of its own.

    Args:
        topology: such as "v5e:2x4".
        program: what to compile.

    Raises:
        ChildLost: the compiler failed.
    """
    with child.start("the TPU compiler", serve, topology, program) as ask_compiler:
        cost: Cost = ask_compiler(None)
        return cost


def serve(topology: str, program: Program) -> tuple[Cost, child.Answer]:
    """What the compiler's process does: it answers once, and takes no orders."""
    kind, _, shape = topology.partition(":")
    name = accelerator_type(kind, [int(size) for size in shape.split("x")])
    os.environ.update(ENVIRONMENT, TPU_ACCELERATOR_TYPE=name)
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # Compilations are timed.
    from experiments.benchmark import tpu_compiler

    return tpu_compiler.cost(topology, program), lambda order: None


def accelerator_type(kind: str, sizes: Sequence[int]) -> str:
    """Returns what Google Cloud calls a slice.

    Example:
        >>> accelerator_type("v5e", [2, 4]), accelerator_type("v5p", [2, 2, 2])
        ('v5litepod-8', 'v5p-16')
    """
    chips = math.prod(sizes)
    # The other kinds are counted by cores, two to a chip.
    return {"v5e": f"v5litepod-{chips}", "v6e": f"v6e-{chips}"}.get(kind, f"{kind}-{2 * chips}")


def table(topology: str, costs: Mapping[str, Cost]) -> Table:
    """Makes the table, with a row for each program."""

    def giga(value: float) -> str:
        return number(value / 1e9)

    def mega(value: float) -> str:
        return number(value / 1e6)

    columns: dict[str, Callable[[tuple[str, Cost]], str]] = {
        "program": lambda item: item[0],
        "work, GFLOP": lambda item: giga(item[1].flops),
        "in F": lambda item: f"{item[1].flops / item[1].forward_flops:.2f}",
        "moved, GB": lambda item: giga(item[1].bytes_accessed),
        "memory, MB": lambda item: mega(item[1].temporary_bytes),
        "largest array, MB": lambda item: mega(item[1].largest_array_bytes),
        "a Jacobian, MB": lambda item: mega(item[1].jacobian_bytes),
        "exchanged, MB": lambda item: (
            f"{mega(item[1].collective_bytes)} ({item[1].num_collectives})"
        ),
        "compile, s": lambda item: f"{item[1].compile_seconds:.0f}",
    }
    return make_table(
        f"On a TPU {topology}, by its compiler",
        columns,
        costs.items(),
        "Of each device. F is a forward pass over the images of one sample. Work and bytes inside "
        "of a loop are counted once, so several samples one after the other cost what one does "
        "here. Memory: without arguments and results. A Jacobian: what one of all outputs would "
        "take. Exchanged: results of collective operations, and how many there are.",
    )
