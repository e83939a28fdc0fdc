"""Models of `haiku.nets` (dm-haiku), made networks by `plain`."""

import jax

import ntksap_jax as nts
from experiments.zoo.types import CLASSES, Entry, labelled


def of_images(forward, shape) -> Entry:
    """Makes the network of `forward(images, is_training)`."""
    import haiku as hk

    model, batch = hk.without_apply_rng(hk.transform_with_state(forward)), labelled(*shape)
    _, state = model.init(jax.random.key(1), batch[0], True)
    network = nts.plain(
        lambda key: model.init(key, batch[0], True)[0],
        lambda params, state, x: model.apply(params, state, x, False)[0],
        shape,
        state=state,
        train=lambda params, state, x: model.apply(params, state, x, True),
    )
    return Entry(network, batch)


def mlp() -> Entry:
    """The multilayer perceptron."""
    import haiku as hk

    model = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([32, 32, CLASSES])(x)))
    batch = labelled(20)
    return Entry(nts.plain(lambda key: model.init(key, batch[0]), model.apply, (20,)), batch)


def mobilenet() -> Entry:
    """MobileNetV1 of four depthwise blocks."""
    import haiku as hk

    def forward(images, is_training):
        return hk.nets.MobileNetV1((1, 2, 1, 2), (16, 16, 32, 32), CLASSES)(images, is_training)

    return of_images(forward, (32, 32, 3))
