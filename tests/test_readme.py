"""The README: one screen and a half, whose Python runs and whose commands exist."""

import importlib.util
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import ntksap_jax as nts
from experiments.cifar.presets import PRESETS
from experiments.shell import command_line
from ntksap_jax import masks, structured

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PRUNE, CRITERION, SMALLER, NNX = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def names():
    """What the first block leaves, on fewer inputs."""
    names: dict = {}
    exec(PRUNE.replace("(network)", "(network, num_samples=1, batch_size=4)"), names)
    return names


def test_it_is_short_and_uses_a_name_once():
    assert len(README.splitlines()) <= 200
    assigned = re.findall(r"^(\w+)(?:, (?!_\b)(\w+)| *, _)? = ", PRUNE + CRITERION, re.M)
    later = re.findall(r"^(\w+)(?:, (\w+))? = ", SMALLER + NNX, re.M)
    for pair in later:
        assert not {name for name in pair if name} & {n for pair in assigned for n in pair if n}


def test_a_model_is_pruned(names):
    mask, params = names["mask"], names["params"]
    assert masks.num_kept(mask) == round(0.05 * masks.num_prunable(mask))
    weights = masks.leaf_paths(params)
    for path, m in masks.leaf_paths(mask).items():
        assert not np.any(np.asarray(weights[path])[~np.asarray(m)])
    names["optimizer"].init(params)


def test_a_criterion_is_a_function(names):
    exec(CRITERION, names)
    assert masks.num_kept(names["small_first"]) == masks.num_kept(names["mask"])
    scores, _ = names["user_criterion"](None, names["params"], names["mask"], None)
    assert masks.leaf_paths(scores).keys() == masks.leaf_paths(names["mask"]).keys()


def test_filters_go(names):
    exec(SMALLER.replace("signed=True", "signed=True, num_samples=1, batch_size=4"), names)
    dense, kept = (
        structured.cost(structured.trace(names[model], (32, 32, 3))) for model in ("model", "small")
    )
    assert kept.flops <= 0.25 * dense.flops
    leaves = masks.leaf_paths(names["small_variables"]["params"]).values()
    assert sum(leaf.size for leaf in leaves) == kept.params < dense.params


def test_an_nnx_model_trains_under_its_mask(names):
    exec(NNX.replace("(8,))", "(8,)), num_samples=1, batch_size=4"), names)
    weights = masks.leaf_paths(nts.exchange.nnx_params(names["mlp"]))
    before = masks.leaf_paths(masks.apply(names["mlp_mask"], names["mlp_params"]))
    for path, m in masks.leaf_paths(names["mlp_mask"]).items():
        assert not np.any(np.asarray(weights[path])[~np.asarray(m)])
        assert np.any(np.asarray(weights[path]) != np.asarray(before[path]))


@pytest.mark.parametrize(
    "line", re.findall(r"^python -m (experiments\.\w+) (.*?) *#", README, re.M)
)
def test_commands_exist(line):
    module, arguments = line
    assert importlib.util.find_spec(f"{module}.__main__")
    if module == "experiments.cifar":
        command_line.parse(shlex.split(arguments), PRESETS, prog="cifar")
