"""What the command line can choose from, by name: networks, criteria and scopes.

Facts only: what is made of a criterion's name and its options is in `factories`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn

from ntksap_jax import models, scopes

MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": models.mlp,
    "linear_mlp": models.linear_mlp,
    "resnet8": functools.partial(models.cifar_resnet, 8),
    "resnet20": models.resnet20,
    "resnet32": models.resnet32,
    "resnet56": models.resnet56,
    "vgg16_bn": models.vgg16_bn,
    "vgg19_bn": models.vgg19_bn,
    "resnet18": models.resnet18,
    "resnet34": models.resnet34,
    "resnet50": models.resnet50,
    "resnet18_small_stem": functools.partial(models.resnet18, stem="small"),
    "resnet34_small_stem": functools.partial(models.resnet34, stem="small"),
    "resnet50_small_stem": functools.partial(models.resnet50, stem="small"),
}
"""Name to a function of `num_classes` that makes the network."""


class Criterion(NamedTuple):
    """How a criterion is used."""

    needs_network: bool = True  # It evaluates the network, and does not only look at its weights.
    one_shot: bool = False  # Its source prunes in one round, from the dense network to the target.
    needs_data: bool = False  # It looks at training images.
    regrow: bool = False  # It may bring back what an earlier round pruned.


CRITERIA: dict[str, Criterion | None] = {
    "ntk_sap": Criterion(),
    "random": Criterion(needs_network=False, one_shot=True),
    "erk": Criterion(needs_network=False, one_shot=True),
    "magnitude": Criterion(needs_network=False, one_shot=True),
    "snip": Criterion(one_shot=True, needs_data=True),
    "iterative_snip": Criterion(needs_data=True),
    "force": Criterion(needs_data=True, regrow=True),
    "grasp": Criterion(one_shot=True, needs_data=True),
    "synflow": Criterion(),
    "synflow_l2": Criterion(),
    "px": Criterion(needs_data=True),
    "dense": None,
}
"""Name in `ntksap_jax.criteria`, where the formula is, to facts; `None` prunes nothing."""


def parse_scope(scope: str, **floors: int) -> scopes.Scope:
    """Turns the words of `--scope` into a scope: `2:4`, `block:4x4`, `channels`, `layer`, ...

    Args:
        scope: the words.
        **floors: `min_weights` and `min_channels`, of the global one.

    Raises:
        ValueError: none of these, or floors with another than the global one.
    """
    if scope == "global":
        return scopes.Global(**floors)
    if any(floors.values()):
        raise ValueError(f"expected with --scope global only, not with --scope {scope}")
    if scope in ("layer", "filter"):
        return scopes.Scope.of(scope)
    if scope == "channels":
        return scopes.Block(None, 1)
    try:
        if match := re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", scope):
            return scopes.NofM(int(match[1]), int(match[2]))
        if match := re.fullmatch(r"block:([0-9]{1,9})x([0-9]{1,9})", scope):
            return scopes.Block(int(match[1]), int(match[2]))
    except ValueError as error:
        raise ValueError(f"{scope}: {error}") from error
    raise ValueError(
        "expected global, layer, filter, channels, N:M such as 2:4, or block:RxC such as block:4x4"
    )
