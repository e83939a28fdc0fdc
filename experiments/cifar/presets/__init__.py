"""Configurations, one file a preset; its docstring is the record of what to expect."""

from experiments.cifar.config import Config
from experiments.cifar.presets import demo, paper_cifar10, paper_cifar100, paper_tiny, short

PRESETS: dict[str, tuple[str, Config]] = {
    module.__name__.rsplit(".", 1)[-1].replace("_", "-"): (
        (module.__doc__ or "").splitlines()[0],
        module.CONFIG,
    )
    for module in (demo, short, paper_cifar10, paper_cifar100, paper_tiny)
}
"""Name to (one line for the help, configuration)."""
