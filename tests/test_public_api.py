"""The public API is what `ntksap_jax/__init__.py` lists: typed, documented, with examples.

What "public" means is said, and found out, in `public_api.py`. The examples are
run as doctests.
"""

import importlib
import inspect
import re
import types
from pathlib import Path

import flax.linen as nn
import public_api
import pytest

import ntksap_jax

MODULES = public_api.modules()


def documented(section, docstring):
    """Names that a Google-style section describes, in order; `None` without the section."""
    found = re.search(rf"^{section}:\n((?:    .*\n|\n)+)", f"{docstring}\n", flags=re.MULTILINE)
    return found and re.findall(r"^    (\*{0,2}\w+):", found.group(1), flags=re.MULTILINE)


def fields_of(cls):
    """What a record has, or a Flax module can be told."""
    of_flax = ("parent", "name") if issubclass(cls, nn.Module) else ()
    own = getattr(cls, "__annotations__", {})
    return [name for name in own if not name.startswith("_") and name not in of_flax]


def own_names(module):
    """(name, value) of the public names that a module is the home of."""
    for name in public_api.names(module):
        value = getattr(importlib.import_module(module), name)
        if public_api.home(module, name) == module and not isinstance(value, types.ModuleType):
            yield name, value


def test_the_package_shows_what_it_lists_and_no_more():
    for module in MODULES:
        importlib.import_module(module)
    shown = {name for name in dir(ntksap_jax) if not name.startswith("_")}
    assert shown == set(public_api.names(public_api.ROOT))
    functions = {name for name in shown if not inspect.ismodule(getattr(ntksap_jax, name))}
    assert functions == {"prune", "find_mask", "linen", "nnx", "plain", "constrain_to_mask"}


@pytest.mark.parametrize("module", MODULES)
def test_modules_show_what_they_define_and_list(module):
    loaded, public = importlib.import_module(module), set(public_api.names(module))
    shown = {name for name in dir(loaded) if not name.startswith("_")}
    assert public <= shown
    for name in shown - public:
        value = getattr(loaded, name)
        if hasattr(loaded, "__path__"):
            # A package has no names but those it lists, and its own files.
            assert isinstance(value, types.ModuleType) and value.__name__ == f"{module}.{name}"
        else:
            # Whatever else a module shows was imported for its own use.
            assert not inspect.getsource(loaded).count(f"def {name}("), name
            assert getattr(value, "__module__", "") != module, name


def test_helpers_are_not_public():
    for module in MODULES:
        values = {
            name: getattr(importlib.import_module(module), name)
            for name in public_api.names(module)
        }
        assert not values.keys() & {"annotations", "jax", "jnp", "np", "Any", "Callable"}, module
        for name, value in values.items():
            if name not in public_api.constants(module):
                where = getattr(value, "__module__", value.__name__)
                assert where.startswith("ntksap_jax"), f"{module}.{name}"


def test_a_name_has_one_home():
    for module in MODULES:
        for name in public_api.names(module):
            home = public_api.home(module, name)
            value = getattr(importlib.import_module(module), name)
            assert getattr(importlib.import_module(home), name) is value


@pytest.mark.parametrize("module", MODULES)
def test_every_name_is_documented_typed_and_exemplified(module):
    assert inspect.getdoc(importlib.import_module(module))
    problems = []
    for name, value in own_names(module):
        if name in public_api.constants(module):
            if not public_api.constants(module)[name][1]:
                problems.append(f"{name}: no docstring below it")
            continue
        docstring = inspect.cleandoc(value.__doc__ or "")
        if not docstring.partition("\n")[0].rstrip().endswith((".", ":")):
            problems.append(f"{name}: its docstring has no first sentence in one line")
        if ">>> " not in docstring:
            problems.append(f"{name}: no example")
        if inspect.isclass(value):
            if sorted(documented("Attributes", docstring) or []) != sorted(fields_of(value)):
                problems.append(f"{name}: Attributes are not {fields_of(value)}")
            continue
        parameters = inspect.signature(value).parameters.values()
        stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
        names = [stars.get(parameter.kind, "") + parameter.name for parameter in parameters]
        arguments = documented("Args", docstring)
        # One argument may be explained by the first sentence.
        if arguments != names and (arguments is not None or len(names) > 1):
            problems.append(f"{name}: Args are {arguments}, not {names}")
        untyped = [p.name for p in parameters if p.annotation is inspect.Parameter.empty]
        if untyped or "return" not in value.__annotations__:
            problems.append(f"{name}: without a type: {untyped or 'what it returns'}")
    assert not problems, "\n".join(problems)


def test_the_package_says_that_it_is_typed():
    assert (Path(ntksap_jax.__file__).parent / "py.typed").exists()
