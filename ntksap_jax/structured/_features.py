"""Marks the outputs of linen modules that say in a field `features` how many filters they have."""

from __future__ import annotations

from typing import Any

from jax.ad_checkpoint import checkpoint_name

from ntksap_jax.structured import _resized

_NAME = "ntksap_jax/features:"


def marked(modules: set[str]) -> Any:
    """Makes an interceptor that marks the outputs that have as many features as a module says.

    It adds the paths of all modules to `modules`.
    """
    changed: dict[str, tuple[int, ...]] = {}

    def name_features(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module, path = context.module, "/".join(context.module.path)
        if isinstance(module, _resized.Resized):  # of two around each other, the outer one decides
            for name, number in module.features:
                changed.setdefault(f"{path}/{name}".lstrip("/"), number)
        modules.add(path)
        outputs = next_fun(*args, **kwargs)
        numbers = _resized.features_of(module)
        if context.method_name == "__call__" and numbers:
            numbers = changed.get(path, numbers)
            if getattr(outputs, "shape", ())[-len(numbers) :] == numbers:
                return checkpoint_name(outputs, f"{_NAME}{len(numbers)}:{path}")
        return outputs

    return name_features


def read(eqn: Any) -> tuple[str, tuple[int, ...]] | None:
    """Returns the module's path and its numbers of features if an operation is such a mark."""
    name = str(eqn.params.get("name", ""))
    if not name.startswith(_NAME):
        return None
    count, _, path = name.removeprefix(_NAME).partition(":")
    return path, eqn.outvars[0].aval.shape[-int(count) :]
