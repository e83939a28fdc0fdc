"""What the TPU compiler says of the quickstart's programs; no TPU is needed.

    JAX_DEFAULT_MATMUL_PRECISION=default python -m experiments.notebooks.aot

The cells tagged "tpu" of quickstart.py define its programs. They are run as they stand, on the CPU;
then the score of one round, the training step and the evaluation are compiled for one chip that is
only described, and what each costs is printed as JSON. See `experiments.benchmark.aot`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from experiments.benchmark import aot


def tagged_cells(source: str, tag: str) -> str:
    r"""Returns the code cells of a notebook in percent format that have a tag, one after the other.

    Example:
        >>> tagged_cells('# %% tags=["a"]\nx = 1\n# %%\ny = 2\n', "a")
        'x = 1\n'
    """
    cells = re.split(r"(?m)^# %%", source)[1:]
    headings_and_code = (cell.split("\n", 1) for cell in cells)
    return "".join(code for heading, code in headings_and_code if f'"{tag}"' in heading)


def costs() -> dict[str, dict[str, float]]:
    """Compiles the quickstart's programs for one TPU v5e, as Colab has it.

    Returns:
        By program: floating-point operations and bytes read and written, by the compiler's count
        (what a loop does, here over the samples of a score, counts once); bytes of memory without
        arguments and results.
    """
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    from experiments.benchmark import tpu_compiler
    from experiments.notebooks import SMALL
    from ntksap_jax import constrain_to_mask, masks

    source = Path(__file__).with_name("quickstart.py").read_text()
    cells: dict[str, Any] = {"SMALL": SMALL}
    with contextlib.redirect_stdout(sys.stderr):  # Standard output is for the costs.
        exec(compile(tagged_cells(source, "tpu"), "quickstart.py", "exec"), cells)

    params, mask = cells["params"], masks.create(cells["params"])
    optimizer_state = constrain_to_mask(cells["optimizer"], mask).init(params)
    state = (params, cells["batch_stats"], optimizer_state)

    def score(key: jax.Array, params: Any, mask: Any) -> Any:
        return cells["score"](jax.random.wrap_key_data(key), params, mask, None)

    batch = (cells["train_images"][: cells["BATCH"]], cells["train_labels"][: cells["BATCH"]])
    test = (cells["test_images"][:500], cells["test_labels"][:500])
    programs: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "score": (jax.jit(score), (jnp.zeros(2, jnp.uint32), params, mask)),
        "training step": (cells["train_step"], (state, *batch)),
        "evaluation": (cells["count_correct"], (state, *test)),
    }
    chip = SingleDeviceSharding(topologies.get_topology_desc("v5e:1x1", "tpu").devices[0])
    return {
        name: tpu_compiler.counts(tpu_compiler.compile_for(chip, *program))
        for name, program in programs.items()
    }


if __name__ == "__main__":
    if not aot.compiler_is_installed():
        sys.exit("error: the TPU compiler is not installed: pip install -e '.[tpu-aot]'")
    os.environ.update(aot.ENVIRONMENT, TPU_ACCELERATOR_TYPE=aot.accelerator_type("v5e", [1]))
    print(json.dumps(costs(), indent=1))
