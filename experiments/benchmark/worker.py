"""A child process of the benchmark: prepares one side of one case, then times it when told to.

    python -m experiments.benchmark.worker SIDE CORES CASE-AS-JSON

It answers with lines of JSON on standard output: one when it is ready, and one to each line on
standard input. `time` times every step once; `warm` does so too, and lets the peak of the memory
start again. It ends when standard input does.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from experiments.benchmark import memory
from experiments.benchmark.types import MATMUL, OURS, Case


def main(arguments: list[str]) -> None:
    """Serves until standard input ends."""
    side, cores, case = arguments[0], int(arguments[1]), Case(**json.loads(arguments[2]))
    # What libraries print on standard output must not get between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    flops: float | None = None
    if side == OURS:
        from experiments.benchmark import nominal_flops, ours

        prepared, matmul, versions = ours.prepare(case), ours.matmul, ours.versions()
        flops = nominal_flops.count(case)
    else:  # Without JAX, which would count as memory of PyTorch's.
        from experiments.benchmark import torch_side

        prepared = torch_side.prepare(case, layout=side, cores=cores)
        matmul, versions = torch_side.matmul, torch_side.versions()

    steps = dict(prepared.steps)
    if case.has_flops:
        steps[MATMUL] = matmul()
        steps[MATMUL]()
    memory.give_back()
    answer(
        {
            "flops": flops,
            "versions": versions,
            "compile_seconds": prepared.compile_seconds,
            "memory_before": memory.resident(),
        }
    )

    most, restarted = 0.0, False
    for order in sys.stdin:
        seconds = {}
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            seconds[name] = time.perf_counter() - started
        peak = memory.peak()
        most = max(most, peak)
        answer(
            {
                "seconds": seconds,
                "details": prepared.details(),
                "memory_peak": most,
                "memory_peak_warm": peak if restarted else None,
            }
        )
        if order.strip() == "warm":
            restarted = memory.restart_peak()


if __name__ == "__main__":
    main(sys.argv[1:])
