"""Going through the operations of a traced function, one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jax.extend import core

Step = Callable[[Any, list[Any], str], list[Any] | None]
"""`step(eqn, operands, where)` returns what the operation's results are.

None has a call, such as `jit`, entered: its own operations follow. `where` is the path of the
module that the operation stands in.
"""

MOVES = {
    *("reshape", "broadcast_in_dim", "transpose", "squeeze", "slice", "dynamic_slice", "split"),
    *("unstack", "rev", "tile", "copy", "copy_p", "convert_element_type", "reduce_precision"),
    *("stop_gradient", "optimization_barrier", "name", "pvary", "pcast"),
    *("sharding_constraint", "mesh_cast", "reshard"),
}
"""Operations whose results are entries of their operand: elsewhere, or in another type."""

# Operations with a jaxpr among their parameters that is not simply called.
_NO_CALLS = {"while", "scan", "cond", "reduce", "reduce_window", "shard_map", "pallas_call"}


def walk(
    jaxpr: Any,
    arguments: list[Any],
    step: Step,
    *,
    constant: Callable[[Any], Any] = lambda value: value,
    where: str = "",
) -> list[Any]:
    """Takes a program's operations in order, each by `step`, and returns what its outputs are.

    A call is entered each time it stands in the program, so that two activations that share a jaxpr
    stay apart.

    Args:
        jaxpr: closed, or open and without constants.
        arguments: what the program's arguments are, in whatever terms `step` computes.
        step: see `Step`.
        constant: says what a number or an array that the program holds is in these terms.
        where: path of the module that the program stands in.
    """
    body, constants = getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())
    values = dict(zip(body.constvars, map(constant, constants), strict=True))
    values.update(zip(body.invars, arguments, strict=True))

    def read(atom: Any) -> Any:
        return constant(atom.val) if isinstance(atom, core.Literal) else values[atom]

    for eqn in body.eqns:
        operands = [read(atom) for atom in eqn.invars]
        here = "/".join(filter(None, (where, str(eqn.source_info.name_stack))))
        results = step(eqn, operands, here)
        if results is None:
            results = walk(called(eqn), operands, step, constant=constant, where=here)
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in body.outvars]


def without_unread(jaxpr: Any) -> Any:
    """Returns a closed jaxpr without the operations that neither outputs nor effects need.

    Those inside of calls and loops stay.
    """
    body = jaxpr.jaxpr
    needed = {var for var in body.outvars if not isinstance(var, core.Literal)}
    kept = []
    for eqn in reversed(body.eqns):
        if eqn.effects or needed.intersection(eqn.outvars):
            kept.append(eqn)
            needed.update(var for var in eqn.invars if not isinstance(var, core.Literal))
    return jaxpr.replace(jaxpr=body.replace(eqns=kept[::-1]))


def dependencies(jaxpr: Any, arguments: list[set[str]]) -> list[set[str]]:
    """Returns what each of a program's outputs depends on. Of all loops, only `scan` is entered.

    Args:
        jaxpr: closed, or open and without constants.
        arguments: names for what each of its arguments is.
    """

    def step(eqn: Any, operands: list[Any], where: str) -> list[Any] | None:
        if eqn.primitive.name == "scan":
            fixed, carry, stacks = scan_parts(eqn, operands)
            turn = lambda carry: dependencies(eqn.params["jaxpr"], [*fixed, *carry, *stacks])  # noqa: E731
            return settled(turn, carry, join=set.union)
        if called(eqn) is not None:
            return None
        return [set().union(*operands)] * len(eqn.outvars)

    return walk(jaxpr, arguments, step, constant=lambda value: set())


def scan_parts(eqn: Any, operands: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """Returns what a scan leaves as it is, what it carries on, and what it slices."""
    first, last = eqn.params["num_consts"], eqn.params["num_consts"] + eqn.params["num_carry"]
    return operands[:first], operands[first:last], operands[last:]


def bodies(eqn: Any, operands: list[Any], *, carried: Any) -> list[tuple[Any, list[Any]]]:
    """Returns the programs in a loop, a branch or a `shard_map`, with their arguments.

    Args:
        eqn: any operation.
        operands: its own.
        carried: stands for what a loop carries from turn to turn.
    """
    name = eqn.primitive.name
    if name == "scan":
        fixed, carry, stacks = scan_parts(eqn, operands)
        return [(eqn.params["jaxpr"], [*fixed, *[carried] * len(carry), *stacks])]
    if name == "while":
        first = eqn.params["cond_nconsts"]
        last = first + eqn.params["body_nconsts"]
        carry = [carried] * len(operands[last:])
        return [(eqn.params["body_jaxpr"], [*operands[first:last], *carry])]
    if name == "cond":
        return [(branch, operands[1:]) for branch in eqn.params["branches"]]
    return [(eqn.params["jaxpr"], operands)] if name == "shard_map" else []


def settled(
    turn: Callable[[list[Any]], list[Any]], carry: list[Any], *, join: Callable[[Any, Any], Any]
) -> list[Any]:
    """Returns what a turn of a loop returns once it is known what all turns before may carry on.

    Args:
        turn: returns what is carried on, and possibly more.
        carry: what the first turn is given.
        join: what something is that is either of two.
    """
    while True:
        results = turn(carry)
        after = [join(old, new) for old, new in zip(carry, results, strict=False)]
        if after == carry:
            return results
        carry = after


def called(eqn: Any) -> Any:
    """Returns the jaxpr that an operation simply calls, as `jit` does; None of all others."""
    inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    return None if eqn.primitive.name in _NO_CALLS else inner


def bind(eqn: Any, operands: list[Any]) -> list[Any]:
    """Carries out an operation that is no call."""
    results = eqn.primitive.bind(*operands, **eqn.params)
    return list(results) if eqn.primitive.multiple_results else [results]


def run(jaxpr: Any, arguments: list[Any]) -> list[Any]:
    """Carries out a program."""

    def step(eqn: Any, operands: list[Any], where: str) -> list[Any] | None:
        return bind(eqn, operands) if called(eqn) is None else None

    return walk(jaxpr, arguments, step)
