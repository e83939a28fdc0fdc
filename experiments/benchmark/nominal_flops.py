"""Nominal floating-point operations of a case: the same number for either side.

In units F of a forward pass on the batch (`ntksap_jax.flops`), where the gradient with
respect to the inputs of a layer and that with respect to its weights take F each:

| step              | forward                         | backward | together |
|-------------------|---------------------------------|----------|----------|
| finite difference | 2 F: clean and perturbed        | 4 F      | 6 F      |
| jvp               | 3 F: F, and 2 F for the tangent | 6 F      | 9 F      |
| vjp               | 3 F: F, and 2 F to pull back    | 6 F      | 9 F      |
| training          | F                               | 2 F      | 3 F      |
| convolution       | F                               | 2 F      | 3 F      |

Not counted: a pass of its own for the batch statistics (the authors' code has one), drawing random
numbers, normalisation, activations, and that the first layer needs no gradient of its inputs.
"""

from __future__ import annotations

import ntksap_jax as nts
from experiments.benchmark.types import CONVOLUTION_CALLS, Case
from experiments.cifar.choices import MODELS
from ntksap_jax import flops

PASSES = {"finite_difference": 6, "jvp": 9, "vjp": 9}
TRAINING_PASSES = 3


def count(case: Case) -> float | None:
    """Returns the operations of one step of the case, or None where they are not counted."""
    if not case.has_flops:
        return None
    if case.kind == "convolution":
        height, width, channels = case.input_shape
        forward = 2 * 9 * height * width * channels**2 * case.batch_size
        return float(TRAINING_PASSES * forward * CONVOLUTION_CALLS)
    network = nts.linen(MODELS[case.model](), case.input_shape)
    forward = sum(flops.count(network).values()) * case.batch_size
    if case.kind == "train":
        return float(TRAINING_PASSES * forward)
    return float(PASSES[case.estimator] * forward * case.num_samples * case.num_rounds)
