"""PyTorch's side: each case as a user of the authors' program, or of torch.nn, has it. Eager."""

# PyTorch is optional: types are checked where it is installed.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import functools
import importlib.metadata
import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from experiments.benchmark import torch_steps
from experiments.benchmark.torch_models import MODELS, add_masks, draw_weights, prunable_layers
from experiments.benchmark.types import (
    CONVOLUTION_CALLS,
    DENSITY,
    MATMUL,
    MATMUL_SIZE,
    SEARCH_ROUNDS,
    STEP,
    Case,
    Prepared,
    Steps,
)

MEMORY_FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


def prepare(case: Case, *, layout: str, cores: int) -> Prepared:
    """Makes the network and the functions to time, with a matrix product where rates count.

    `layout` is a key of `MEMORY_FORMATS`.
    """
    torch.set_num_threads(cores)
    torch.manual_seed(0)
    makers: dict[str, Callable[[Case, str], Steps]] = {
        "sample": _sample,
        "round": _round,
        "search": _search,
        "selection": _selection,
        "train": _train,
        "convolution": _convolution,
    }
    versions = {"torch": importlib.metadata.version("torch")}
    left, right = torch.randn(2, MATMUL_SIZE, MATMUL_SIZE)
    product: Steps = {MATMUL: lambda: left @ right} if case.has_flops else {}
    return Prepared({**makers[case.kind](case, layout), **product}, versions)


# -- Scores --------------------------------------------------------------------------------------


def _sample(case: Case, layout: str) -> Steps:
    model = _model(case, layout)

    def step() -> None:
        torch_steps.add_sample(model, _noise(case, layout), torch_steps.ESTIMATORS[case.estimator])
        torch_steps.take_scores(model)

    return {STEP: step}


def _round(case: Case, layout: str) -> Steps:
    model = _model(case, layout)

    def step() -> None:
        for _, layer in prunable_layers(model):
            nn.init.ones_(layer.weight_mask)
        _prune(case, layout, model, DENSITY ** (1 / SEARCH_ROUNDS))

    return {STEP: step}


def _search(case: Case, layout: str) -> Steps:
    def step() -> None:
        model = _model(case, layout)
        for number in range(1, case.num_rounds + 1):
            _prune(case, layout, model, DENSITY ** (number / case.num_rounds))

    return {STEP: step}


def _prune(case: Case, layout: str, model: nn.Module, density: float) -> None:
    num_prunable = sum(layer.weight_mask.numel() for _, layer in prunable_layers(model))
    inputs = (_noise(case, layout) for _ in range(case.num_samples))
    estimate = torch_steps.ESTIMATORS[case.estimator]
    torch_steps.prune(model, inputs, estimate, round(density * num_prunable))


def _model(case: Case, layout: str) -> nn.Module:
    model = MODELS[case.model]()
    add_masks(model)
    model = model.to(memory_format=MEMORY_FORMATS[layout])  # type: ignore[call-overload]
    torch_steps.require_mask_gradients(model)
    return model


def _noise(case: Case, layout: str) -> Tensor:
    height, width, channels = case.input_shape
    noise = torch.randn(case.batch_size, channels, height, width)
    return noise.contiguous(memory_format=MEMORY_FORMATS[layout])


# -- Selection -----------------------------------------------------------------------------------


def _selection(case: Case, layout: str) -> Steps:
    del layout
    scores = [torch.rand(size) for size in case.leaf_sizes]
    num_kept = round(DENSITY * case.num_scores)
    return {STEP: functools.partial(torch_steps.select, scores, num_kept)}


# -- Training ------------------------------------------------------------------------------------


def _train(case: Case, layout: str) -> Steps:
    model = MODELS[case.model]()
    draw_weights(model)
    for _, layer in prunable_layers(model) if case.masked else ():
        mask = torch.rand_like(layer.weight) < DENSITY
        prune.custom_from_mask(layer, "weight", mask)
    model = model.to(memory_format=MEMORY_FORMATS[layout]).train()  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    images, labels = _noise(case, layout), torch.arange(case.batch_size) % 10

    def step() -> tuple[float, int]:
        optimizer.zero_grad()
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        return loss.item(), int((logits.argmax(dim=1) == labels).sum())

    return {STEP: step}


# -- Convolutions --------------------------------------------------------------------------------


def _convolution(case: Case, layout: str) -> Steps:
    *_, channels = case.input_shape
    images, kernel = _noise(case, layout), torch.randn(channels, channels, 3, 3)
    kernel = kernel.contiguous(memory_format=MEMORY_FORMATS[layout])

    def call(*sums: Callable[..., Tensor]) -> None:
        for each, _ in itertools.product(sums, range(CONVOLUTION_CALLS)):
            each(images, kernel, images)

    sums = torch_steps.CONVOLUTION_SUMS
    alone = {name: functools.partial(call, each) for name, each in sums.items()}
    return {STEP: functools.partial(call, *sums.values()), **alone}
