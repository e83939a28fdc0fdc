"""Compiles one program for a TPU that need not be there, and reads what it costs.

`experiments.benchmark.aot` runs this in a process whose environment is the one that libtpu needs on
a machine without a TPU.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

import ntksap_jax as nts
from experiments.benchmark.tpu_programs import Cost, Program
from ntksap_jax import criteria, masks, models, ntk
from ntksap_jax._precision import scoring_precision
from ntksap_jax.types import Network

INPUT_SHAPE = (32, 32, 3)
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute")
DTYPE_BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
"""Bytes of an entry; of the rest (predicates, bytes) 1."""


def cost(topology: str, program: Program) -> Cost:
    """Compiles a program and reads its cost.

    Args:
        topology: such as "v5e:2x4".
        program: what to compile.
    """
    devices = topologies.get_topology_desc(topology, "tpu").devices[: program.devices]
    mesh = Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
    model = models.cifar_resnet(program.depth, width=program.width)
    network = nts.linen(model, INPUT_SHAPE)
    function, arguments = traced(program, network, mesh)
    started = time.perf_counter()
    compiled = compile_for(NamedSharding(mesh, PartitionSpec()), jax.jit(function), arguments)
    seconds = time.perf_counter() - started
    text = compiled.as_text()
    exchanged = collectives(text)
    params = jax.eval_shape(network.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((program.batch_size, *INPUT_SHAPE), jnp.float32)
    outputs = jax.eval_shape(network.apply, params, images)
    once = jax.jit(network.apply).trace(params, images).lower(lowering_platforms=("tpu",))
    forward: Any = once.cost_analysis()  # For CPU, oneDNN's convolutions would not count.
    return Cost(
        **counts(compiled),
        forward_flops=forward["flops"],
        largest_array_bytes=max(map(num_bytes, re.findall(r"\b[a-z]+\d+\[[\d,]*\]", text))),
        jacobian_bytes=4 * outputs.size * sum(leaf.size for leaf in jax.tree.leaves(params)),
        num_collectives=len(exchanged),
        collective_bytes=sum(exchanged),
        compile_seconds=seconds,
    )


def compile_for(sharding: Sharding, function: Any, arguments: tuple[Any, ...]) -> Any:
    """Compiles a jitted function for the devices of a sharding, which all arguments have."""
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), arguments
    )
    return function.lower(*shapes).compile()


def counts(compiled: Any) -> dict[str, Any]:
    """Returns operations, bytes moved and bytes of memory: by the compiler's count, a loop once."""
    counted = compiled.cost_analysis()
    return {
        "flops": counted["flops"],
        "bytes_accessed": counted["bytes accessed"],
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
    }


def traced(
    program: Program, network: Network, mesh: Mesh
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Returns a program as a function, and the shapes of its arguments."""
    params = jax.eval_shape(network.init, jax.random.key(0))
    if program.estimator is None:
        images = jax.ShapeDtypeStruct((program.batch_size, *INPUT_SHAPE), jnp.float32)

        def forward(params: Any, images: jax.Array) -> Any:
            with scoring_precision():
                return network.apply(params, images)

        return forward, (params, images)
    over = NamedSharding(mesh, PartitionSpec("data")) if program.devices > 1 else None
    score = criteria.ntk_sap(
        network,
        estimator=getattr(ntk, program.estimator),
        num_samples=program.num_samples,
        vmap_samples=program.vmap_samples,
        batch_size=program.batch_size,
        shard_samples=over if program.sharded == "samples" else None,
        shard_inputs=over if program.sharded == "inputs" else None,
    )

    def scores(key: jax.Array, params: Any, mask: Any) -> Any:
        return score(jax.random.wrap_key_data(key), params, mask, None)

    key = jax.ShapeDtypeStruct((2,), jnp.uint32)
    return scores, (key, params, jax.eval_shape(masks.create, params))


def collectives(text: str) -> list[int]:
    """Returns the bytes of the result of every collective operation in a compiled program.

    Example:
        >>> collectives("%a = (f32[2,3]{1,0}, f32[]) all-reduce(%b, %c), channel_id=1")
        [28]
    """
    names = "|".join(COLLECTIVES)
    results = re.findall(rf"= (.*?) (?:{names})(?:-start)?\(", text)
    return [sum(map(num_bytes, re.findall(r"[a-z]+\d*\[[\d,]*\]", found))) for found in results]


def num_bytes(shape: str) -> int:
    """Returns the bytes of an array, from its shape as XLA writes it.

    Example:
        >>> num_bytes("f32[2,3]"), num_bytes("pred[]")
        (24, 1)
    """
    dtype, sizes = shape.rstrip("]").split("[")
    entries = int(np.prod([int(size) for size in sizes.split(",") if size], dtype=np.int64))
    return DTYPE_BYTES.get(dtype, 1) * entries
