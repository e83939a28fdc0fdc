"""Damage to files and to what they say, at random."""

import copy
import gc

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

fuzzed = settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# What Orbax leaves unfinished when it meets a damaged file is collected whenever Python pleases.
ORBAX_LEAVES_SOMETHING = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True, scope="module")
def collected_here():
    """Has it collected before the tests of the next file; for files that import this."""
    yield
    gc.collect()


def damage(rng, folder):
    """Damages one to three files: cuts them, flips a bit, overwrites a block, or removes them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in rng.sample(files, rng.choice([1, 1, 1, 2, 3])):
        data = bytearray(path.read_bytes())
        at = rng.randrange(len(data)) if data else 0
        how = rng.choice(["flip", "flip", "flip", "cut", "cut", "zeros", "remove"])
        if how == "remove":
            path.unlink()
            continue
        if how == "flip" and data:
            data[at] ^= 1 << rng.randrange(8)
        elif how == "zeros":
            data[at : at + 64] = bytes(len(data[at : at + 64]))
        else:
            del data[at:]
        path.write_bytes(data)


@st.composite
def damage_bytes(draw, data):
    """Bytes that are cut, changed, doubled or inserted in up to three places."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        start, end = sorted(draw(st.tuples(*[st.integers(0, len(data))] * 2)))
        how = draw(st.sampled_from(["cut", "change", "change", "double", "insert"]))
        if how == "cut":
            del data[start:end]
        elif how == "double":
            data[end:end] = data[start:end]
        elif how == "insert":
            data[start:start] = draw(st.binary(min_size=1, max_size=9))
        elif start < len(data):
            data[start] = draw(st.integers(0, 255))
    return bytes(data)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.text(max_size=5)
    # Finite ones come back exactly.
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
TEXTS = st.text(max_size=8) | st.sampled_from(
    ["", "..", "../../x", "/etc/passwd", "a\0b", "\ud800", "none", "x" * 5000, "\x1b[2J", "2:4"]
)
NUMBERS = (
    st.integers(-2, 200)
    | st.sampled_from([2**31, 2**63, -(2**70), 10**400, 1e308, -0.0, float("nan"), float("inf")])
    | st.floats()
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def places(value, path=()):
    """The path of everything in a nested value."""
    yield path
    if not isinstance(value, dict | list):
        return
    for key, each in value.items() if isinstance(value, dict) else enumerate(value):
        yield from places(each, (*path, key))


@st.composite
def mutated(draw, original):
    """A value from JSON in which one to three parts are others, gone, or new."""
    value = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from([path for path in places(value) if path] or [(None,)]))
        holder = value
        for key in path:
            holder = holder[key]
        how = draw(st.sampled_from(["replace", "remove", "add"]))
        if last is None:
            continue
        if how == "replace":
            holder[last] = draw(VALUES)
        elif how == "remove":
            del holder[last]
        elif isinstance(holder, dict):
            holder[draw(TEXTS)] = draw(VALUES)
    return value


def refused(error, *names):
    """Asserts that an error says which file, leaf or field it is about, and is not endless."""
    text = str(error)
    assert any(name in text for name in names), text
    assert len(text) < 3000
