"""The networks of the papers, as `flax.linen` modules.

All take images (N, H, W, C) as `model(images, train=False)` and return logits; the classifier is
`fc` in every one. Widths, depths and the number of classes are arguments, the papers' by default.

| factory                            | the papers' use                        | parameters       |
|------------------------------------|----------------------------------------|------------------|
| `resnet20`, `resnet32`, `resnet56` | NTK-SAP, TPP: CIFAR-10                 | 0.27 M to 0.86 M |
| `vgg16_bn`, `vgg19_bn`             | NTK-SAP, TPP: CIFAR-100                | 14.8 M, 20.1 M   |
| `resnet18`, `resnet34`, `resnet50` | NTK-SAP, TPP: Tiny-ImageNet, ImageNet  | 11.7 M to 25.6 M |
| `mlp`, `linear_mlp`                | TPP: MNIST                             | 0.27 M, 0.15 M   |
"""

from ntksap_jax.models.mlp import MLP as MLP
from ntksap_jax.models.mlp import linear_mlp as linear_mlp
from ntksap_jax.models.mlp import mlp as mlp
from ntksap_jax.models.resnet_cifar import ResNet as ResNet
from ntksap_jax.models.resnet_cifar import cifar_resnet as cifar_resnet
from ntksap_jax.models.resnet_cifar import resnet20 as resnet20
from ntksap_jax.models.resnet_cifar import resnet32 as resnet32
from ntksap_jax.models.resnet_cifar import resnet56 as resnet56
from ntksap_jax.models.resnet_imagenet import ImageNetResNet as ImageNetResNet
from ntksap_jax.models.resnet_imagenet import resnet18 as resnet18
from ntksap_jax.models.resnet_imagenet import resnet34 as resnet34
from ntksap_jax.models.resnet_imagenet import resnet50 as resnet50
from ntksap_jax.models.vgg import VGG as VGG
from ntksap_jax.models.vgg import vgg16_bn as vgg16_bn
from ntksap_jax.models.vgg import vgg19_bn as vgg19_bn
from ntksap_jax.models.vgg import vgg_plan as vgg_plan
