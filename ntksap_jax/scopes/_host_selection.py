"""The exact selection of the highest scores in the memory of the host, by partition.

It finds what `_top_ranks` finds, ties included. On CPU it takes a fraction of the time: a sample of
the scores tells nearly where the threshold is, and only the few scores around it are partitioned
(Floyd and Rivest, "Expected time bounds for selection", 1975); the bisection goes through all of
them thirty-two times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

SAMPLED = 256
"""One of so many scores is in the sample."""


def keep_highest(
    scores: Sequence[np.ndarray], mask: Sequence[np.ndarray], count: int
) -> tuple[list[np.ndarray], float]:
    """Keeps the highest scores of what the mask has left, which share one threshold.

    Equal scores are taken in order of position: earlier arrays first, then lower (flat) index.

    Args:
        scores: finite.
        mask: booleans of the same shapes; what is False is neither kept nor counted.
        count: how many to keep; all where there are fewer.

    Returns:
        Boolean arrays: what is kept; and the lowest score that is, +inf where none is.
    """
    left = [s.ravel() if m.all() else s[m] for s, m in zip(scores, mask, strict=True)]
    count = min(count, sum(piece.size for piece in left))
    if count == 0:
        return [np.zeros_like(m) for m in mask], float("inf")
    higher, candidates = _around(left, count)
    place = candidates.size - (count - higher)
    candidates.partition(place)
    threshold = candidates[place]
    if higher + np.count_nonzero(candidates >= threshold) == count:
        kept = [_both(s >= threshold, m) for s, m in zip(scores, mask, strict=True)]
        return kept, float(threshold)
    # How many of those at the threshold are kept:
    places = count - higher - np.count_nonzero(candidates > threshold)
    kept = []
    for s, m in zip(scores, mask, strict=True):
        chosen = _both(s > threshold, m)
        tied = np.flatnonzero(_both(s == threshold, m))[:places]
        chosen.flat[tied] = True
        places -= tied.size
        kept.append(chosen)
    return kept, float(threshold)


def _around(left: Sequence[np.ndarray], count: int) -> tuple[int, np.ndarray]:
    """Finds a range of scores that the one of rank `count` from above lies in.

    Returns:
        How many scores are above the range; a copy of those in it.
    """
    sample = np.concatenate([piece[::SAMPLED] for piece in left])
    total = sum(piece.size for piece in left)
    # The rank's place in the sample, from below, give or take five standard deviations of chance.
    place = (total - count) / total * sample.size
    margin = 5 * math.sqrt(place * (1 - place / sample.size)) + 5
    low, high = math.floor(place - margin), math.ceil(place + margin)
    if low >= 0 and high < sample.size:
        sample.partition((low, high))
        lowest, highest = sample[low], sample[high]
        above, within = 0, []
        for piece in left:
            higher = piece > highest
            above += int(np.count_nonzero(higher))
            within.append(piece[np.logical_xor(higher, piece >= lowest, out=higher)])
        if above < count <= above + sum(piece.size for piece in within):
            return above, np.concatenate(within)
    return 0, np.concatenate(left)  # Few scores, or at an end, or a sample that was not like them.


def _both(chosen: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.logical_and(chosen, mask, out=chosen)
