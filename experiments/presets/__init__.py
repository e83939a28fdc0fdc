"""Configurations, one file a preset; its docstring is the record of what to expect."""

from experiments.config import Config
from experiments.presets import demo, paper, short

PRESETS: dict[str, tuple[str, Config]] = {
    module.__name__.rsplit(".", 1)[-1]: ((module.__doc__ or "").splitlines()[0], module.CONFIG)
    for module in (demo, short, paper)
}
"""Name to (one line for the help, configuration)."""
