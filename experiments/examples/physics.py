r"""A physics-informed network, pruned by the neural tangent kernel of its equation's residual.

    python -m experiments.examples.physics

The network u(x, y) is to solve Poisson's equation Δu = f on the unit square, given u = g on its
boundary (Raissi, Perdikaris, Karniadakis, "Physics-informed neural networks", JCP 2019). It is
trained on no data but on the residuals Δu − f inside and u − g on the boundary, so the kernel that
governs its training is not that of its outputs but that of these residuals (Wang, Yu, Perdikaris,
"When and why PINNs fail to train: a neural tangent kernel perspective", JCP 2022). NTK-SAP takes
the kernel of any function of a network's outputs: here `apply` returns u, Δu − f and u − g at every
point, and `output_fn` says which of them the kernel is of.

What came out is in docs/results/other-models.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import ntksap_jax as nts
from experiments.examples import shared
from ntksap_jax import criteria, masks, schedules
from ntksap_jax.types import Key, Network, Params

BOUNDARY_WEIGHT = 100.0
"""Of the mean squared error on the boundary, beside that of the equation inside."""

Outputs = dict[str, jax.Array]


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
) -> list[shared.Run]:
    """Compares dense, random, and pruned by the kernel of the outputs and of the residual."""
    network = make_network(width, depth)

    def loss_fn(params: Params, state: None, key: Key) -> tuple[jax.Array, None]:
        points = draw_points(key, num_points)
        return jnp.sum(residual(network.apply(params, points)) ** 2), state

    decay = functools.partial(optax.cosine_decay_schedule, decay_steps=steps)
    train = shared.make_train(loss_fn, lambda rate: optax.adam(decay(rate)), steps=steps)
    ntk_sap = functools.partial(criteria.ntk_sap, network, inputs=draw_points)
    scores = {
        "random": criteria.random(),
        "NTK of u": ntk_sap(output_fn=lambda outputs: outputs["u"]),  # As of any other network.
        "NTK of the residual": ntk_sap(output_fn=residual),
    }
    schedule = schedules.exponential(density, rounds=rounds)

    def measure(params: Params, _: None) -> dict[str, float]:
        return {"error": relative_error(network, params)}

    runs = []
    for seed in seeds:
        init_key, mask_key, train_key = jax.random.split(jax.random.key(seed), 3)
        params = network.init(init_key)
        to_train = shared.make_masks(mask_key, params, scores, schedule=schedule)
        runs += shared.train_each(train, train_key, params, to_train, 5e-3, measure=measure)
    show(runs)
    return runs


def show(runs: Sequence[shared.Run]) -> None:
    """Prints a row for each method: median and range over the seeds."""
    columns = ("kept by", "weights", "loss", "relative error", "kept of each layer")
    rows = []
    for method in dict.fromkeys(run.method for run in runs):
        of_method = [run for run in runs if run.method == method]
        errors = [100 * run.results["error"] for run in of_method]
        layers = masks.layer_densities(of_method[0].mask).values()
        loss = np.median([run.losses[-100:].mean() for run in of_method])
        error = f"{np.median(errors):.1f} ({min(errors):.1f} to {max(errors):.1f}) %"
        kept = f"{masks.num_kept(of_method[0].mask):,}"
        rows.append((method, kept, f"{loss:.2g}", error, " ".join(f"{x:.2f}" for x in layers)))
    shared.show(columns, rows)


if __name__ == "__main__":
    main()
