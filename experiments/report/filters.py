"""Runs of `experiments.tpp`, which prune whole filters: groups, a table, rows and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from experiments.report import numbers, tables
from experiments.report.numbers import Spread
from experiments.report.runs import FilterRun, FilterSummary
from experiments.report.setups import partition
from experiments.shell.pictures import COLOURS, MARKERS
from experiments.tpp.methods import METHODS

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
"""Columns of the table: quantity and digits. JSV: mean singular value of the Jacobian."""

QUANTITIES = ("ratio", *(quantity for quantity, _ in COLUMNS.values()))
"""What is averaged over seeds."""


class Group(NamedTuple):
    """Runs that differ only in the seed."""

    method: str  # Method, fine-tuning rate and label.
    size: str  # What is left, such as `ratio0.8`; `all` of the dense network.
    values: dict[str, Spread]  # By name of the quantity.


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
    by_network = partition([run.summary for run in runs], lambda summary: summary.network)
    return [Network(name, _groups(members)) for name, members in by_network.items()]


def _groups(summaries: Sequence[FilterSummary]) -> list[Group]:
    groups = []
    by_size = partition(summaries, lambda summary: (_method_name(summary), summary.size))
    for (method, size), members in sorted(by_size.items()):
        values = {name: numbers.spread(_quantity(s, name) for s in members) for name in QUANTITIES}
        groups.append(Group(method, "all" if method == "dense" else size, values))
    return groups


def _quantity(summary: FilterSummary, name: str) -> float:
    value: float = getattr(summary, name)
    return 100 * value if name.endswith("accuracy") else value


def _method_name(summary: FilterSummary) -> str:
    """Returns the name of a line: method, fine-tuning rate where it matters, label."""
    method = METHODS.get(summary.method)
    has_rate = method is None or (method.prunes and not method.from_scratch)
    rate = f"lr {summary.finetune_lr:g}" if has_rate else ""
    return " ".join(part for part in (summary.method, rate, summary.label) if part)


def table(network: Network) -> tables.Table:
    """Makes the table of a network: a row for each method and size."""
    rows = []
    for method, size, values in network.groups:
        means = (tables.spread_entry(values[name], digits=n) for name, n in COLUMNS.values())
        rows.append((tables.Entry(method), tables.Entry(size), *means))
    return tables.Table(("method", "size left", *COLUMNS), rows)


def rows(runs: Sequence[FilterRun]) -> list[dict[str, Any]]:
    """Returns a row for each run, for CSV."""
    names = {"network", "method", "size", "label", "seed", "finetune_lr", "parameters", "flops"}
    return [
        {
            **run.summary.model_dump(include=names),
            **{name: _quantity(run.summary, name) for name in QUANTITIES},
            **{
                f"{name}_ms_{batch}": 1e3 * median
                for batch, by_name in run.summary.latency_seconds.items()
                for name, (_, median, _) in by_name.items()
            },
            "folder": str(run.folder),
        }
        for run in runs
    ]


# -- Pictures ------------------------------------------------------------------------------------


def draw_jacobian(network: Network) -> Figure:
    """Draws the mean singular value of the Jacobian against the ratio of filters pruned."""
    panels = [("ratio", "pruned_jsv"), ("ratio", "final_jsv")]
    figure = _draw_panels(network.name, network.by_ratio, panels)
    figure.axes[0].set(ylabel="mean JSV right after pruning")
    figure.axes[1].set(ylabel="mean JSV after fine-tuning")
    for axes in figure.axes:
        axes.set(xlabel="fraction of filters pruned", yscale="log")
    return figure


def draw_speedup(network: Network) -> Figure:
    """Draws accuracy against speed-up: in FLOPs, and measured at batch sizes 1 and 128."""
    quantities = ("speedup_flops", "speedup_1", "speedup_128")
    panels = [(quantity, "best_accuracy") for quantity in quantities]
    figure = _draw_panels(network.name, network.groups, panels)
    figure.axes[0].set(xlabel="speed-up in FLOPs", ylabel="test accuracy, best epoch (%)")
    figure.axes[1].set(xlabel="measured, batch 1")
    figure.axes[2].set(xlabel="measured, batch 128")
    return figure


def _draw_panels(title: str, groups: Sequence[Group], panels: Sequence[tuple[str, str]]) -> Figure:
    """Draws one quantity against another in each panel, a line with error bars for each method."""
    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    by_method = partition(groups, lambda group: group.method)
    for axes, (x, y) in zip(figure.subplots(1, len(panels)), panels, strict=True):
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
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=9)
    return figure
