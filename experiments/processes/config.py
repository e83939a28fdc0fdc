"""Several processes at one run: the flags that say where they are."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from experiments.shell.configuration import Count, configuration


@configuration
class ProcessConfig:
    """Several processes at one run, on one machine or on many."""

    distributed: bool = False
    """This is one of several processes at the run: those of a Slurm job, of a Cloud TPU slice or of
    a GKE job find each other, elsewhere the next three flags say where they are."""
    coordinator: Annotated[str, Field(pattern=r"^[!-~]{1,300}:\d+$")] | None = None
    """With --distributed: HOST:PORT of process 0 (None: from the environment)."""
    num_processes: Count | None = None
    """With --distributed: number of processes (None: from the environment)."""
    process_id: Annotated[int, Field(ge=0)] | None = None
    """With --distributed: number of this process, from 0 (None: from the environment)."""
    start_seconds: Count = 300
    """With --distributed: time until all processes must have started."""

    @field_validator("coordinator", "num_processes", "process_id")
    @classmethod
    def _with_others(cls, value: object, info: ValidationInfo) -> object:
        if value is not None and not info.data.get("distributed"):
            raise ValueError("expected --distributed with it")
        return value

    @field_validator("process_id")
    @classmethod
    def _one_of_them(cls, value: int | None, info: ValidationInfo) -> int | None:
        count = info.data.get("num_processes")
        if value is not None and count is not None and value >= count:
            raise ValueError(f"expected less than --num-processes ({count})")
        return value
