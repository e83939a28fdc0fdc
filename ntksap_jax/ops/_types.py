"""What the types of arrays say of their layout over devices."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import AxisType


def needs_no_sharding_rule(*arrays: Any) -> bool:
    """Whether types say nothing about the layout over devices: our primitives have no rules for it.

    XLA alone decides on it along Auto axes. Along Manual ones, inside of `shard_map`, only the
    check of what varies between devices (`check_vma`) is part of the types.
    """
    types = [jax.typeof(x) for x in arrays]
    meshes = [jax.sharding.get_abstract_mesh(), *(t.sharding.mesh for t in types)]
    kinds = {kind for mesh in meshes for kind in mesh.axis_types}
    return AxisType.Explicit not in kinds and not any(varying(t) for t in types)


def varying(array_type: Any) -> Any:
    """The manual axes along which an array differs between devices; once `vma`."""
    manual = getattr(array_type, "manual_axis_type", None)
    return array_type.vma if manual is None else manual.varying
