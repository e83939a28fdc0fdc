"""The README's Python runs as it is, and names only files and commands that exist."""

import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest

import ntksap_jax as nts
from experiments.cifar import config
from experiments.cifar.presets import PRESETS
from experiments.shell import command_line
from ntksap_jax import masks, structured

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_library_example_runs_and_prunes():
    # The last one, into PyTorch, is run by test_exchange_pytorch.py.
    first, second, third, of_nnx, fourth, fifth, _ = re.findall(
        r"```python\n(.*?)```", README, flags=re.DOTALL
    )
    assert len(first.strip().splitlines()) <= 12
    names: dict = {}
    exec(first.replace("batch_size=100", "batch_size=4"), names)
    mask, params = names["mask"], names["params"]
    assert masks.num_kept(mask) == round(0.05 * masks.num_prunable(mask))
    for m, p in zip(
        masks.leaf_paths(mask).values(),
        masks.leaf_paths(masks.map_prunable(lambda m, p: p, mask, params)).values(),
        strict=True,
    ):
        assert not np.any(np.asarray(p)[~np.asarray(m)])
    names["optimizer"].init(params)
    # The second example goes on from the first, with another criterion.
    exec(second, names)
    assert masks.num_kept(names["mask"]) == masks.num_kept(mask)
    assert masks.digest(names["mask"]) != masks.digest(mask)
    scores, _ = names["user_criterion"](None, params, mask, None)
    assert masks.leaf_paths(scores).keys() == masks.leaf_paths(mask).keys()
    # Whole filters, and several devices.
    assert len(third.strip().splitlines()) <= 10
    third = third.replace("rounds=20", "rounds=2")
    exec(third.replace("signed=True", "signed=True, num_samples=1, batch_size=4"), names)
    dense, kept = (structured.cost(names["channels"], keep) for keep in (None, names["keep"]))
    assert kept.flops <= 0.25 * dense.flops
    found = sum(leaf.size for leaf in masks.leaf_paths(names["fewer"]["params"]).values())
    assert found == kept.params < dense.params
    # A model of nnx.
    apart = dict(names)
    exec(of_nnx.replace("(network)", "(network, num_samples=1, batch_size=4)"), apart)
    density = masks.density(apart["mask"])
    kept = masks.map_prunable(
        lambda m, p: p, apart["mask"], nts.exchange.nnx_params(apart["model"])
    )
    nonzero = sum(int((leaf != 0).sum()) for leaf in masks.leaf_paths(kept).values())
    assert nonzero == masks.num_kept(apart["mask"]) and density < 0.3
    for block, axes in ((fourth, ("data",)), (fifth, ("data", "model"))):
        exec(block.replace("num_samples=8", "num_samples=8, batch_size=4"), names)
        assert names["over"].mesh.axis_names == axes
        assert names["over"].mesh.size == jax.device_count()


def test_pictures_and_files_exist():
    links = re.findall(r"\]\(((?!http)[^)]+)\)", README) + re.findall(r"`(ntksap_jax/\S+)`", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


@pytest.mark.parametrize(
    "line", re.findall(r"^python -m experiments.cifar (.*?) *(?:#|$)", README, re.M)
)
def test_commands_are_understood(line):
    if "--help" not in line:
        config.check(command_line.parse(shlex.split(line), PRESETS, prog="cifar"))
