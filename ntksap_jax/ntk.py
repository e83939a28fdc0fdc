r"""The neural tangent kernel: estimators of its trace, and the kernel itself for few outputs.

Complex params count as their real and imaginary parts.

For a function f: params -> outputs with Jacobian J (outputs flattened to n, params to p), the
empirical NTK is Θ = J Jᵀ (n × n) and its trace is the squared Frobenius norm of the Jacobian,

    tr Θ = ‖J‖²_F = E_v ‖J v‖² = E_u ‖Jᵀ u‖²,   v ~ N(0, I_p), u ~ N(0, I_n).

Each estimate contracts the Jacobian with one random *probe*: a tangent v in parameter space or a
cotangent u in output space. Both are unbiased with variance 2 ‖Θ‖²_F. The estimators know nothing
of masks: for the trace under a mask, tr Θ(m) = ‖J(θ⊙m) diag(m)‖²_F, pass f(θ) = g(θ⊙m).

On accelerators, differentiate under `jax.default_matmul_precision("highest")`, as `exact` does and
`criteria.ntk_sap` unless told otherwise: by default they multiply in bfloat16 or TF32.

Sums over the axes of the outputs are plain sums: `neural_tangents` divides by the number of logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from ntksap_jax import _platform
from ntksap_jax._draws import random_like
from ntksap_jax._pruned_kernel import pruned_kernel as pruned_kernel
from ntksap_jax.types import Key, Params

Fn = Callable[[Params], Any]
"""A function of the params alone, from params to an array (or a pytree of arrays) of outputs."""

Estimator = Callable[[Key, Fn, Params], jax.Array]
"""`estimator(key, fn, params)`: one random, differentiable estimate of the trace; a scalar."""


# -- Estimators: draw a probe, contract ------------------------------------------------------------


def jvp(key: Key, fn: Fn, params: Params) -> jax.Array:
    """Estimates tr Θ by ‖J v‖² with v ~ N(0, I): an exact directional derivative.

    The ε → 0 limit of NTK-SAP's finite difference (Wang, Li, Sun, ICLR 2023, Eq. 7) for smooth
    networks. Its gradient leaves out what the finite difference keeps, noisily, where a ReLU flips.
    Costs three forward passes, and six more for the gradient.

    Args:
        key: PRNG key of the probe.
        fn: function from params to outputs.
        params: where the Jacobian is taken; pytree of floating-point arrays.

    Returns:
        The estimate, a scalar.

    >>> import jax, jax.numpy as jnp
    >>> estimate = jvp(jax.random.key(0), lambda w: 3.0 * w, jnp.zeros(10_000))
    >>> round(float(estimate) / 90_000, 1)
    1.0
    """
    return tangent_norm(fn, params, random_like(key, params))


def finite_difference(key: Key, fn: Fn, params: Params, *, sigma: float = 0.01) -> jax.Array:
    """Estimates tr Θ by ‖f(θ + σ v) − f(θ)‖² / σ² with v ~ N(0, I), as the NTK-SAP authors do.

    The paper's ε is the *variance* σ² (1e-4) of the perturbation; the authors' code passes the
    standard deviation 0.01. (Their score lacks the constant 1/σ², which no ranking feels.) Costs
    two forward passes, and four more for the gradient.

    Args:
        key: PRNG key of the probe.
        fn: function from params to outputs.
        params: where the Jacobian is taken; pytree of floating-point arrays.
        sigma: standard deviation of the perturbation of each parameter.

    Returns:
        The estimate, a scalar.

    >>> import jax, jax.numpy as jnp
    >>> estimate = finite_difference(jax.random.key(0), lambda w: 3.0 * w, jnp.zeros(10_000))
    >>> round(float(estimate) / 90_000, 1)
    1.0
    """
    return difference_norm(fn, params, random_like(key, params), sigma=sigma)


def vjp(key: Key, fn: Fn, params: Params) -> jax.Array:
    """Estimates tr Θ by ‖Jᵀ u‖² with u ~ N(0, I) in output space.

    Mean and variance equal those of `jvp`, but the gradient with respect to one mask entry does not
    sum over the random tangents of all other parameters, and is less noisy.

    Args:
        key: PRNG key of the probe.
        fn: function from params to outputs.
        params: where the Jacobian is taken; pytree of floating-point arrays.

    Returns:
        The estimate, a scalar.

    >>> import jax, jax.numpy as jnp
    >>> estimate = vjp(jax.random.key(0), lambda w: 3.0 * w, jnp.zeros(10_000))
    >>> round(float(estimate) / 90_000, 1)
    1.0
    """
    outputs = jax.eval_shape(fn, params)
    return cotangent_norm(fn, params, random_like(key, outputs))


def log_vjp(key: Key, fn: Fn, params: Params) -> jax.Array:
    """Estimates Σ_l log tr Θ_l by Σ_l log ‖J_lᵀ u‖² with u ~ N(0, I), over the leaves l.

    Θ_l = J_l J_lᵀ is the part of the kernel that the weights of one leaf make: Θ = Σ_l Θ_l. In the
    derivative of the sum of logarithms each tr Θ_l counts by its relative change, so that no leaf
    drowns the others. One draw of a logarithm is lower in the mean than the logarithm of the mean.

    Args:
        key: PRNG key of the probe.
        fn: function from params to outputs.
        params: where the Jacobian is taken; pytree of floating-point arrays.

    Returns:
        The estimate, a scalar; without the leaves that no output depends on.

    >>> import jax, jax.numpy as jnp
    >>> estimate = log_vjp(jax.random.key(0), lambda w: 3.0 * w, jnp.zeros(10_000))
    >>> round(float(jnp.exp(estimate)) / 90_000, 1)
    1.0
    """
    outputs = jax.eval_shape(fn, params)
    return log_cotangent_norm(fn, params, random_like(key, outputs))


# -- Contractions with a given probe ---------------------------------------------------------------


def tangent_norm(fn: Fn, params: Params, tangent: Params) -> jax.Array:
    """Returns ‖J v‖² for the tangent v.

    Args:
        fn: function from params to outputs.
        params: where the Jacobian is taken.
        tangent: v, shaped like the params.

    >>> import jax.numpy as jnp
    >>> float(tangent_norm(lambda w: w**2, jnp.array([1.0, 2.0]), jnp.array([1.0, 1.0])))
    20.0
    """
    return _squared_norm(jax.jvp(fn, (params,), (tangent,))[1])


def difference_norm(fn: Fn, params: Params, tangent: Params, *, sigma: float) -> jax.Array:
    """Returns ‖f(θ + σ v) − f(θ)‖² / σ² for the tangent v.

    Args:
        fn: function from params to outputs.
        params: θ.
        tangent: v, shaped like the params.
        sigma: σ, the size of the step.

    >>> import jax.numpy as jnp
    >>> round(float(difference_norm(lambda w: 3 * w, jnp.ones(2), jnp.ones(2), sigma=0.5)), 4)
    18.0
    """
    ahead = fn(jax.tree.map(lambda p, v: p + sigma * v, params, tangent))
    return _squared_norm(jax.tree.map(jnp.subtract, ahead, fn(params))) / sigma**2


def cotangent_norm(fn: Fn, params: Params, cotangent: Any) -> jax.Array:
    """Returns ‖Jᵀ u‖² for the cotangent u. To be differentiated at most once.

    With g = Jᵀu held constant, ‖Jᵀu‖² = 2 ⟨u, J g⟩ − ‖g‖² in value and in first derivative. The
    right side makes its gradient reverse over forward mode, which XLA runs several times faster
    than the reverse over reverse mode of the left.

    Args:
        fn: function from params to outputs.
        params: where the Jacobian is taken.
        cotangent: u, shaped like the outputs.

    >>> import jax.numpy as jnp
    >>> float(cotangent_norm(lambda w: w**2, jnp.array([1.0, 2.0]), jnp.array([1.0, 1.0])))
    20.0
    """
    pulled_back = _pull_back(fn, params, cotangent)
    inner = _push_forward(fn, params, pulled_back, cotangent)
    return 2 * inner - _squared_norm(pulled_back)


def log_cotangent_norm(fn: Fn, params: Params, cotangent: Any) -> jax.Array:
    """Returns Σ_l log ‖J_lᵀ u‖² over the leaves l for the cotangent u, to be differentiated once.

    Leaves that no output depends on are left out. With g_l = J_lᵀu and d_l = g_l / ‖g_l‖² held
    constant, its derivative is that of 2 ⟨u, Σ_l J_l d_l⟩: see `cotangent_norm`.

    Args:
        fn: function from params to outputs.
        params: where the Jacobian is taken.
        cotangent: u, shaped like the outputs.

    >>> import jax.numpy as jnp
    >>> params = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}
    >>> fn = lambda p: jnp.sum(p["a"] ** 2) * p["b"]
    >>> value, slope = jax.value_and_grad(log_cotangent_norm, 1)(fn, params, jnp.array(1.0))
    >>> round(float(jnp.exp(value))), float(slope["b"])  # (6² + 12²) · 5², 2 / b
    (4500, 0.6666667)
    """
    pulled_back = _pull_back(fn, params, cotangent)
    squares = jax.tree.map(_squared_norm, pulled_back)
    direction = jax.tree.map(lambda g, n: g / jnp.where(n > 0, n, 1), pulled_back, squares)
    inner = _push_forward(fn, params, direction, cotangent)
    value = sum(jnp.where(n > 0, jnp.log(n), 0) for n in jax.tree.leaves(squares))
    return 2 * (inner - jax.lax.stop_gradient(inner)) + value


def _pull_back(fn: Fn, params: Params, cotangent: Any) -> Params:
    """Jᵀ u, held constant."""
    return jax.lax.stop_gradient(jax.vjp(fn, params)[1](cotangent)[0])


def _push_forward(fn: Fn, params: Params, direction: Params, cotangent: Any) -> jax.Array:
    """⟨u, J d⟩. JAX's gradient of complex params, d, is the conjugate of their direction."""
    moved = jax.jvp(fn, (params,), (jax.tree.map(jnp.conj, direction),))[1]
    return jnp.sum(jnp.stack(jax.tree.leaves(jax.tree.map(jnp.vdot, cotangent, moved))))


def _squared_norm(tree: Any) -> jax.Array:
    """The sum of squares of all entries; a norm would have no gradient at 0."""
    zero = jnp.zeros((), jnp.float32)  # Not float64 where that is enabled, nor half precision.
    return sum((jnp.sum(_square(leaf)) for leaf in jax.tree.leaves(tree)), zero)


def _square(leaf: jax.Array) -> jax.Array:
    if jnp.iscomplexobj(leaf):
        return jnp.square(leaf.real) + jnp.square(leaf.imag)
    return jnp.square(leaf)


# -- The kernel itself -----------------------------------------------------------------------------


def exact(fn: Fn, params: Params) -> jax.Array:
    """Computes the NTK Θ = J Jᵀ through the dense Jacobian: for small networks, and as an oracle.

    Args:
        fn: function from params to one array of n outputs in all, of any shape.
        params: pytree of floating-point arrays, p entries in all.

    Returns:
        Array of shape (n, n), over the flattened outputs; n × p numbers are held in memory.

    >>> import jax.numpy as jnp
    >>> exact(lambda w: jnp.array([w[0], 2 * w[1]]), jnp.ones(2)).tolist()
    [[1.0, 0.0], [0.0, 4.0]]
    """
    _platform.warn_if_miscompiling()
    outputs = jax.eval_shape(fn, params)
    with jax.default_matmul_precision("highest"):
        jacobian = jax.jacrev(fn)(params)
        rows = [leaf.reshape(outputs.size, -1) for leaf in jax.tree.leaves(jacobian)]
        return sum((jnp.real(leaf @ leaf.conj().T) for leaf in rows), jnp.zeros(()))


def eigenvalues(kernel: ArrayLike) -> np.ndarray:
    """Returns the eigenvalues of an NTK in descending order, in float64 and on the host.

    Their sum is the trace that NTK-SAP keeps from changing; their spread sets how fast gradient
    descent learns in each direction. The smallest are often a millionth of the largest, which is
    beyond a solver in float32.

    Args:
        kernel: symmetric, (n, n), such as from `exact` or `pruned_kernel`.

    >>> eigenvalues([[2.0, 0.0], [0.0, 5.0]]).tolist()
    [5.0, 2.0]
    """
    return np.linalg.eigvalsh(np.asarray(kernel, np.float64))[::-1]


def kernel_distance(kernel: ArrayLike, other: ArrayLike) -> float:
    """Returns 1 − ⟨Θ, Θ'⟩ / (‖Θ‖ ‖Θ'‖), from 0 (equal up to a factor) to 1.

    How far a kernel moves in training. Source: Fort et al., "Deep learning versus kernel learning",
    NeurIPS 2020.

    Args:
        kernel: Θ, (n, n).
        other: Θ', of the same shape.

    Returns:
        The distance; NaN if a kernel is 0, that of a network whose outputs depend on no weight.

    >>> kernel_distance([[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]])
    1.0
    """
    a, b = (np.asarray(theta, np.float64).ravel() for theta in (kernel, other))
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return max(0.0, float(1 - a @ b / norms)) if norms else float("nan")
