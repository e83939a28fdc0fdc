"""Configurations: TPP's studies at the authors' settings, short budgets of them, a demo.

Settings are those of `ntksap_jax.structured.tpp_presets`. The authors do not say how they
pretrained the MLP: here as it is fine-tuned at the higher rate. Its data are Fashion-MNIST where
theirs are MNIST, resized to 32×32 and not augmented like theirs.

`mlp-linear-short` is the same network and all stages are shorter; `resnet56-cifar10-short` and
`vgg19-cifar100-short` are smaller networks too, as their plan says.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from experiments.tpp.config import (
    Config,
    FinetuneConfig,
    PretrainConfig,
    RegulariseConfig,
    SearchConfig,
)
from ntksap_jax.structured import tpp_presets


def _study(name: str, **values: Any) -> Config:
    """Returns the configuration of a study of the authors'."""
    recipe = tpp_presets.PRESETS[name]
    names = ("gram_weight", "update_interval", "increment", "stabilise_steps", "zero_out_interval")
    settings: Any = {name: getattr(recipe.settings, name) for name in names}
    return Config(
        patterns=recipe.patterns,
        skip=recipe.skip,
        batch_size=recipe.batch_size,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        regularise=RegulariseConfig(reg_lr=recipe.learning_rate, **settings),
        finetune=FinetuneConfig(
            finetune_epochs=recipe.fine_tune_epochs,
            finetune_lr=recipe.fine_tune_rates[0],
            finetune_drop_epochs=tuple(recipe.fine_tune_rates)[1:],
            small_lr_drop_epochs=tuple(recipe.fine_tune_rates_small)[1:],
        ),
        **values,
    )


MLP_LINEAR = _study(
    "mlp-linear",
    dataset="fashion_mnist",
    image_size=32,
    augment=False,
    model="linear_mlp",
    ratio=0.8,
    pretrain=PretrainConfig(pretrain_epochs=90, pretrain_lr=1e-2, pretrain_drop_epochs=(30, 60)),
)
RESNET56 = _study("resnet56-cifar10", dataset="cifar10", model="resnet56")
VGG19 = _study("vgg19-cifar100", dataset="cifar100", model="vgg19_bn")

MLP_LINEAR_SHORT = dataclasses.replace(
    MLP_LINEAR,
    pretrain=PretrainConfig(pretrain_epochs=10, pretrain_lr=1e-2, pretrain_drop_epochs=(5, 8)),
    regularise=dataclasses.replace(
        MLP_LINEAR.regularise, increment=1e-3, stabilise_steps=1000, orth_steps=5000
    ),
    finetune=FinetuneConfig(
        finetune_epochs=9, finetune_drop_epochs=(3, 6), small_lr_drop_epochs=(5,)
    ),
)


def _short(config: Config) -> Config:
    """A few epochs of everything, with strength in steps of a hundredth."""
    return dataclasses.replace(
        config,
        pretrain=PretrainConfig(pretrain_epochs=6, pretrain_lr=0.1, pretrain_drop_epochs=(3, 5)),
        search=SearchConfig(rounds=10, num_samples=2),
        regularise=dataclasses.replace(
            config.regularise,
            update_interval=4,
            increment=0.01,
            stabilise_steps=300,
            zero_out_interval=5,
            orth_steps=700,
        ),
        finetune=FinetuneConfig(
            finetune_epochs=4, finetune_drop_epochs=(2, 3), small_lr_drop_epochs=(3,)
        ),
    )


RESNET_SHORT = _short(
    dataclasses.replace(RESNET56, image_size=16, model="resnet20", width=8, jsv_images=20)
)
VGG19_SHORT = _short(dataclasses.replace(VGG19, width=8, jsv_images=20))

DEMO = Config(
    dataset="digits",
    model="mlp",
    batch_size=64,
    weight_decay=5e-4,
    compare=("l1", "ntk-sap"),
    ratio=0.8,
    patterns=("hidden_*",),
    pretrain=PretrainConfig(pretrain_epochs=30, pretrain_lr=0.1, pretrain_drop_epochs=(20,)),
    search=SearchConfig(rounds=10, num_samples=2),
    regularise=RegulariseConfig(
        update_interval=2,
        increment=0.002,
        stabilise_steps=500,
        orth_steps=1000,
    ),
    finetune=FinetuneConfig(
        finetune_epochs=20, finetune_drop_epochs=(10,), small_lr_drop_epochs=(15,)
    ),
)

PRESETS: dict[str, tuple[str, Config]] = {
    "demo": ("Handwritten digits and a small MLP, no download: about a minute.", DEMO),
    "mlp-linear": ("TPP's linear 7-layer MLP, on Fashion-MNIST.", MLP_LINEAR),
    "mlp-linear-short": ("The same network, a tenth of the training.", MLP_LINEAR_SHORT),
    "resnet56-cifar10": ("ResNet-56 on CIFAR-10, at the authors' settings.", RESNET56),
    "resnet56-cifar10-short": (
        "ResNet-20 of half the width on 16x16 CIFAR-10, a few epochs.",
        RESNET_SHORT,
    ),
    "vgg19-cifar100": ("VGG-19 on CIFAR-100, at the authors' settings.", VGG19),
    "vgg19-cifar100-short": ("VGG-19 of an eighth of the width, a few epochs.", VGG19_SHORT),
}
"""Name to (one line for the help, configuration)."""
