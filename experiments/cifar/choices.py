"""What the command line can choose from, by name: networks, criteria and scopes."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import flax.linen as nn
from jax.sharding import NamedSharding

from experiments.shell.errors import UserError
from ntksap_jax import criteria, models, ntk, scopes
from ntksap_jax.types import Network, ScoreFn

if TYPE_CHECKING:
    from experiments.cifar.config import SearchConfig

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


def ntk_sap(
    network: Network, search: SearchConfig, samples: NamedSharding | None = None
) -> ScoreFn:
    """Makes the NTK-SAP criterion that the configuration describes, its samples over `samples`."""
    estimators: dict[str, Any] = {
        "jvp": ntk.jvp,
        "vjp": ntk.vjp,
        "finite_difference": functools.partial(ntk.finite_difference, sigma=search.sigma),
    }
    return criteria.ntk_sap(
        network,
        estimator=estimators[search.estimator],
        num_samples=search.num_samples,
        vmap_samples=search.vmap_samples,
        batch_size=search.noise_batch_size,
        calibrate=search.calibrate,
        reinit=search.reinit,
        inputs=search.inputs,
        shard_samples=samples,
    )


class Criterion(NamedTuple):
    """How a criterion is used.

    Attributes:
        make: `make(network, search) -> score`.
        one_shot: its source prunes in one round, from the dense network to the target.
        needs_data: it looks at training images.
        regrow: it may bring back what an earlier round pruned.
    """

    make: Callable[[Network, SearchConfig], ScoreFn]
    one_shot: bool = False
    needs_data: bool = False
    regrow: bool = False


def _on_data(criterion: Callable[..., ScoreFn], **facts: bool) -> Criterion:
    def make(network: Network, search: SearchConfig) -> ScoreFn:
        return criterion(network, micro_batch_size=search.micro_batch_size)

    return Criterion(make, needs_data=True, **facts)


CRITERIA: dict[str, Criterion | None] = {
    "ntk_sap": Criterion(ntk_sap),
    "random": Criterion(lambda network, search: criteria.random(), one_shot=True),
    "erk": Criterion(lambda network, search: criteria.erk(), one_shot=True),
    "magnitude": Criterion(lambda network, search: criteria.magnitude(), one_shot=True),
    "snip": _on_data(criteria.snip, one_shot=True),
    "iterative_snip": _on_data(criteria.iterative_snip),
    "force": _on_data(criteria.force, regrow=True),
    "grasp": _on_data(criteria.grasp, one_shot=True),
    "synflow": Criterion(lambda network, search: criteria.synflow(network)),
    "synflow_l2": Criterion(lambda network, search: criteria.synflow_l2(network)),
    "px": _on_data(criteria.px),
    "dense": None,
}
"""Name to criterion; `None` prunes nothing."""


def needs_data(search: SearchConfig) -> bool:
    """Says whether the search looks at training images."""
    criterion = CRITERIA[search.criterion]
    data_for_ntk_sap = search.criterion == "ntk_sap" and search.inputs == "data"
    return criterion is not None and (criterion.needs_data or data_for_ntk_sap)


def num_rounds(search: SearchConfig) -> int:
    """Returns the number of rounds that the search takes: one for one-shot criteria."""
    criterion = CRITERIA[search.criterion]
    return 1 if criterion is not None and criterion.one_shot else search.rounds


def make_score(
    network: Network, search: SearchConfig, *, samples: NamedSharding | None = None
) -> ScoreFn:
    """Makes the criterion that the configuration describes, which is not `dense`.

    Args:
        network: what to prune.
        search: its criterion, and the options of that.
        samples: the devices that the samples of NTK-SAP are spread over; by default one. The other
            criteria take one in any case.
    """
    # Density, rounds and what happens to the mask afterwards are not the criterion's affair.
    search = dataclasses.replace(
        search, density=1.0, rounds=1, shuffle_mask=False, redraw_weights=False
    )
    return _make_score(network, search, samples)


@functools.lru_cache(maxsize=32)
def _make_score(network: Network, search: SearchConfig, samples: NamedSharding | None) -> ScoreFn:
    """Kept from one run to the next, with what was compiled for it."""
    criterion = CRITERIA[search.criterion]
    assert criterion is not None
    make = criterion.make
    score = make(network, search) if make is not ntk_sap else make(network, search, samples)
    return criteria.inverted(score) if search.invert_scores else score


def parse_scope(scope: str) -> scopes.Scope:
    """Turns the words of `--scope` into a scope: `2:4`, `block:4x4`, `channels`, `layer`, ...

    Raises:
        UserError: none of these.
    """
    if scope in ("global", "layer", "filter"):
        return cast(scopes.Scope, scope)
    if scope == "channels":
        return scopes.Block(None, 1)
    try:
        if match := re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", scope):
            return scopes.NofM(int(match[1]), int(match[2]))
        if match := re.fullmatch(r"block:([0-9]{1,9})x([0-9]{1,9})", scope):
            return scopes.Block(int(match[1]), int(match[2]))
    except ValueError as error:
        raise UserError(f"--scope {scope}: {error}") from error
    raise UserError(
        f"--scope: expected global, layer, filter, channels, N:M such as 2:4, or block:RxC such as "
        f"block:4x4; got {scope!r}"
    )
