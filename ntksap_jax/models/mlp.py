"""Multilayer perceptrons."""

from collections.abc import Callable, Sequence

import jax
from flax import linen as nn

from ntksap_jax.models import _layers


def identity(x: jax.Array) -> jax.Array:
    """The activation of a linear network."""
    return x


class MLP(nn.Module):
    """Dense layers with biases; inputs of any shape (N, ...) are flattened to (N, features).

    Parameters are `hidden_<i>/{kernel,bias}` and, for the last layer, `fc/{kernel,bias}`.

    Attributes:
        hidden: widths of the hidden layers, first to last; () is logistic regression.
        num_classes: number of outputs.
        activation: applied after each hidden layer.

    Raises:
        ValueError: on construction if a width is below 1; on call if the inputs have no batch axis.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model, images = MLP(hidden=(8,), num_classes=3), jnp.zeros((2, 4, 4, 1))
        >>> jax.eval_shape(model.init_with_output, jax.random.key(0), images)[0].shape
        (2, 3)
    """

    hidden: Sequence[int] = (300, 100)
    num_classes: int = 10
    activation: Callable[[jax.Array], jax.Array] = nn.relu

    def __post_init__(self) -> None:
        _layers.check_sizes(hidden=self.hidden, num_classes=self.num_classes)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps inputs (N, ...) to logits (N, num_classes); the same in training or not."""
        del train
        if x.ndim < 2:
            raise ValueError(
                f"inputs: got shape {x.shape}, expected (N, ...). Add the batch axis with x[None]."
            )
        x = x.reshape(x.shape[0], -1)
        for index, features in enumerate(self.hidden):
            x = self.activation(_layers.dense(features, name=f"hidden_{index}")(x))
        return _layers.dense(self.num_classes, name="fc")(x)


def mlp(hidden: Sequence[int] = (300, 100), *, num_classes: int = 10) -> MLP:
    """An MLP with ReLU; by default LeNet-300-100 (266,610 parameters on 28×28 inputs).

    Source: LeCun et al., "Gradient-based learning applied to document recognition" (1998).

    Args:
        hidden: widths of the hidden layers.
        num_classes: number of outputs.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> variables = jax.eval_shape(mlp().init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        266610
    """
    return MLP(hidden=hidden, num_classes=num_classes)


def linear_mlp(*, depth: int = 7, width: int = 100, num_classes: int = 10) -> MLP:
    """A deep linear network; by default TPP's MLP-7-Linear, 1024-100×6-10 on 32×32 inputs.

    That one has 154,010 parameters and costs 306,800 FLOPs an image. Weights start Kaiming-normal
    like those of all networks here, gain √2 included; TPP starts from torch's uniform default.

    Source: Wang and Fu, "Trainability Preserving Neural Pruning" (ICLR 2023), after Lee et al.,
    "A Signal Propagation Perspective for Pruning Neural Networks at Initialization" (ICLR 2020).

    Args:
        depth: number of dense layers, the last one included.
        width: width of the depth − 1 hidden layers.
        num_classes: number of outputs.

    Raises:
        ValueError: if a size is below 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> variables = jax.eval_shape(linear_mlp().init, jax.random.key(0), jnp.zeros((1, 1024)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        154010
    """
    _layers.check_sizes(depth=depth, width=width)
    return MLP(hidden=(width,) * (depth - 1), num_classes=num_classes, activation=identity)
