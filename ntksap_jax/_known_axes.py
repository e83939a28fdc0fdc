"""What the axes of leaves mean: given, known to a criterion's network, or told by names."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ntksap_jax import _forms, _zeros
from ntksap_jax import axes as axes_
from ntksap_jax.types import Axes, Network, ScoreFn


def words(
    score: ScoreFn,
    shapes: Mapping[str, _forms.Shape],
    prunable: Collection[str],
    axes: Axes | None,
    *,
    need: _forms.Need,
) -> dict[str, str]:
    """Returns a word for each leaf; the criterion's network is traced only if that may matter.

    Args:
        score: the criterion.
        shapes: those of all leaves, by path.
        prunable: the paths of the prunable ones.
        axes: what is given.
        need: what has to be known; stacks of layers are looked for even if it is nothing.
    """
    by_name = _forms.words_of(shapes, axes)
    if need == "nothing" and not any(by_name[path].startswith("???") for path in prunable):
        return by_name
    source = getattr(score, "axes", None) or _zeros.about(score).network
    if isinstance(source, Network):
        return _forms.words_of(shapes, axes, axes_.of(source))
    return _forms.words_of(shapes, {**(source or {}), **(axes or {})})
