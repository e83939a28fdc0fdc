"""Leaves that look like kernels and stay dense, since `masks.create` does not know their names."""

from __future__ import annotations

import re
from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np

from ntksap_jax import masks
from ntksap_jax.types import Mask, Params

_NO_KERNEL = re.compile(
    r"embed|pos|token|latent|probe|cls|table|bias|scale|gamma|beta|norm|mean|var|stat|alpha",
    re.IGNORECASE,
)


def notes(params: Params, mask: Mask) -> tuple[str, ...]:
    """What a search should say once of its default mask: what else could be a kernel.

    Args:
        params: pytree of arrays.
        mask: `masks.create(params)`.
    """
    leaves, prunable = masks.leaf_paths(params), masks.leaf_paths(mask)
    overlooked = [
        path
        for path, leaf in leaves.items()
        if path not in prunable
        and min(np.shape(leaf)[-2:], default=1) > 1
        and np.ndim(leaf) >= 2
        and jnp.issubdtype(leaf.dtype, jnp.floating)
        and not _NO_KERNEL.search(_name(path))
    ]
    if not overlooked:
        return ()
    more = f" and {len(overlooked) - 3} more" if len(overlooked) > 3 else ""
    is_kernel = "has the axes of a kernel and stays" if len(overlooked) == 1 else "stay"
    return (
        f"{', '.join(map(repr, overlooked[:3]))}{more} {is_kernel} dense: by default the leaves "
        f"named {', '.join(masks.KERNEL_NAMES)} are pruned. To prune these too: "
        f"mask=masks.create(params, include={_pattern(leaves, [*prunable, *overlooked])!r}).",
    )


def _pattern(paths: Iterable[str], wanted: list[str]) -> str:
    """Returns a pattern that matches the wanted paths and no other: by names if these tell."""
    names = sorted({re.escape(_name(path)) for path in wanted})
    pattern = f"(^|/)({'|'.join(names)})$"
    if {path for path in paths if re.search(pattern, path)} == set(wanted):
        return pattern
    return f"^({'|'.join(map(re.escape, wanted))})$"


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1]
