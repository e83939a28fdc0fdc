"""One sample of NTK-SAP's score as the authors' program takes it, in plain eager PyTorch.

Weights are drawn afresh; a forward pass in training mode, with momentum 1 and without gradients,
stores the batch's statistics; in evaluation mode the trace is estimated, and its gradient adds up
in the masks. The finite difference is the authors' own estimator; the other two are those of
`ntksap_jax.ntk`, written as PyTorch's users would.

Only what is needed takes part in the gradient: the masks. (In the authors' code the weights do
too, which costs them a little more.)
"""

# PyTorch is optional: types are checked where it is installed.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn import grad

from experiments.benchmark.torch_models import batch_norms, draw_weights, prunable_layers

SIGMA = 0.01
"""Standard deviation of the perturbation, which the authors' code calls epsilon."""

Weights = dict[str, Tensor]
Estimate = Callable[[nn.Module, Tensor], Tensor]
"""`estimate(model, inputs)`: draws a probe (unless there is one, as a third argument) and estimates
the trace of a model in evaluation mode, differentiably in the masks."""


def require_mask_gradients(model: nn.Module) -> None:
    """Makes the masks, and nothing else, what gradients are taken of."""
    model.requires_grad_(False)
    for _, layer in prunable_layers(model):
        layer.weight_mask.requires_grad_()
    for norm in batch_norms(model):
        norm.momentum = 1.0


def add_sample(model: nn.Module, inputs: Tensor, estimate: Estimate) -> Tensor:
    """Takes one sample; adds the gradient of the trace to that of the masks; returns the trace."""
    draw_weights(model)
    calibrate(model, inputs)
    trace = estimate(model, inputs)
    trace.backward(inputs=[layer.weight_mask for _, layer in prunable_layers(model)])
    return trace.detach()


def calibrate(model: nn.Module, inputs: Tensor) -> None:
    """Makes the batch's statistics the running ones, and switches to evaluation mode."""
    for norm in batch_norms(model):
        norm.reset_running_stats()
    model.train()
    with torch.no_grad():
        model(inputs)
    model.eval()


# -- Estimators ----------------------------------------------------------------------------------


def draw_tangent(model: nn.Module) -> Weights:
    """Draws a Gaussian direction in the space of the weights that are pruned, by parameter."""
    return {
        f"{path}.weight_orig": torch.randn_like(layer.weight_orig)
        for path, layer in prunable_layers(model)
    }


def finite_difference(model: nn.Module, inputs: Tensor, tangent: Weights | None = None) -> Tensor:
    """Returns ‖f(θ + σ v) − f(θ)‖², the authors' score (without the factor 1/σ²)."""
    tangent = tangent or draw_tangent(model)
    perturbed = {name: model.get_parameter(name) + SIGMA * v for name, v in tangent.items()}
    outputs = model(inputs)
    moved = torch.func.functional_call(model, perturbed, (inputs,))
    return (torch.norm(outputs - moved, dim=-1) ** 2).sum()


def jvp(model: nn.Module, inputs: Tensor, tangent: Weights | None = None) -> Tensor:
    """Returns ‖J v‖², by forward-mode differentiation."""
    tangent = tangent or draw_tangent(model)

    def outputs_of(weights: Weights) -> Tensor:
        return torch.func.functional_call(model, weights, (inputs,))

    weights = {name: model.get_parameter(name) for name in tangent}
    pushed_forward = torch.func.jvp(outputs_of, (weights,), (tangent,))[1]
    return pushed_forward.square().sum()


def vjp(model: nn.Module, inputs: Tensor, cotangent: Tensor | None = None) -> Tensor:
    """Returns ‖Jᵀ u‖², by reverse-mode differentiation that can be differentiated again."""
    weights = [layer.weight_orig.requires_grad_() for _, layer in prunable_layers(model)]
    outputs = model(inputs)
    if cotangent is None:
        cotangent = torch.randn_like(outputs)
    pulled_back = torch.autograd.grad(outputs, weights, cotangent, create_graph=True)
    return torch.stack([part.square().sum() for part in pulled_back]).sum()


ESTIMATORS: dict[str, Estimate] = {"finite_difference": finite_difference, "jvp": jvp, "vjp": vjp}


# -- Selection -----------------------------------------------------------------------------------


def take_scores(model: nn.Module) -> list[Tensor]:
    """Returns the scores that samples have added up, layer by layer, and clears the sums."""
    scores = []
    for _, layer in prunable_layers(model):
        assert layer.weight_mask.grad is not None
        scores.append((layer.weight_mask.grad * layer.weight_mask.detach()).abs())
        layer.weight_mask.grad = None
    return scores


def select(scores: Sequence[Tensor], num_kept: int) -> list[Tensor]:
    """Returns masks that keep the highest scores: kthvalue and a comparison, as the authors do."""
    together = torch.cat([score.flatten() for score in scores])
    num_pruned = together.numel() - num_kept
    if num_pruned < 1:
        return [torch.ones_like(score) for score in scores]
    threshold = torch.kthvalue(together, num_pruned).values
    return [(score > threshold).to(score.dtype) for score in scores]


def prune(model: nn.Module, inputs: Iterable[Tensor], estimate: Estimate, num_kept: int) -> None:
    """One round: a sample for each batch of inputs, selection, new masks."""
    for batch in inputs:
        add_sample(model, batch, estimate)
    kept = select(take_scores(model), num_kept)
    with torch.no_grad():
        for (_, layer), mask in zip(prunable_layers(model), kept, strict=True):
            layer.weight_mask.copy_(mask)


# -- Convolutions --------------------------------------------------------------------------------

CONVOLUTION_SUMS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "outputs": lambda x, w, y: F.conv2d(x, w, padding=1),
    "input gradient": lambda x, w, y: grad.conv2d_input(x.shape, w, y, padding=1),
    "kernel gradient": lambda x, w, y: grad.conv2d_weight(x, w.shape, y, padding=1),
}
"""The sums that a 3×3 layer needs, functions of images, kernel and cotangent."""
