"""What the axes of kernels mean: which are inputs, outputs, kernel positions, or stacked layers.

The axes of a leaf are told by a word with a letter for each:

| letter | the axis runs over |
|---|---|
| `s` | layers that are stacked in one leaf, by `nn.scan` or `vmap`; a place of a `ConvLocal` |
| `p` | positions in the kernel of a convolution |
| `i` | inputs (of a group, where a convolution has groups) |
| `o` | outputs |
| `?` | it is not known what |

A dense kernel of Flax is `"io"`, one of Equinox `"oi"`, a convolution `"ppio"`, the queries of an
attention `"ioo"` (a feature of a head is an output), what brings its heads together `"iio"`, and a
dense layer in a stack `"sio"`, `"iso"` or `"ios"`, wherever the stack's axis is.

Criteria that know their network find the axes themselves, when a search asks for them. Criteria
that do not (`magnitude`, `random`, `erk`) go by names: that of a leaf, `kernel` or `w`, and the
shape of its bias. Where that is not enough, and it matters, a search asks for `axes`: what `of`
returns, or patterns of your own such as `{"blocks/.*/kernel": "sio"}`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax

from ntksap_jax import _axis_roles, masks
from ntksap_jax.types import Axes, Network

_Score = TypeVar("_Score", bound=Callable[..., Any])


def of(network: Network) -> dict[str, str]:
    """Finds the axes of a network's kernels by tracing it; nothing is computed.

    Whatever is multiplied with something that depends on the inputs, in a matrix product, a
    convolution or a look-up, is a kernel: the axes that are summed over are its inputs. It is
    followed through operations that only rearrange, rescale or slice it, and into loops. A kernel
    that is used transposed too, as a table that embeds tokens and is the head, or where `apply`
    takes derivatives, counts as at its first use. In x @ (W + A @ B) the axis between A and B is
    the outputs of A and the inputs of B. Layers side by side on the same inputs, as `vmap` makes
    them with `in_axes=None`, are found by the layers that follow them; alone they are one layer
    with two axes of outputs.

    Args:
        network: the model, of any framework.

    Returns:
        The letters of each kernel's axes, by path. An axis is `?` where its uses disagree, as in
        W + Wᵀ, or could not be followed.

    >>> import flax.linen as nn
    >>> import ntksap_jax as nts
    >>> attention = nn.MultiHeadDotProductAttention(2)
    >>> network = nts.linen(nn.Sequential([nn.Conv(4, (3,)), attention]), (8, 3))
    >>> {path: word for path, word in of(network).items() if "key" not in path}
    {'layers_0/kernel': 'pio', 'layers_1/out/kernel': 'iio', 'layers_1/query/kernel': 'ioo',
     'layers_1/value/kernel': 'ioo'}
    """
    params = jax.eval_shape(network.init, jax.random.key(0))
    program = jax.make_jaxpr(network.apply)(params, network.examples(2))
    shapes = {path: leaf.shape for path, leaf in masks.leaf_paths(params).items()}
    kernels = [path for path in shapes if path.rsplit("/", 1)[-1] in masks.KERNEL_NAMES]
    words: dict[str, str] = {}
    # A kernel may stand beside other leaves (queries that are learned) or be made of several
    # (weight normalisation): leaves of other names count as inputs first, and then do not.
    for followed in (kernels, list(shapes)):
        found = _axis_roles.read(program, shapes, followed)
        words = found | {path: word for path, word in words.items() if "?" not in word}
    # Of all others what has inputs or outputs: not the biases of a stack.
    others = {path for path, word in words.items() if len(word) > 1 and set("io") & set(word)}
    return {path: words[path] for path in shapes if path in kernels or path in others}


def known(source: Network | Axes | None) -> Callable[[_Score], _Score]:
    """Lets a search ask a criterion of yours what the axes of kernels mean: a decorator.

    Those of `criteria` that are made of a network need none.

    Args:
        source: the criterion's network, which is traced when a search asks; or the axes.

    >>> import ntksap_jax as nts
    >>> import jax.numpy as jnp
    >>> init = lambda key: {"weight": jnp.ones((2, 4))}
    >>> network = nts.plain(init, lambda params, x: x @ params["weight"].T, (4,))
    >>> @known(network)
    ... def score(key, params, mask, batch):
    ...     return nts.masks.map_prunable(lambda m, p: m * abs(p), mask, params), {}
    >>> params, scope = network.init(jax.random.key(0)), nts.scopes.NofM(2, 4)
    >>> nts.prune(jax.random.key(1), params, score, schedule=[0.5], scope=scope)[0]["weight"]
    Array([[ True,  True, False, False],
           [ True,  True, False, False]], dtype=bool)
    """

    def decorate(score: _Score) -> _Score:
        score.axes = source  # type: ignore[attr-defined]
        return score

    return decorate
