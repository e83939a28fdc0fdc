"""Models in Equinox, of equimo and foundax, made networks by `plain`."""

import jax
import jax.numpy as jnp

import ntksap_jax as nts
from experiments.zoo.types import CLASSES, Entry, labelled, squared_error


def network_of(make, shape):
    """Makes the network of `make(key)`, a model of single examples."""
    import equinox as eqx

    _, static = eqx.partition(make(jax.random.key(0)), eqx.is_inexact_array)
    return nts.plain(
        lambda key: eqx.filter(make(key), eqx.is_inexact_array),
        lambda params, x: jax.vmap(eqx.combine(params, static))(x),
        shape,
    )


def convnext() -> Entry:
    """ConvNeXt of equimo, of four blocks, with layer scales of 1e-6."""
    from equimo.models import ConvNeXt

    def make(key):
        sizes = {"depths": [1, 1, 1, 1], "dims": [8, 16, 16, 32]}
        return ConvNeXt(num_classes=CLASSES, key=key, **sizes)

    return Entry(network_of(make, (3, 32, 32)), labelled(3, 32, 32), exclude="norm")


def fourier_operator() -> Entry:
    """The Fourier neural operator of foundax in one dimension."""
    from foundax.architectures import FNO1D

    def make(key):
        return FNO1D(1, hidden_channels=8, n_modes=4, n_layers=2, key=key)

    inputs, _ = labelled(16, 1)
    network = network_of(make, (16, 1))  # of 16 positions, one channel
    integral = jnp.cumsum(inputs, 1)[:, None]
    return Entry(network, (inputs, integral), squared_error, include="weight")


def unet() -> Entry:
    """The U-Net of foundax in one dimension, of two levels."""
    from foundax.architectures import UNet1D

    def make(key):
        return UNet1D(depth=2, wf=3, norm=None, key=key)

    inputs, _ = labelled(16, 1)
    return Entry(network_of(make, (16, 1)), (inputs, jnp.cumsum(inputs, 1)), squared_error)
