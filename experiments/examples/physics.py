r"""A physics-informed network, pruned by the neural tangent kernel of its equation's residual.

    python -m experiments.examples.physics

The network u(x, y) is to solve Poisson's equation Δu = f on the unit square, given u = g on its
boundary (Raissi, Perdikaris, Karniadakis, "Physics-informed neural networks", JCP 2019). It is
trained on no data but on the residuals Δu − f inside and u − g on the boundary, so the kernel that
governs its training is not that of its outputs but that of these residuals (Wang, Yu, Perdikaris,
"When and why PINNs fail to train: a neural tangent kernel perspective", JCP 2022). NTK-SAP takes
the kernel of any function of a network's outputs: here `apply` returns u, Δu − f and u − g at every
point, and `output_fn` says which of them the kernel is of.

On one CPU core it takes about a minute, much of it compilation, and printed at density 0.05 (median
and range of three seeds, kept of each of the four layers):

    kept by                weights  relative error          kept of each layer
    dense                    8,384   2.0 (1.7 to 2.5) %     1.00 1.00 1.00 1.00
    random                     419  97.8 (95.3 to 112.0) %  0.04 0.05 0.05 0.06
    NTK of u                   419  11.7 (7.9 to 15.3) %    0.34 0.04 0.04 0.50
    NTK of the residual        419  11.7 (10.3 to 12.5) %   0.34 0.04 0.04 0.62

Either kernel keeps a third of the few weights of the first layer, of which chance leaves five. That
decides: between the two kernels themselves three seeds show no difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import ntksap_jax as nts
from ntksap_jax import criteria, masks, schedules
from ntksap_jax.types import Key, Mask, Network, Params

BOUNDARY_WEIGHT = 100.0
"""Of the mean squared error on the boundary, beside that of the equation inside."""

Outputs = dict[str, jax.Array]


class Run(NamedTuple):
    """A network that was pruned (or not) and trained."""

    method: str
    seed: int
    mask: Mask
    params: Params
    losses: np.ndarray
    error: float
    """Relative L2 error of u on a grid."""


# -- The problem -----------------------------------------------------------------------------------


def solution(point: jax.Array) -> jax.Array:
    """The solution, in closed form: what is on the boundary, and what the result is measured by."""
    x, y = point
    return jnp.sin(jnp.pi * x) * jnp.sin(2 * jnp.pi * y) + 0.5 * x * y


def laplacian(u: Callable[[jax.Array], Any], point: jax.Array) -> jax.Array:
    """Returns Δu at a point (2,): forward mode twice, for there are two inputs only."""

    def second(direction: jax.Array) -> jax.Array:
        def first(point: jax.Array) -> jax.Array:
            return jax.jvp(u, (point,), (direction,))[1]

        return jax.jvp(first, (point,), (direction,))[1]

    return jnp.sum(jax.vmap(second)(jnp.eye(2)))


def draw_points(key: Key, count: int) -> jax.Array:
    """Draws points (count, 2): first those inside of the square, then those on its boundary."""
    inside_key, along_key, side_key = jax.random.split(key, 3)
    inside = jax.random.uniform(inside_key, (num_inside(count), 2))
    num_boundary = count - len(inside)
    along = jax.random.uniform(along_key, (num_boundary,))
    side = jax.random.randint(side_key, (num_boundary,), 0, 4)
    across = (side % 2).astype(along.dtype)
    vertical = (side < 2)[:, None]
    boundary = jnp.where(vertical, jnp.stack([across, along], 1), jnp.stack([along, across], 1))
    return jnp.concatenate([inside, boundary])


def num_inside(count: int) -> int:
    """Returns how many of so many points lie inside: four fifths."""
    return count * 4 // 5


# -- The network -----------------------------------------------------------------------------------


class Surface(nn.Module):
    """u(x, y) by dense layers and tanh, of which there are second derivatives."""

    width: int
    depth: int

    @nn.compact
    def __call__(self, point: jax.Array) -> jax.Array:
        """Maps a point (2,) to a number."""
        x = 2 * point - 1
        for _ in range(self.depth):
            x = nn.tanh(nn.Dense(self.width)(x))
        return nn.Dense(1)(x)[0]


def make_network(width: int, depth: int) -> Network:
    """Makes the network whose outputs are u and how far it is from solving the problem."""
    model = Surface(width, depth)

    def init(key: Key) -> Params:
        return model.init(key, jnp.zeros(2))["params"]

    def apply(params: Params, points: jax.Array) -> Outputs:
        def u(point: jax.Array) -> Any:
            return model.apply({"params": params}, point)

        def outputs(point: jax.Array) -> Outputs:
            return {
                "u": u(point),
                "equation": laplacian(u, point) - laplacian(solution, point),
                "boundary": u(point) - solution(point),
            }

        return jax.vmap(outputs)(points)

    return nts.plain(init, apply, (2,))


def residual(outputs: Outputs) -> jax.Array:
    """Returns the vector r whose squared length is the loss: its kernel is that of the training."""
    inside = num_inside(len(outputs["u"]))
    equation, boundary = outputs["equation"][:inside], outputs["boundary"][inside:]
    weights = 1 / equation.size, BOUNDARY_WEIGHT / boundary.size
    return jnp.concatenate([jnp.sqrt(weights[0]) * equation, jnp.sqrt(weights[1]) * boundary])


def value(outputs: Outputs) -> jax.Array:
    """Returns u: the outputs as one would take them for any other network."""
    return outputs["u"]


# -- Pruning and training --------------------------------------------------------------------------


def make_train(network: Network, *, steps: int, num_points: int) -> Callable[..., Any]:
    """Makes `train(key, params, mask) -> (params, losses)`, compiled once for all masks."""

    @jax.jit
    def train(key: Key, params: Params, mask: Mask) -> tuple[Params, jax.Array]:
        schedule = optax.cosine_decay_schedule(5e-3, steps)
        optimizer = nts.constrain_to_mask(optax.adam(schedule), mask)
        params = masks.apply(mask, params)

        def loss_fn(params: Params, points: jax.Array) -> jax.Array:
            return jnp.sum(residual(network.apply(params, points)) ** 2)

        def step(state: Any, key: Key) -> tuple[Any, jax.Array]:
            params, opt_state = state
            points = draw_points(key, num_points)
            loss, gradients = jax.value_and_grad(loss_fn)(params, points)
            updates, opt_state = optimizer.update(gradients, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), loss

        state = (params, optimizer.init(params))
        (params, _), losses = jax.lax.scan(step, state, jax.random.split(key, steps))
        return params, losses

    return train


def relative_error(network: Network, params: Params, *, side: int = 64) -> float:
    """Returns ‖u − solution‖ / ‖solution‖ over a grid of side × side points."""
    ticks = (jnp.arange(side) + 0.5) / side
    grid = jnp.stack(jnp.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    u = network.apply(params, grid)["u"]
    exact = jax.vmap(solution)(grid)
    return float(jnp.linalg.norm(u - exact) / jnp.linalg.norm(exact))


def main(
    *,
    width: int = 64,
    depth: int = 3,
    density: float = 0.05,
    rounds: int = 10,
    steps: int = 1500,
    num_points: int = 160,
    seeds: Sequence[int] = (0, 1, 2),
) -> list[Run]:
    """Compares dense, random, and pruned by the kernel of the outputs and of the residual."""
    network = make_network(width, depth)
    train = make_train(network, steps=steps, num_points=num_points)
    scores = {
        "random": criteria.random(),
        "NTK of u": criteria.ntk_sap(network, inputs=draw_points, output_fn=value),
        "NTK of the residual": criteria.ntk_sap(network, inputs=draw_points, output_fn=residual),
    }
    schedule = schedules.exponential(density, rounds=rounds)
    runs = []
    for seed in seeds:
        init_key, mask_key, train_key = jax.random.split(jax.random.key(seed), 3)
        params = network.init(init_key)
        found = {"dense": masks.create(params)}
        for method, score in scores.items():
            found[method], _ = nts.prune(mask_key, params, score, schedule=schedule)
        for method, mask in found.items():
            trained, losses = train(train_key, params, mask)
            error = relative_error(network, trained)
            runs.append(Run(method, seed, mask, trained, np.asarray(losses), error))
    show(runs)
    return runs


def show(runs: Sequence[Run]) -> None:
    """Prints a row a method: median and range over the seeds."""
    table = Table("kept by", "weights", "loss", "relative error", "kept of each layer")
    for method in dict.fromkeys(run.method for run in runs):
        of_method = [run for run in runs if run.method == method]
        errors = [100 * run.error for run in of_method]
        layers = masks.layer_densities(of_method[0].mask).values()
        table.add_row(
            method,
            f"{masks.num_kept(of_method[0].mask):,}",
            f"{np.median([run.losses[-100:].mean() for run in of_method]):.2g}",
            f"{np.median(errors):.1f} ({min(errors):.1f} to {max(errors):.1f}) %",
            " ".join(f"{layer:.2f}" for layer in layers),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
