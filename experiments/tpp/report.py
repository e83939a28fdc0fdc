"""Many runs side by side: `python -m experiments.tpp report DIR ...`.

Writes table.md and runs.csv, and for each network jsv.png (against the pruning ratio) and
speedup.png (accuracy against the speed-up that was measured).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console

from experiments.shell import console as screen
from experiments.shell.command_line import one_line_errors
from experiments.shell.errors import UserError
from experiments.storage import files, run_folder
from experiments.tpp import pictures

HEADER = (
    "method",
    "size left",
    "runs",
    "speed-up, FLOPs",
    "measured, batch 1",
    "batch 128",
    "accuracy pruned",
    "last epoch",
    "best epoch",
    "JSV pruned",
    "JSV at the end",
)


@dataclass(frozen=True)
class Options:
    """Tables and pictures of many runs."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DIR [DIR ...]")]
    """Folders that hold run folders, at any depth."""
    out: Path | None = None
    """Where the report goes (default: report in the first of the folders)."""


def main(arguments: Sequence[str], *, prog: str, console: Console) -> None:
    """Reads complete run folders and writes the report.

    Raises:
        UserError: no complete run, or flags that do not exist.
    """
    with one_line_errors():
        options = tyro.cli(Options, prog=prog, args=list(arguments), description=__doc__)
    summaries = find(options.runs)
    if not summaries:
        raise UserError(f"no complete run in {', '.join(map(str, options.runs)) or 'no folder'}")
    out = options.out or options.runs[0] / "report"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: cannot make the folder {out}: {error.strerror}") from error
    write(summaries, out, console)


def find(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Returns the summaries of all complete runs in and below some folders.

    Raises:
        UserError: a summary that this program did not write.
    """
    paths = sorted({path for folder in folders for path in folder.rglob("summary.json")})
    summaries = {path: run_folder.read_summary(path.parent) for path in paths}
    # Not the dense networks'.
    complete = {path: found for path, found in summaries.items() if "pruned_jsv" in found}
    for path, found in complete.items():
        if not _is_sound(found):
            raise UserError(f"{path} is no summary of a run. Move its folder away")
    return list(complete.values())


def _is_sound(found: dict[str, Any]) -> bool:
    try:
        flat = _flat(found)
        name_of(found)
        return (
            # It becomes part of a picture's name.
            re.fullmatch(r"[A-Za-z0-9_.+-]{1,200}", found["network"]) is not None
            and isinstance(found["size"], str)
            and all(isinstance(flat[name], int | float) for name in _NUMBERS)
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return False


def write(summaries: Sequence[dict[str, Any]], out: Path, console: Console) -> None:
    """Writes tables and pictures, and shows the tables."""
    run_folder.write_table(out / "runs.csv", [_flat(found) for found in summaries])
    markdown = []
    for network in dict.fromkeys(found["network"] for found in summaries):
        groups = group([found for found in summaries if found["network"] == network])
        rows = [_table_row(each) for each in groups]
        screen.show_table(console, network, HEADER, rows)
        markdown.append(_markdown(network, rows))
        by_ratio = [each for each in groups if each["size"].startswith("ratio")]
        if by_ratio:
            figure = pictures.jsv_by_ratio(by_ratio, network)
            run_folder.write_picture(out / f"{network}-jsv.png", figure)
        figure = pictures.accuracy_by_speedup(groups, network)
        run_folder.write_picture(out / f"{network}-speedup.png", figure)
    files.write_text(out / "table.md", "\n".join(markdown))
    console.print(f"{len(summaries)} runs; the report is in {out}", soft_wrap=True)


def group(summaries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups runs that differ in the seed only.

    Returns:
        For each group its `name` and `size`, `runs` (how many), and (mean, standard deviation of
        the population) of `ratio` and of what `_flat` holds.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for found in summaries:
        groups.setdefault((name_of(found), found["size"]), []).append(_flat(found))
    return [
        {
            "name": name,
            "size": "all" if name == "dense" else size,
            "runs": len(runs),
            **{
                key: (float(np.mean(values)), float(np.std(values)))
                for key in _NUMBERS
                if (values := [run[key] for run in runs])
            },
        }
        for (name, size), runs in sorted(groups.items())
    ]


_NUMBERS = (
    *("ratio", "pruned_accuracy", "last_accuracy", "best_accuracy", "pruned_jsv", "final_jsv"),
    *("speedup_flops", "speedup_1", "speedup_128", "parameters", "flops"),
)


def name_of(found: dict[str, Any]) -> str:
    """Returns what tells a line from the others: method, fine-tuning rate and label."""
    has_rate = found["method"] not in ("dense", "scratch", "ntk-sap", "snip", "synflow")
    rate = f"lr {found['finetune_lr']:g}" if has_rate else ""
    return " ".join(part for part in (found["method"], rate, found["label"]) if part)


def _flat(found: dict[str, Any]) -> dict[str, Any]:
    """A summary without what is nested in it."""
    plain = {key: value for key, value in found.items() if not isinstance(value, dict | list)}
    latency = {
        f"{name}_ms_{size}": times[1] * 1e3
        for size, by_name in found["latency_seconds"].items()
        for name, times in by_name.items()
    }
    return {
        **plain,
        "pruned_jsv": found["pruned_jsv"]["mean"],
        "final_jsv": found["final_jsv"]["mean"],
        **{f"speedup_{size}": ratio for size, ratio in found["speedup_measured"].items()},
        **latency,
    }


def _table_row(each: dict[str, Any]) -> tuple[str, ...]:
    return (
        each["name"],
        each["size"],
        str(each["runs"]),
        f"{each['speedup_flops'][0]:.2f}",
        f"{each['speedup_1'][0]:.2f}",
        f"{each['speedup_128'][0]:.2f}",
        *(_with_spread(each[f"{when}_accuracy"], 100, 2) for when in ("pruned", "last", "best")),
        *(_with_spread(each[f"{when}_jsv"], 1, 4) for when in ("pruned", "final")),
    )


def _with_spread(value: tuple[float, float], factor: float, digits: int) -> str:
    mean, spread = (factor * number for number in value)
    return f"{mean:.{digits}f} ± {spread:.{digits}f}"


def _markdown(network: str, rows: Sequence[Sequence[str]]) -> str:
    lines = [HEADER, ["---"] * len(HEADER), *rows]
    return "\n".join([f"## {network}", "", *(f"| {' | '.join(line)} |" for line in lines), ""])
