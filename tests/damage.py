"""Damage to files, at random."""

import gc

import pytest
from hypothesis import strategies as st

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
