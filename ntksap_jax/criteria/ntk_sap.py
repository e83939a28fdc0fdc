r"""NTK-SAP: keep the connections whose removal would change the spectrum of the NTK most.

The score of a mask entry is the sensitivity of the expected trace of the neural tangent kernel,

    s(m) = | ∂/∂m  Σ_i  ‖J(θ_i ⊙ m; z_i) diag(m) v_i‖² |,   θ_i ~ init,  z_i, v_i ~ N(0, I),

the absolute value taken after the sum over samples. Weights θ_i are drawn afresh for every sample
(weight-agnostic), the inputs z_i are Gaussian noise (data-agnostic): it needs neither labels nor
data nor trained weights.

Source: Wang, Li, Sun, "NTK-SAP: Improving neural network pruning by aligning training dynamics",
ICLR 2023, Eq. 10 and Algorithm 1, with the released code's choices: one draw of weights for a batch
of inputs; only prunable weights are perturbed; batch statistics of the masked network, constant
under differentiation.
"""

from __future__ import annotations

import functools
import numbers
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from ntksap_jax import _networks, _placement, _platform, masks, ntk
from ntksap_jax._draws import random_like, typed_key
from ntksap_jax._placement import Layout, is_traced
from ntksap_jax._precision import scoring_precision
from ntksap_jax.criteria import _batches
from ntksap_jax.types import (
    Batch,
    Inputs,
    Key,
    Mask,
    Metrics,
    Network,
    Params,
    ScoreFn,
    Scores,
)


def ntk_sap(
    network: Network,
    *,
    estimator: ntk.Estimator = ntk.jvp,
    num_samples: int = 5,
    vmap_samples: int = 1,
    batch_size: int = 100,
    reinit: bool = True,
    inputs: Literal["noise", "data"] | Callable[[Key, int], Inputs] = "noise",
    output_fn: Callable[[Any], Any] | None = None,
    calibrate: Literal["one_pass", "two_pass"] = "one_pass",
    shard_samples: NamedSharding | None = None,
    shard_inputs: NamedSharding | None = None,
    signed: bool = False,
) -> ScoreFn:
    """Makes the NTK-SAP criterion for a network.

    Number and size of the samples are by default the paper's for CIFAR-10; the authors' estimator
    and statistics are `estimator=ntk.finite_difference, calibrate="two_pass"`.

    Args:
        network: the model, from `ntksap_jax._networks`.
        estimator: how the trace is estimated: `ntk.jvp`, `ntk.vjp`, `ntk.finite_difference` (the
            authors') or any function `(key, fn, params) -> trace`.
        num_samples: draws of (weights, inputs, probe) that are summed in one score.
        vmap_samples: how many of them one `jax.vmap` evaluates together; divides `num_samples`.
            On CPU vectorised kernels are convolved one after the other. On TPU, by its compiler's
            count, 2 or 5 together take the same work, move 14 to 39 % more bytes a sample and hold
            75 to 385 MB instead of one (ResNet-8): 1 is the default everywhere.
        batch_size: number of Gaussian inputs in a sample.
        reinit: draw fresh weights from `network.init` for every sample (the paper). `False` scores
            the given params, such as pretrained ones.
        inputs: `"noise"`: Gaussian, of the network's `input_shape` (the paper); `"data"`: those of
            the batch given to the score, the same for every sample; or a function
            `(key, batch_size) -> inputs`. Where the network takes integers, as a language model
            does, that function draws tokens, or floating-point noise of shape
            (N, length, features), which `nn.Embed` and `nnx.Embed` pass on as they are: noise after
            the embedding (see `ntksap_jax.linen`), to be drawn as large as embeddings are.
        output_fn: what the NTK is taken of, as a function of the network's outputs; by default the
            outputs (logits) themselves.
        calibrate: `"one_pass"`: batch statistics with the biased variance, shared with the pass
            that is differentiated; `"two_pass"`: the authors' sequence, which normalises with the
            unbiased variance that an earlier pass stored. For parity; one more pass.
        shard_samples: spreads the samples over devices: `NamedSharding(mesh, P("data"))`. Every
            device draws the weights and inputs of its own; one all-reduce of the scores in all.
        shard_inputs: splits the inputs of a sample over devices, for those too large for one.
            Batch statistics remain those of all inputs. Both may be given, over different axes.
        signed: leave out the absolute value: the derivatives themselves, to be summed over whole
            filters (`structured.by_gate`). They rank no single weights.

    Returns:
        The criterion. Called on concrete arrays it compiles one sample (or one `vmap` of them) and
        loops over them in Python; traced by the caller's `jit`, it is a `lax.scan`. With
        `shard_samples` it is one program. Params that are spread over devices are scored where they
        lie, and fresh weights drawn there (traced, if `network` is a `sharding.shard_network`).
        Random draws do not depend on the devices. Its metrics hold `"trace"`, the mean estimate per
        sample: summed over inputs and outputs.

    Raises:
        ValueError: an option out of range. When called: params or data that do not fit, a
            network whose outputs are not finite; samples to be spread over an axis that splits
            params.

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> import ntksap_jax as nts
    >>> network = nts.linen(nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)]), (3,))
    >>> params = network.init(jax.random.key(0))
    >>> score = ntk_sap(network, num_samples=2, batch_size=4)
    >>> scores, metrics = score(jax.random.key(1), params, masks.create(params), None)
    >>> scores["layers_0"]["kernel"].shape, scores["layers_0"]["bias"], sorted(metrics)
    ((3, 8), None, ['trace'])
    """
    _batches.check_network(network)
    if not callable(estimator):
        raise TypeError(f"estimator: got {estimator!r}, expected a function such as ntk.jvp.")
    sizes = {"num_samples": num_samples, "vmap_samples": vmap_samples, "batch_size": batch_size}
    for name, size in sizes.items():
        if not isinstance(size, numbers.Integral) or size < 1:
            raise ValueError(f"{name}: got {size!r}, expected an integer of at least 1.")
    if num_samples % vmap_samples:
        raise ValueError(
            f"vmap_samples: got {vmap_samples}, expected a divisor of num_samples={num_samples}."
        )
    if not callable(inputs) and not (isinstance(inputs, str) and inputs in ("noise", "data")):
        raise ValueError(f"inputs: got {inputs!r}, expected 'noise', 'data' or a function.")
    if inputs == "noise" and not jnp.issubdtype(network.input_dtype, jnp.floating):
        raise ValueError(
            f"inputs: 'noise' is Gaussian, but the network takes {network.input_dtype}. Draw such "
            "inputs by a function: inputs=lambda key, n: jax.random.randint(key, (n, length), 0, "
            "vocabulary). Or put the noise after the embedding: inputs=lambda key, n: "
            "jax.random.normal(key, (n, length, features)) / features**0.5, which nn.Embed and "
            "nnx.Embed pass on. Or inputs='data'."
        )
    if calibrate not in ("one_pass", "two_pass"):
        raise ValueError(f"calibrate: got {calibrate!r}, expected 'one_pass' or 'two_pass'.")

    def draw_inputs(key: Key, batch: Batch, batch_size: int = batch_size) -> Inputs:
        if callable(inputs):
            return inputs(key, batch_size)
        if inputs == "data":
            return batch[0]
        return random_like(
            key, jax.ShapeDtypeStruct((batch_size, *network.input_shape), network.input_dtype)
        )

    def place(drawn: Inputs) -> Inputs:
        if shard_inputs is None:
            return drawn
        return jax.lax.with_sharding_constraint(drawn, shard_inputs)

    @jax.jit
    def outputs_are_finite(key: Key, params: Params, mask: Mask, batch: Batch) -> jax.Array:
        few = jax.tree.map(lambda x: x[:2], draw_inputs(key, batch, min(batch_size, 2)))
        with scoring_precision():
            return _networks.are_finite(network.apply(masks.apply(mask, params), few))

    def sample(weights: Params, keys: Key, mask: Mask, batch: Batch) -> tuple[jax.Array, Scores]:
        inputs_key, probe_key = keys
        with scoring_precision():
            return trace_and_gradient(
                network,
                weights,
                mask,
                place(draw_inputs(inputs_key, batch)),
                estimate=functools.partial(estimator, probe_key),
                output_fn=output_fn,
                unbiased=calibrate == "two_pass",
            )

    def chunk(weights: Params, keys: Key, mask: Mask, batch: Batch) -> tuple[jax.Array, Scores]:
        """One sample, or the sum of `vmap_samples` with their weights and keys stacked."""
        if vmap_samples == 1:
            return sample(weights, keys, mask, batch)
        in_axes = (0 if reinit else None, 0, None, None)
        samples = jax.vmap(sample, in_axes)(weights, keys, mask, batch)
        return jax.tree.map(lambda s: jnp.sum(s, axis=0), samples)

    def draw_weights(keys: Key, layout: Layout | None) -> Params:
        """Draws weights where the params lie; they are never anywhere else."""

        def draw(key: Key) -> Params:
            return _placement.constrain(network.init(key), layout)

        return draw(keys) if vmap_samples == 1 else jax.vmap(draw)(keys)

    jitted_draw_weights = jax.jit(draw_weights, static_argnames="layout")

    @functools.partial(jax.jit, static_argnames="layout", donate_argnames="total")
    def add_chunk(
        total: Any, weights: Params, keys: Key, mask: Mask, batch: Batch, *, layout: Layout | None
    ) -> Any:
        total = jax.tree.map(jnp.add, total, chunk(weights, keys, mask, batch))
        return _placement.constrain(total, layout)

    def sum_one_by_one(
        total: Any, params: Params, keys: Key, mask: Mask, batch: Batch, *, layouts: _Layouts
    ) -> Any:
        # Weights are drawn outside of the compiled sample: random generators take long to compile,
        # and the caller has most likely compiled `network.init` already.
        draw = draw_weights if layouts.weights is None else jitted_draw_weights
        for chunk_keys in keys:
            weights = draw(chunk_keys[..., 0], layout=layouts.weights) if reinit else params
            total = add_chunk(
                total, weights, chunk_keys[..., 1:], mask, batch, layout=layouts.total
            )
        return total

    def sum_all(
        total: Any, params: Params, keys: Key, mask: Mask, batch: Batch, *, layouts: _Layouts
    ) -> Any:
        """In one program: on the devices of `shard_samples`, or by a `lax.scan`."""

        def drawn_chunk(keys: Key) -> Any:
            weights = draw_weights(keys[..., 0], layouts.weights) if reinit else params
            return chunk(weights, keys[..., 1:], mask, batch)

        def add(total: Any, keys: Key) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, drawn_chunk(keys)), None

        if shard_samples is None:
            return jax.lax.scan(add, total, keys)[0]
        added = _placement.sum_over(drawn_chunk, keys, shard_samples)
        return _placement.constrain(jax.tree.map(jnp.add, total, added), layouts.total)

    jitted_sum_all = jax.jit(sum_all, static_argnames="layouts")

    def score(key: Key, params: Params, mask: Mask, batch: Batch) -> tuple[Scores, Metrics]:
        _platform.warn_if_miscompiling()
        masks.check(mask, params)
        if inputs == "data":
            _check_batch(network, batch)
        if reinit:
            _check_fresh(network, params)

        stack = (vmap_samples,) if vmap_samples > 1 else ()
        keys = jax.random.split(typed_key(key), (num_samples // vmap_samples, *stack, 3))
        layouts = _layouts(params, mask)
        if shard_samples is not None:
            _check_axes(shard_samples, layouts.weights)
        total = _zeros(mask, params, layout=layouts.total)
        if is_traced((keys, params, mask, batch)):
            total = sum_all(total, params, keys, mask, batch, layouts=layouts)
        else:
            _networks.check_are_finite(outputs_are_finite(key, params, mask, batch))
            sum_samples = sum_one_by_one if shard_samples is None else jitted_sum_all
            total = sum_samples(total, params, keys, mask, batch, layouts=layouts)
        trace, scores = _finish(total, mask, signed=signed)
        return scores, {"trace": trace / num_samples}

    return score


def trace_and_gradient(
    network: Network,
    params: Params,
    mask: Mask,
    inputs: Inputs,
    *,
    estimate: Callable[[ntk.Fn, Params], jax.Array],
    output_fn: Callable[[Any], Any] | None = None,
    unbiased: bool = False,
) -> tuple[jax.Array, Scores]:
    """Estimates the trace for given weights and inputs, and its gradient with respect to the mask.

    Args:
        network: the model.
        params: the weights θ.
        mask: the boolean mask m, at which the gradient is taken.
        inputs: the inputs z.
        estimate: `estimate(fn, weights)`, the estimator with its probe's key already given; `fn`
            maps the prunable weights to the outputs of the masked network.
        output_fn: what the NTK is taken of, as a function of the network's outputs.
        unbiased: normalise with the unbiased variance (the authors' two passes).

    Returns:
        The estimate, and its gradient at every mask entry, pruned ones included.

    >>> import jax.numpy as jnp
    >>> import ntksap_jax as nts
    >>> params = {"w": jnp.ones((2, 1))}
    >>> network = nts.plain(lambda key: params, lambda p, x: x @ p["w"], (2,))
    >>> trace, gradient = trace_and_gradient(
    ...     network, params, {"w": jnp.ones((2, 1), bool)},
    ...     jnp.array([[3.0, 4.0]]),
    ...     estimate=lambda fn, w: ntk.cotangent_norm(fn, w, jnp.ones((1, 1))))
    >>> float(trace), gradient["w"].ravel().tolist()
    (25.0, [18.0, 32.0])
    """

    def trace(relaxed: Mask) -> jax.Array:
        apply = network.calibrate(masks.apply(relaxed, params), inputs, unbiased=unbiased)

        def fn(weights: Params) -> Any:
            merged = jax.tree.map(
                lambda m, w, p: p if m is None else m * w,
                relaxed,
                weights,
                params,
                is_leaf=lambda leaf: leaf is None,
            )
            outputs = apply(merged, inputs)
            return outputs if output_fn is None else output_fn(outputs)

        return estimate(fn, masks.map_prunable(lambda m, p: p, mask, params))

    relaxed = masks.map_prunable(lambda m, p: m.astype(p.dtype), mask, params)
    return jax.value_and_grad(trace)(relaxed)


class _Layouts(NamedTuple):
    """Where weights, and the sum of (trace, gradient), lie that are spread over devices."""

    weights: Layout | None
    total: Layout | None


def _layouts(params: Params, mask: Mask) -> _Layouts:
    """Everything lies as the params do."""
    trace, gradient = 0.0, masks.map_prunable(lambda m, p: p, mask, params)
    return _Layouts(_placement.layout(params), _placement.layout((trace, gradient)))


def _check_axes(shard_samples: NamedSharding, layout: Layout | None) -> None:
    """Raises if the devices that samples are spread over have no whole params."""
    wanted = _placement.axes_of(shard_samples)
    for each in layout or ():
        if isinstance(each, NamedSharding) and (shared := wanted & _placement.axes_of(each)):
            raise ValueError(
                f"shard_samples: spreads samples over the axes {sorted(shared)}, which split the "
                "params too. Use another axis of the mesh for each: sharding.model_mesh(2) has "
                "'data' and 'model'."
            )


@functools.partial(jax.jit, static_argnames="layout")
def _zeros(mask: Mask, params: Params, *, layout: Layout | None) -> tuple[jax.Array, Scores]:
    """A sum of no samples. Half precision is for the network, not for sums over samples."""
    zeros = masks.map_prunable(
        lambda m, p: jnp.zeros(m.shape, jnp.promote_types(p.dtype, jnp.float32)), mask, params
    )
    trace = jnp.zeros((), jnp.result_type(*jax.tree.leaves(zeros)))
    return _placement.constrain((trace, zeros), layout)


@functools.partial(jax.jit, static_argnames="signed")
def _finish(
    total: tuple[jax.Array, Scores], mask: Mask, *, signed: bool
) -> tuple[jax.Array, Scores]:
    """The summed trace, and the scores from the summed gradient."""
    trace, gradient = total
    size = (lambda g: g) if signed else jnp.abs
    return trace, masks.map_prunable(lambda m, g: size(g) * m, mask, gradient)


def _check_batch(network: Network, batch: Batch) -> None:
    expected = (
        f"(inputs, labels) with inputs of shape (N, {', '.join(map(str, network.input_shape))})"
    )
    if batch is None:
        raise ValueError(
            f"batch: got None, expected {expected}, since inputs='data'. Pass batch=, or use "
            "inputs='noise'."
        )
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise TypeError(
            f"batch: got {type(batch).__name__}, expected {expected}; labels may be None."
        )


def _check_fresh(network: Network, params: Params) -> None:
    """Raises unless `network.init` makes params like the given ones."""
    fresh = jax.eval_shape(network.init, jax.random.key(0))
    advice = "Pass params that network.init made, or score the given ones with reinit=False."
    wanted, found = masks.leaf_paths(fresh), masks.leaf_paths(params)
    for path in wanted | found:
        want, got = (
            None if tree.get(path) is None else (jnp.shape(tree[path]), jnp.result_type(tree[path]))
            for tree in (wanted, found)
        )
        if want != got:
            raise ValueError(f"params: leaf {path!r} is {got}, network.init makes {want}. {advice}")
    made: Any = jax.tree.structure(fresh)
    if made != jax.tree.structure(params):
        raise ValueError(
            f"params: a tree of other types than network.init makes: {jax.tree.structure(params)}, "
            f"expected {made}. {advice}"
        )
