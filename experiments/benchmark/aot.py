"""What our programs cost on a TPU, by its own compiler, on a machine without one.

The compiler (libtpu) works ahead of time for a topology that is only described. Nothing is run, so
there are no times: work, bytes, memory and what devices exchange are those of the true program.
Here neither JAX nor libtpu is imported; `tpu_compiler` does that, in a process of its own.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence

from experiments.benchmark import child
from experiments.benchmark.results import Table, make_table, number
from experiments.benchmark.tpu_programs import PROGRAMS as PROGRAMS
from experiments.benchmark.tpu_programs import Cost, Program
from experiments.shell.errors import UserError


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
