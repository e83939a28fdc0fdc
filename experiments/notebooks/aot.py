"""What the TPU compiler says of the quickstart's programs; no TPU is needed.

    JAX_DEFAULT_MATMUL_PRECISION=default python -m experiments.notebooks.aot v5e:1x1

The cells tagged "tpu" of quickstart.py define its programs. They are run as they stand, on the CPU;
then the score of one round, the training step and the evaluation are compiled for a TPU that is
only described, and what each costs is printed as JSON. See `experiments.benchmark.aot`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.benchmark import aot

TOPOLOGY = "v5e:1x1"
"""One chip: what Colab's free TPU runtime has."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Compiles, and prints the costs by program; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not aot.compiler_is_installed():
        message = "the TPU compiler is not installed: pip install -e '.[tpu-aot]'"
        print(f"error: {message} (Python 3.12 or newer)", file=sys.stderr)
        return 2
    topology = arguments[0] if arguments else TOPOLOGY
    kind, _, shape = topology.partition(":")
    accelerator = aot.accelerator_type(kind, [int(size) for size in shape.split("x")])
    os.environ.update(aot.ENVIRONMENT, TPU_ACCELERATOR_TYPE=accelerator)
    print(json.dumps(costs(topology), indent=1))
    return 0


def tagged_cells(source: str, tag: str) -> str:
    r"""Returns the code cells of a notebook in percent format that have a tag, one after the other.

    Args:
        source: the text of the script.
        tag: the tag.

    Example:
        >>> tagged_cells('# %% tags=["a"]\nx = 1\n# %%\ny = 2\n', "a")
        'x = 1\n'
    """
    cells = re.split(r"(?m)^# %%", source)[1:]
    headings_and_code = (cell.split("\n", 1) for cell in cells)
    return "".join(code for heading, code in headings_and_code if f'"{tag}"' in heading)


def programs(notebook: dict[str, Any]) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Returns the quickstart's programs, each with the shapes of its arguments.

    Args:
        notebook: the names that its cells defined.
    """
    import jax
    import jax.numpy as jnp

    import ntksap_jax as nts
    from ntksap_jax import masks

    params, batch_stats = notebook["params"], notebook["batch_stats"]
    mask = masks.create(params)
    state = (
        masks.apply(mask, params),
        batch_stats,
        nts.constrain_to_mask(notebook["optimizer"], mask).init(params),
    )

    def score(key: jax.Array, params: Any, mask: Any) -> Any:
        return notebook["score"](jax.random.wrap_key_data(key), params, mask, None)

    def shaped(*arguments: Any) -> tuple[Any, ...]:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)

    images, labels = notebook["train_images"], notebook["train_labels"]
    test_images, test_labels = notebook["test_images"], notebook["test_labels"]
    size = notebook["BATCH"]
    return {
        "score": (jax.jit(score), shaped(jnp.zeros(2, jnp.uint32), params, mask)),
        "training step": (notebook["train_step"], shaped(state, images[:size], labels[:size])),
        "evaluation": (
            notebook["count_correct"],
            shaped(state, test_images[:500], test_labels[:500]),
        ),
    }


def costs(topology: str) -> dict[str, dict[str, float]]:
    """Compiles the quickstart's programs for one device of a topology.

    Args:
        topology: such as "v5e:1x1".

    Returns:
        By program: floating-point operations and bytes read and written, by the compiler's count
        (what a loop does, here over the samples of a score, counts once); bytes of memory without
        arguments and results; seconds that the compiler took.
    """
    import jax
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    source = Path(__file__).with_name("quickstart.py").read_text()
    notebook: dict[str, Any] = {"SMALL": bool(os.environ.get("NTKSAP_SMALL"))}
    with contextlib.redirect_stdout(sys.stderr):  # Standard output is for the costs.
        exec(compile(tagged_cells(source, "tpu"), "quickstart.py", "exec"), notebook)

    device = topologies.get_topology_desc(topology, "tpu").devices[0]
    there = SingleDeviceSharding(device)
    found = {}
    for name, (function, arguments) in programs(notebook).items():
        placed = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there), arguments
        )
        started = time.perf_counter()
        compiled = function.lower(*placed).compile()
        seconds = time.perf_counter() - started
        counted = compiled.cost_analysis()
        found[name] = {
            "flops": counted["flops"],
            "bytes_accessed": counted["bytes accessed"],
            "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
            "compile_seconds": seconds,
        }
    return found


if __name__ == "__main__":
    sys.exit(main())
