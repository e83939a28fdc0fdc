"""Random small models: a grammar of layers and operations, as other people's code has them.

A model is a list of steps, each a name and a seed. What a step draws depends on its seed alone, so
that a model does the same with other numbers of channels, as far as its own code lets it.
"""

import flax.linen as nn
import numpy as np
from random_blocks import BETWEEN, BLOCKS
from random_steps import IMAGES, LAYERS, OTHERS, PLAIN, dense, pick

STEPS = {step.__name__: step for step in {*LAYERS, *OTHERS, *BLOCKS, *BETWEEN}}


class Random(nn.Module):
    """The steps one after another, and a head."""

    steps: tuple[tuple[str, int], ...]

    @nn.compact
    def __call__(self, x):
        for name, seed in self.steps:
            step = STEPS[name]
            if step in IMAGES and x.ndim != 4:
                step = dense
            x = step(x, np.random.default_rng(seed))
        return nn.Dense(3, name="head")(x.max(axis=tuple(range(1, x.ndim - 1))))


def draw(seed):
    """A random model, and the shape of its inputs: mostly a layer, one or two others, a layer."""
    r = np.random.default_rng(seed)
    steps = []
    for place in range(r.integers(1, 4)):
        layers = pick(r, LAYERS, BLOCKS) if place else PLAIN
        others = pick(r, OTHERS, BETWEEN)
        steps += [pick(r, *layers), *(pick(r, *others) for _ in range(r.integers(0, 3)))]
    shape = pick(r, (8, 8, 3), (5, 6, 2), (4,))
    return Random(tuple((step.__name__, int(r.integers(2**31))) for step in steps)), shape
