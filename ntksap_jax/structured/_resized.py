"""A linen module run with other numbers of features, and the proof that it does the same."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import numbers as numbers_
import types
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from ntksap_jax import _jaxprs
from ntksap_jax.structured import _module_sizes, _program
from ntksap_jax.structured._program import Call, Operation

ANY = -1
"""A size that may be any: that of an axis along which an array is constant."""


@dataclasses.dataclass(frozen=True)
class Original:
    """A module that Flax is not to take for a submodule of what holds it."""

    module: nn.Module


class Resized(nn.Module):
    """A module some of whose layers have other numbers of features than its code says.

    While it runs, each submodule in `features` has that number in place of its own `features`: its
    layers, and blocks that have such a field. The parameters have the same paths as the module's
    own. It is called, initialised and trained like the module itself. Made by `resize`.

    Attributes:
        original: the module.
        features: pairs of a submodule's path, such as "block_0/conv1", and its numbers of features.
        sizes: other numbers of submodules that are others now: of each a path, and pairs of a
            number and what it is now, such as the number of heads.
    """

    original: Original
    features: tuple[tuple[str, tuple[int, ...]], ...] = ()
    sizes: tuple[tuple[str, tuple[tuple[int, int], ...]], ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the module, in this one's scope: without a level of its own in the paths."""
        return self._run("__call__", *args, **kwargs)

    def _run(self, method: str | Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls a method of the module by its name, or a function of the module."""
        assert self.scope is not None
        module: Any = self.original.module.clone(parent=self.scope.rewound())
        if isinstance(method, str):
            call = getattr(module, method)
        else:
            call = functools.partial(getattr(method, "__func__", method), module)
        give = _give_features(dict(self.features), dict(self.sizes), len(self.path))
        with nn.intercept_methods(give):
            return call(*args, **kwargs)

    @nn.nowrap
    def apply(self, *args: Any, method: Any = None, **kwargs: Any) -> Any:
        """Applies this module or, as Flax does, another method of the original."""
        return super().apply(*args, method=_of_original(method), **kwargs)

    @nn.nowrap
    def init_with_output(self, *args: Any, method: Any = None, **kwargs: Any) -> Any:
        """Initialises this module by its call or another method of the original."""
        return super().init_with_output(*args, method=_of_original(method), **kwargs)

    @nn.nowrap
    def __getattr__(self, name: str) -> Any:
        """Fields and methods of the original."""
        if name.startswith("_") or "original" not in self.__dict__:
            return super().__getattr__(name)
        value = getattr(self.original.module, name)
        return types.MethodType(_of_original(name), self) if inspect.ismethod(value) else value


def _of_original(method: Any) -> Any:
    """A method of a resized module that carries out another of the original."""
    if method is None:
        return None

    def run(resized: Resized, *args: Any, **kwargs: Any) -> Any:
        return resized._run(method, *args, **kwargs)

    return run


def _give_features(
    features: Mapping[str, tuple[int, ...]], sizes: Mapping[str, Any], depth: int
) -> Callable[..., Any]:
    """Makes an interceptor that sets the submodules' numbers of features while they run."""

    def interceptor(
        next_fun: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        module: Any = context.module
        path = "/".join(module.path[depth:])
        new: dict[str, Any] = {}
        if isinstance(module, Resized):  # it is resized once more, and hands these numbers on
            for name, numbers in (("features", features), ("sizes", sizes)):
                inside = {
                    below.removeprefix(f"{path}/"): number
                    for below, number in numbers.items()
                    if below.startswith(f"{path}/")
                }
                new[name] = tuple(sorted({**dict(getattr(module, name)), **inside}.items()))
        else:
            new |= _module_sizes.with_sizes(vars(module), dict(sizes.get(path, ())))
            if path in features and (own := features_of(module)):
                several = not isinstance(module.features, numbers_.Integral)
                new["features"] = features[path] if several else features[path][0]
                groups = getattr(module, "feature_group_count", 1)
                if groups > 1 and groups == own[-1]:  # depthwise: a group for each filter
                    new["feature_group_count"] = features[path][-1]
        old = {name: getattr(module, name) for name in new}
        # Modules are frozen; this one is the copy that `apply` works on.
        for name, value in new.items():
            object.__setattr__(module, name, value)
        try:
            return next_fun(*args, **kwargs)
        finally:
            for name, value in old.items():
                object.__setattr__(module, name, value)

    return interceptor


def features_of(module: nn.Module) -> tuple[int, ...]:
    """The numbers of filters that a module says in a field `features`, as `nn.Conv` does."""
    own = getattr(module, "features", None)
    numbers = own if isinstance(own, tuple | list) else (own,)
    whole = all(isinstance(n, numbers_.Integral) and not isinstance(n, bool) for n in numbers)
    return tuple(map(int, numbers)) if whole else ()


def resize(
    model: nn.Module, features: Mapping[str, Any], sizes: Mapping[str, Any] | None = None
) -> Resized:
    """Gives submodules of a model, perhaps a `Resized` one, other numbers of features.

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> small = resize(nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(3)]), {"layers_0": 5})
    >>> variables = small.init(jax.random.key(0), jnp.ones((1, 4)))
    >>> variables["params"]["layers_2"]["kernel"].shape
    (5, 3)
    """
    original, before, other = taken_apart(model)
    now = {
        path: (number,) if isinstance(number, int) else tuple(number)
        for path, number in features.items()
    }
    changed = {
        path: tuple((was, now) for was, now in _then(other.get(path, ()), pairs))
        for path, pairs in (sizes or {}).items()
    }
    return Resized(
        Original(original),
        tuple(sorted({**before, **now}.items())),
        tuple(sorted({**other, **changed}.items())),
    )


def _then(first: Any, second: Any) -> list[tuple[int, int]]:
    """Changes of numbers, and of what they have been changed to."""
    later = dict(map(tuple, second))
    once = [(was, later.pop(now, now)) for was, now in first]
    return sorted([*once, *later.items()])


def taken_apart(model: Any) -> tuple[Any, dict[str, tuple[int, ...]], dict[str, Any]]:
    """Returns a model as its author wrote it, and its features and sizes that are others now."""
    if isinstance(model, Resized):
        return model.original.module, dict(model.features), dict(model.sizes)
    return model, {}, {}


def mismatch(small: Any, variables: Any, call: Call, expected: list[Operation]) -> str | None:
    """Says where a resized model does something else than the original on fewer channels.

    A model's own code may depend on the number of channels: it may count them (a mean over them),
    slice them, or take another way if two numbers differ (`if x.shape[-1] != self.features`).

    Args:
        small: the resized model.
        variables: its variables, as shapes.
        call: how it is called.
        expected: the operations of the original, with the shapes that the results should have;
            `ANY` for a size that does not matter.

    Returns:
        What is different, None if nothing is.
    """
    try:
        program = _jaxprs.without_unread(_program.record(small, variables, call))
        found = _program.operations(program)
    except Exception as error:  # whatever the model's own code raises at these sizes
        cause = error.__cause__ or error
        first = str(cause).strip().splitlines() or [""]
        return f"{type(cause).__name__}: {first[0].partition(' (https:')[0]}"
    for want, have in zip(expected, found, strict=False):
        place = want.where or "the top level"
        same = want.name == have.name and want.constants == have.constants
        if not same or not _fits(want.shapes, have.shapes):
            return f"at {place} it does {_describe(have)} instead of {_describe(want)}"
        if want.settings != have.settings:
            pairs = zip(have.settings, want.settings, strict=True)
            other = next((f"{one} instead of {two}" for one, two in pairs if one != two))
            return f"at {place} its {_describe(have)} is by {other}"
        if want.sources != have.sources:
            return f"at {place} its {_describe(have)} is of other arrays"
        if want.lengths != have.lengths:
            return (
                f"at {place} its {_describe(have)} takes {_sizes(have.lengths)} together instead "
                f"of {_sizes(want.lengths)}"
            )
        if want.places != have.places:
            return f"at {place} its {_describe(have)} is at other places of the axis"
    if len(expected) != len(found):
        return f"it does {len(found)} operations instead of {len(expected)}"
    return None


def _fits(wanted: tuple[tuple[int, ...], ...], found: tuple[tuple[int, ...], ...]) -> bool:
    return len(wanted) == len(found) and all(
        len(want) == len(have) and all(w in (ANY, h) for w, h in zip(want, have, strict=True))
        for want, have in zip(wanted, found, strict=True)
    )


def _describe(operation: Operation) -> str:
    """An operation in words, such as "`div` by 8.0 to shape (2, 7)"."""
    shapes = " and ".join(
        "(" + ", ".join("any" if size == ANY else str(size) for size in shape) + ")"
        for shape in operation.shapes
    )
    numbers = f" with {', '.join(operation.constants)}" if operation.constants else ""
    return f"`{operation.name}`{numbers} of shape {shapes}"


def _sizes(lengths: tuple[int, ...]) -> str:
    return " x ".join(map(str, lengths))
