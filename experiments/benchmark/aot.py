"""What our programs cost on a TPU, by its own compiler, on a machine without one.

The compiler (libtpu) works ahead of time for a topology that is only described. Nothing is run, so
there are no times: work, bytes, memory and what devices exchange are those of the true program.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping, Sequence

from experiments.benchmark import child
from experiments.benchmark.results import Table, number
from experiments.benchmark.tpu_programs import Cost, Program

GIGA, MEGA = 1e9, 1e6
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
    with child.start("the TPU compiler", serve, topology, program) as compiler:
        cost: Cost = child.ask(compiler)
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
    return Table(
        f"On a TPU {topology}, by its compiler",
        (
            "program",
            "work, GFLOP",
            "in F",
            "moved, GB",
            "memory, MB",
            "largest array, MB",
            "a Jacobian, MB",
            "exchanged, MB",
            "compile, s",
        ),
        [_row(name, cost) for name, cost in costs.items()],
        "Of each device. F is a forward pass over the images of one sample. Work and bytes inside "
        "of a loop are counted once, so several samples one after the other cost what one does "
        "here. Memory: without arguments and results. A Jacobian: what one of all outputs would "
        "take. Exchanged: results of collective operations, and how many there are.",
    )


def _row(name: str, cost: Cost) -> tuple[str, ...]:
    return (
        name,
        number(cost.flops / GIGA),
        f"{cost.flops / cost.forward_flops:.2f}",
        number(cost.bytes_accessed / GIGA),
        number(cost.temporary_bytes / MEGA),
        number(cost.largest_array_bytes / MEGA),
        number(cost.jacobian_bytes / MEGA),
        f"{number(cost.collective_bytes / MEGA)} ({cost.num_collectives})",
        f"{cost.compile_seconds:.0f}",
    )
