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

import copy
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn import grad

from experiments.benchmark.torch_models import batch_norms, draw_weights, masked_layers

SIGMA = 0.01
"""Standard deviation of the perturbation, which the authors' code calls epsilon."""

Estimate = Callable[[nn.Module, Tensor], Tensor]
"""`estimate(model, inputs)`: draws a probe and estimates the trace, differentiably in the masks."""


def require_mask_gradients(model: nn.Module) -> None:
    """Makes the masks, and nothing else, what gradients are taken of."""
    model.requires_grad_(False)
    for _, layer in masked_layers(model):
        layer.mask.requires_grad_()
    for norm in batch_norms(model):
        norm.momentum = 1.0


def add_sample(model: nn.Module, inputs: Tensor, estimate: Estimate) -> Tensor:
    """Takes one sample; adds the gradient of the trace to that of the masks; returns the trace."""
    draw_weights(model)
    calibrate(model, inputs)
    trace = estimate(model, inputs)
    trace.backward(inputs=[layer.mask for _, layer in masked_layers(model)])
    return trace.detach()


def calibrate(model: nn.Module, inputs: Tensor) -> None:
    """Makes the batch's statistics the running ones, and switches to evaluation mode."""
    for norm in batch_norms(model):
        norm.reset_running_stats()
    model.train()
    with torch.no_grad():
        model(inputs)
    model.eval()


def make_estimate(name: str, model: nn.Module) -> Estimate:
    """Returns the estimator of this name."""
    if name == "finite_difference":
        perturbed = copy_with_masks(model)
        return lambda model, inputs: finite_difference(
            model, perturbed, inputs, draw_tangent(model)
        )
    if name == "jvp":
        return lambda model, inputs: jvp(model, inputs, draw_tangent(model))
    return vjp


def copy_with_masks(model: nn.Module) -> nn.Module:
    """Copies a model; the masks stay those of the original."""
    copied = copy.deepcopy(model)
    for (_, original), (_, layer) in zip(masked_layers(model), masked_layers(copied), strict=True):
        layer.mask = original.mask
    return copied


def draw_tangent(model: nn.Module) -> dict[str, Tensor]:
    """Draws a Gaussian direction in the space of the weights that are pruned, by parameter."""
    return {
        f"{path}.weight": torch.randn_like(layer.weight) for path, layer in masked_layers(model)
    }


# -- Estimators ----------------------------------------------------------------------------------


def finite_difference(
    model: nn.Module, perturbed: nn.Module, inputs: Tensor, tangent: dict[str, Tensor]
) -> Tensor:
    """Returns ‖f(θ + σ v) − f(θ)‖², the authors' score (without the factor 1/σ²).

    Args:
        model: in evaluation mode, with the batch's statistics.
        perturbed: from `copy_with_masks`; what it holds is overwritten.
        inputs: images (N, C, H, W).
        tangent: v, by name of the parameter.
    """
    with torch.no_grad():
        perturbed.load_state_dict(
            {k: v for k, v in model.state_dict().items() if not k.endswith(".mask")}, strict=False
        )
        for name, direction in tangent.items():
            perturbed.get_parameter(name).add_(direction, alpha=SIGMA)
    perturbed.eval()
    outputs = model(inputs)
    return (torch.norm(outputs - perturbed(inputs), dim=-1) ** 2).sum()


def jvp(model: nn.Module, inputs: Tensor, tangent: dict[str, Tensor]) -> Tensor:
    """Returns ‖J v‖², by forward-mode differentiation."""

    def outputs_of(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, weights, (inputs,))

    weights = {name: model.get_parameter(name) for name in tangent}
    pushed_forward = torch.func.jvp(outputs_of, (weights,), (tangent,))[1]
    return pushed_forward.square().sum()


def vjp(model: nn.Module, inputs: Tensor, cotangent: Tensor | None = None) -> Tensor:
    """Returns ‖Jᵀ u‖², by reverse-mode differentiation that can be differentiated again."""
    weights = [layer.weight.requires_grad_() for _, layer in masked_layers(model)]
    outputs = model(inputs)
    if cotangent is None:
        cotangent = torch.randn_like(outputs)
    pulled_back = torch.autograd.grad(outputs, weights, cotangent, create_graph=True)
    return torch.stack([part.square().sum() for part in pulled_back]).sum()


# -- Selection -----------------------------------------------------------------------------------


def take_scores(model: nn.Module) -> list[Tensor]:
    """Returns the scores that samples have added up, layer by layer, and clears the sums."""
    scores = []
    for _, layer in masked_layers(model):
        assert layer.mask.grad is not None
        scores.append((layer.mask.grad * layer.mask.detach()).abs())
        layer.mask.grad = None
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
        for (_, layer), mask in zip(masked_layers(model), kept, strict=True):
            layer.mask.copy_(mask)


# -- Convolutions --------------------------------------------------------------------------------

CONVOLUTION_SUMS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "outputs": lambda x, w, y: F.conv2d(x, w, padding=1),
    "input gradient": lambda x, w, y: grad.conv2d_input(x.shape, w, y, padding=1),
    "kernel gradient": lambda x, w, y: grad.conv2d_weight(x, w.shape, y, padding=1),
}
"""The sums that a 3×3 layer needs, functions of images, kernel and cotangent."""
