"""Runs of `experiments.tpp`, which prune whole filters: groups, a table, rows and pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.report import numbers, tables
from experiments.report.numbers import Spread
from experiments.report.runs import FilterRun, FilterSummary
from experiments.report.setups import partition
from experiments.shell.pictures import COLOURS, MARKERS
from experiments.tpp.methods import METHODS

QUANTITIES: dict[str, Callable[[FilterSummary], float | None]] = {
    "ratio": lambda summary: summary.ratio,
    "speedup_flops": lambda summary: summary.speedup_flops,
    "speedup_1": lambda summary: summary.speedup_measured["1"],
    "speedup_128": lambda summary: summary.speedup_measured["128"],
    "pruned_accuracy": lambda summary: 100 * summary.pruned_accuracy,
    "last_accuracy": lambda summary: 100 * summary.last_accuracy,
    "best_accuracy": lambda summary: 100 * summary.best_accuracy,
    "pruned_jsv": lambda summary: summary.pruned_jsv.mean,
    "final_jsv": lambda summary: summary.final_jsv.mean,
}
"""What is averaged over seeds; JSV stands for the mean singular value of the Jacobian."""

COLUMNS = {
    "speed-up, FLOPs": ("speedup_flops", 2),
    "measured, batch 1": ("speedup_1", 2),
    "batch 128": ("speedup_128", 2),
    "accuracy pruned": ("pruned_accuracy", 2),
    "last epoch": ("last_accuracy", 2),
    "best epoch": ("best_accuracy", 2),
    "JSV pruned": ("pruned_jsv", 4),
    "JSV at the end": ("final_jsv", 4),
}
"""Columns of the table: quantity and digits."""


class Group(NamedTuple):
    """Runs that differ only in the seed.

    Attributes:
        method: method, fine-tuning rate and label.
        size: what is left, such as `ratio0.8`; `all` of the dense network.
        values: by name of the quantity.
    """

    method: str
    size: str
    values: dict[str, Spread]


class Network(NamedTuple):
    """All runs on one network and data set."""

    name: str
    groups: list[Group]

    @property
    def by_ratio(self) -> list[Group]:
        """The groups that prune the same ratio of each layer."""
        return [group for group in self.groups if group.size.startswith("ratio")]


def group(runs: Sequence[FilterRun]) -> list[Network]:
    """Sorts runs by network, method and size."""
    by_network = partition(runs, lambda run: run.summary.network)
    return [Network(name, _groups(members)) for name, members in by_network.items()]


def _groups(runs: Sequence[FilterRun]) -> list[Group]:
    by_size = partition(runs, lambda run: (method_name(run.summary), run.summary.size))
    return [
        Group(method, "all" if method == "dense" else size, _values(members))
        for (method, size), members in sorted(by_size.items())
    ]


def _values(runs: Sequence[FilterRun]) -> dict[str, Spread]:
    return {
        name: numbers.spread(quantity(run.summary) for run in runs)
        for name, quantity in QUANTITIES.items()
    }


def method_name(summary: FilterSummary) -> str:
    """Returns the name of a line: method, fine-tuning rate where it matters, label."""
    method = METHODS.get(summary.method)
    has_rate = method is None or (method.prunes and not method.from_scratch)
    rate = f"lr {summary.finetune_lr:g}" if has_rate else ""
    return " ".join(part for part in (summary.method, rate, summary.label) if part)


def table(network: Network) -> tables.Table:
    """Makes the table of a network: a row for each method and size."""
    rows = [
        (
            tables.Entry(group.method),
            tables.Entry(group.size),
            *(
                tables.spread_entry(group.values[quantity], digits=digits)
                for quantity, digits in COLUMNS.values()
            ),
        )
        for group in network.groups
    ]
    return tables.Table(("method", "size left", *COLUMNS), rows)


def rows(runs: Sequence[FilterRun]) -> list[dict[str, Any]]:
    """Returns a row for each run, for CSV."""
    return [
        {
            **run.summary.model_dump(include={"network", "method", "size", "label", "seed"}),
            **run.summary.model_dump(include={"finetune_lr", "parameters", "flops"}),
            **{name: quantity(run.summary) for name, quantity in QUANTITIES.items()},
            **_milliseconds(run.summary),
            "folder": str(run.folder),
        }
        for run in runs
    ]


def _milliseconds(summary: FilterSummary) -> dict[str, float]:
    return {
        f"{name}_ms_{batch}": 1e3 * median
        for batch, by_name in summary.latency_seconds.items()
        for name, (_, median, _) in by_name.items()
    }


# -- Pictures ------------------------------------------------------------------------------------


def draw_jacobian(network: Network) -> Figure:
    """Draws the mean singular value of the Jacobian against the ratio of filters pruned."""
    labels = {
        "pruned_jsv": "mean JSV right after pruning",
        "final_jsv": "mean JSV after fine-tuning",
    }
    panels = [("ratio", quantity) for quantity in labels]
    figure = _draw_panels(network.name, network.by_ratio, panels)
    for axes, label in zip(figure.axes, labels.values(), strict=True):
        axes.set(xlabel="fraction of filters pruned", ylabel=label, yscale="log")
    return figure


def draw_speedup(network: Network) -> Figure:
    """Draws accuracy against speed-up: in FLOPs, and measured at batch sizes 1 and 128."""
    labels = {
        "speedup_flops": "speed-up in FLOPs",
        "speedup_1": "measured, batch 1",
        "speedup_128": "measured, batch 128",
    }
    panels = [(quantity, "best_accuracy") for quantity in labels]
    figure = _draw_panels(network.name, network.groups, panels)
    for axes, label in zip(figure.axes, labels.values(), strict=True):
        axes.set(xlabel=label)
    figure.axes[0].set(ylabel="test accuracy, best epoch (%)")
    return figure


def _draw_panels(title: str, groups: Sequence[Group], panels: Sequence[tuple[str, str]]) -> Figure:
    """Draws one quantity against another in each panel, with one legend below."""
    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    all_axes = np.atleast_1d(figure.subplots(1, len(panels)))
    for axes, (x, y) in zip(all_axes, panels, strict=True):
        _draw_lines(axes, groups, x, y)
    handles, names = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=9)
    return figure


def _draw_lines(axes: Axes, groups: Sequence[Group], x: str, y: str) -> None:
    """Draws a line with error bars (standard deviation over seeds) for each method."""
    by_method = partition(groups, lambda group: group.method)
    for index, (method, members) in enumerate(by_method.items()):
        own = sorted(members, key=lambda group: group.values[x].mean)
        axes.errorbar(
            [group.values[x].mean for group in own],
            [group.values[y].mean for group in own],
            yerr=[group.values[y].std or 0 for group in own],
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=5,
            linewidth=1.4,
            label=method,
        )
