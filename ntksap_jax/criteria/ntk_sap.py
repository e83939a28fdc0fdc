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
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from ntksap_jax import _boxes, _networks, _placement, _platform, _zeros, masks, ntk
from ntksap_jax._draws import typed_key
from ntksap_jax._precision import scoring_precision
from ntksap_jax.criteria import _batches, _inputs, _ntk_sap_checks
from ntksap_jax.types import Batch, Inputs, Key, Mask, Metrics, Network, Params, ScoreFn, Scores

Total = tuple[jax.Array, Scores]
"""A trace and its gradient with respect to the mask, summed over samples."""


def ntk_sap(
    network: Network,
    *,
    estimator: ntk.Estimator = ntk.jvp,
    num_samples: int = 5,
    vmap_samples: int = 1,
    batch_size: int = 100,
    reinit: bool | float = True,
    inputs: _inputs.Source = "noise",
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
        network: the model, from `ntksap_jax.linen`, `nnx` or `plain`.
        estimator: how the trace is estimated: `ntk.jvp`, `ntk.vjp`, `ntk.finite_difference` (the
            authors') or any function `(key, fn, params) -> trace`.
        num_samples: draws of (weights, inputs, probe) that are summed in one score.
        vmap_samples: how many of them one `jax.vmap` evaluates together; divides `num_samples`.
            More than 1 has paid nowhere yet: a CPU convolves vectorised kernels one after the
            other, and on TPU the compiler counts the same work and 14 to 39 % more bytes moved.
        batch_size: number of Gaussian inputs in a sample.
        reinit: draw fresh weights from `network.init` for every sample (the paper). `False` scores
            the given params, such as pretrained ones. A number r between the two scores kernels of
            √r · fresh + √(1 - r) · given: of the usual variance, and half of it, with 0.5, that of
            the weights that will be trained. Kernels that `init` makes all zero, as heads
            often are, are drawn from N(0, 2/fan-in), and such scales of normalisation and residual
            branches are 1, as in the paper's networks; the search's first `RoundInfo` names them.
        inputs: `"noise"`: Gaussian, of the network's `input_shape` (the paper); `"data"`: those of
            the batch given to the score, the same for every sample; or a function
            `(key, batch_size) -> inputs`. Where the network takes integers, as a language model
            does, that function draws tokens, or floating-point noise of shape
            (N, length, features), which `nn.Embed` and `nnx.Embed` pass on as they are: noise after
            the embedding (see `ntksap_jax.linen`), to be drawn as large as embeddings are. Where
            the network takes several inputs by name, a dict of such functions, one for each input
            that is not floating point; the others are noise.
        output_fn: what the NTK is taken of, as a function of the network's outputs; by default the
            outputs (logits) themselves. Needed where there are several.
        calibrate: `"one_pass"`: batch statistics with the biased variance, shared with the pass
            that is differentiated; `"two_pass"`: the authors' sequence, which normalises with the
            unbiased variance that an earlier pass stored. For parity; one more pass.
        shard_samples: spreads the samples over devices: `NamedSharding(mesh, P("data"))`. Every
            device draws weights and inputs for its own samples; there is one all-reduce in all.
        shard_inputs: splits the inputs of a sample over devices, for those too large for one.
            Batch statistics remain those of all inputs. Both may be given, over different axes.
        signed: leave out the absolute value: the derivatives themselves, to be summed over whole
            filters (`structured.by_gate`). They do not rank single weights.

    Returns:
        The criterion. Called on concrete arrays it compiles one sample (or one `vmap` of them) and
        loops over them in Python; traced by the caller's `jit`, it is a `lax.scan`. With
        `shard_samples` it is one program. Params that are spread over devices are scored in place,
        and fresh weights are drawn in the same place (under the caller's `jit` only if `network` is
        from `sharding.shard_network`). Random draws do not depend on the devices. Its metrics hold
        `"trace"`, the mean over samples of the estimate, which sums over inputs and outputs.

    Raises:
        ValueError: an option out of range. When called: params or data that do not fit, a
            network whose outputs are not finite, or whose `init` ignores its key, unless
            `reinit=False`; samples to be spread over an axis that splits params.

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> import ntksap_jax as nts
    >>> network = nts.linen(nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)]), (3,))
    >>> params = network.init(jax.random.key(0))
    >>> score = ntk_sap(network, num_samples=2, batch_size=4)
    >>> scores, metrics = score(jax.random.key(1), params, masks.create(params), None)
    >>> scores["layers_0"]["kernel"].shape, scores["layers_0"]["bias"], sorted(metrics)
    ((3, 8), None, ['trace'])
    """
    _ntk_sap_checks.check_options(
        network,
        estimator=estimator,
        num_samples=num_samples,
        vmap_samples=vmap_samples,
        batch_size=batch_size,
        inputs=inputs,
        output_fn=output_fn,
        calibrate=calibrate,
        reinit=reinit,
    )

    from_data = isinstance(inputs, str) and inputs == "data"
    draws_of = _zeros.of_init(network)

    # -- One sample: inputs, weights and a probe -----------------------------------------------

    def draw_inputs(key: Key, batch: Batch, size: int) -> Inputs:
        return batch[0] if from_data else _inputs.draw(network, inputs, key, size)

    def sample(weights: Params, keys: Key, mask: Mask, batch: Batch) -> Total:
        inputs_key, probe_key = keys
        drawn = draw_inputs(inputs_key, batch, batch_size)
        if shard_inputs is not None:
            drawn = jax.lax.with_sharding_constraint(drawn, shard_inputs)
        with scoring_precision():
            return trace_and_gradient(
                network,
                weights,
                mask,
                drawn,
                estimate=functools.partial(estimator, probe_key),
                output_fn=output_fn,
                unbiased=calibrate == "two_pass",
            )

    @jax.jit
    def outputs_are_finite(key: Key, params: Params, mask: Mask, batch: Batch) -> jax.Array:
        drawn = draw_inputs(key, batch, min(batch_size, 2))
        few = jax.tree.map(lambda x: x[:2], drawn)
        with scoring_precision():
            return _networks.are_finite(network.apply(masks.apply(mask, params), few))

    # -- A chunk: one sample, or `vmap_samples` of them with weights and keys stacked ----------

    def draw_weights(
        keys: Key, layout: _placement.Layout | None, zeros: tuple[_zeros.Zero, ...]
    ) -> Params:
        """Draws weights in the place of the params; they are never anywhere else."""

        def draw(key: Key) -> Params:
            return _placement.constrain(_zeros.fill(key, network.init(key), zeros), layout)

        return draw(keys) if vmap_samples == 1 else jax.vmap(draw)(keys)

    draw_placed_weights = jax.jit(draw_weights, static_argnames=("layout", "zeros"))

    @functools.partial(jax.jit, static_argnames="layout", donate_argnames="total")
    def add_drawn(
        total: Total,
        weights: Params,
        keys: Key,
        mask: Mask,
        batch: Batch,
        *,
        layout: _placement.Layout | None,
    ) -> Total:
        if vmap_samples == 1:
            chunk = sample(weights, keys, mask, batch)
        else:
            in_axes = (0 if reinit else None, 0, None, None)
            stacked = jax.vmap(sample, in_axes)(weights, keys, mask, batch)
            chunk = jax.tree.map(lambda s: jnp.sum(s, axis=0), stacked)
        return _placement.constrain(jax.tree.map(jnp.add, total, chunk), layout)

    def add_chunk(
        total: Total, keys: Key, params: Params, mask: Mask, batch: Batch, layouts: _Layouts
    ) -> Total:
        # Weights are drawn outside of the compiled sample: random generators take long to compile,
        # and the caller has most likely compiled `network.init` already.
        draw = draw_weights if layouts.weights is None else draw_placed_weights
        weights = params
        if reinit:
            fresh = draw(keys[..., 0], layout=layouts.weights, zeros=draws_of(mask).zeros)
            weights = _boxes.fit(fresh, mask)
            if reinit < 1:
                weights = _mix(weights, params, mask, fresh_share=float(reinit))
        return add_drawn(total, weights, keys[..., 1:], mask, batch, layout=layouts.total)

    # -- All chunks: on the devices of `shard_samples`, in a `lax.scan`, or in a loop ----------

    @functools.partial(jax.jit, static_argnames="layouts")
    def add_spread(
        total: Total, keys: Key, params: Params, mask: Mask, batch: Batch, layouts: _Layouts
    ) -> Total:
        def chunk(keys: Key) -> Total:
            nothing = _nothing(mask, params, layout=None)
            return add_chunk(nothing, keys, params, mask, batch, layouts._replace(total=None))

        assert shard_samples is not None
        spread = _placement.sum_over(chunk, keys, shard_samples)
        return _placement.constrain(jax.tree.map(jnp.add, total, spread), layouts.total)

    def score(key: Key, params: Params, mask: Mask, batch: Batch) -> tuple[Scores, Metrics]:
        _platform.warn_if_miscompiling()
        masks.check(mask, params)
        if from_data:
            _batches.check_batch(network, batch, labels=False, why="inputs='data'")
        if reinit:
            _ntk_sap_checks.check_fresh(network, params)
            draws_of(mask)  # raises if it is nothing
        everything = (key, params, mask, batch)
        key, params, mask, batch = _placement.vary_like(everything, everything)
        layouts = _layouts(params, mask)
        if shard_samples is not None:
            _ntk_sap_checks.check_axes(shard_samples, layouts.weights)
        # The new key tells if a transformation is under way that traces none of the arguments.
        new_key = jax.random.fold_in(typed_key(key), 0)
        is_traced = _placement.is_traced((new_key, params, mask, batch))
        if not is_traced:
            _networks.check_are_finite(outputs_are_finite(key, params, mask, batch))

        stack = (vmap_samples,) if vmap_samples > 1 else ()
        keys = jax.random.split(typed_key(key), (num_samples // vmap_samples, *stack, 3))
        total = _placement.vary_like(_nothing(mask, params, layout=layouts.total), params)
        arguments = (params, mask, batch, layouts)
        if shard_samples is not None:
            total = add_spread(total, keys, *arguments)
        elif is_traced:
            total, _ = jax.lax.scan(lambda t, k: (add_chunk(t, k, *arguments), None), total, keys)
        else:
            for chunk_keys in keys:
                total = add_chunk(total, chunk_keys, *arguments)
        trace, scores = _finish(total, mask, signed=signed)
        return scores, {"trace": trace / num_samples}

    return _zeros.says(score, network, draws_of if reinit else None)


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

    # Real for complex weights too: a weight is kept or not, whatever its phase.
    relaxed = masks.map_prunable(lambda m, p: m.astype(jnp.finfo(p.dtype).dtype), mask, params)
    return jax.value_and_grad(trace)(relaxed)


@functools.partial(jax.jit, static_argnames="layout")
def _nothing(
    mask: Mask, params: Params, *, layout: _placement.Layout | None
) -> tuple[jax.Array, Scores]:
    """A sum of no samples. Half precision is for the network, not for sums over samples."""
    zeros = masks.map_prunable(
        lambda m, p: jnp.zeros(m.shape, jnp.promote_types(jnp.finfo(p.dtype).dtype, jnp.float32)),
        mask,
        params,
    )
    trace = jnp.zeros((), jnp.result_type(*jax.tree.leaves(zeros)))
    return _placement.constrain((trace, zeros), layout)


@functools.partial(jax.jit, static_argnames="signed")
def _finish(total: Total, mask: Mask, *, signed: bool) -> tuple[jax.Array, Scores]:
    """The summed trace, and the scores from the summed gradient."""
    trace, gradient = total
    size = (lambda g: g) if signed else jnp.abs
    return trace, masks.map_prunable(lambda m, g: size(g) * m, mask, gradient)


@functools.partial(jax.jit, static_argnames="fresh_share")
def _mix(fresh: Params, given: Params, mask: Mask, *, fresh_share: float) -> Params:
    """Independent weights, in sums of the same variance; what is not prunable is fresh."""
    new, old = math.sqrt(fresh_share), math.sqrt(1 - fresh_share)
    return masks.merge(
        masks.map_prunable(lambda m, f, g: new * f + old * g, mask, fresh, given), fresh
    )


class _Layouts(NamedTuple):
    """The placement of weights, and of the sum of (trace, gradient), if spread over devices."""

    weights: _placement.Layout | None
    total: _placement.Layout | None


def _layouts(params: Params, mask: Mask) -> _Layouts:
    """Everything is placed as the params are."""
    trace, gradient = 0.0, masks.map_prunable(lambda m, p: p, mask, params)
    return _Layouts(_placement.layout(params), _placement.layout((trace, gradient)))
