"""Mask files that say where the mask comes from."""

import json
import os
import struct
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntksap_jax import exchange, masks

PARAMS = {
    "conv": {"kernel": jnp.ones((3, 3, 1, 4)), "bias": jnp.zeros(4)},
    "head": [{"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}],
}


@pytest.fixture(scope="module", params=["npz", "safetensors"])
def name(request):
    if request.param == "safetensors":
        pytest.importorskip("safetensors", reason="needs safetensors: pip install '.[exchange]'")
    return f"mask.{request.param}"


def random_mask(seed, density=0.5):
    rng = np.random.default_rng(seed)
    return masks.map_prunable(
        lambda m: jnp.asarray(rng.random(m.shape) < density), masks.create(PARAMS)
    )


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


@settings(max_examples=50)
@given(
    st.integers(0, 99),
    st.none() | st.text(max_size=9),
    st.dictionaries(st.text(max_size=9), JSON, max_size=4),
)
def test_files_round_trip(tmp_path_factory, name, seed, criterion, config):
    path = tmp_path_factory.mktemp("masks") / name
    mask = random_mask(seed)
    exchange.save_mask(path, mask, criterion=criterion, config=config)
    again, info = exchange.load_mask(path, like=PARAMS)
    masks.check(again, PARAMS)
    assert masks.digest(again) == masks.digest(mask) == info.digest
    assert info == (masks.density(mask), info.digest, criterion, config)
    assert os.listdir(path.parent) == [name]


def test_npz_files_are_those_of_masks(tmp_path):
    path, mask = tmp_path / "mask.npz", random_mask(0)
    exchange.save_mask(path, mask, criterion="ntk_sap", config={"rounds": 20})
    assert masks.digest(masks.load(path, like=PARAMS)) == masks.digest(mask)
    with np.load(path, allow_pickle=False) as archive:
        assert sorted(archive.files) == ["conv/kernel", "head/0/kernel"]
    masks.save(path, mask)
    again, info = exchange.load_mask(path, like=PARAMS)
    assert masks.digest(again) == masks.digest(mask)
    assert info == (masks.density(mask), masks.digest(mask), None, {})


def test_safetensors_files_are_read_by_others(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy", reason="needs safetensors")
    path, mask = tmp_path / "mask.safetensors", random_mask(0)
    exchange.save_mask(path, mask, criterion="ntk_sap", config={"rounds": 20})
    arrays = numpy.load_file(path)
    for leaf, array in masks.leaf_paths(mask).items():
        np.testing.assert_array_equal(arrays.pop(leaf), array)
    assert not arrays
    # The format's own words: a length, then JSON.
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    words = json.loads(data[8 : 8 + length])["__metadata__"]
    assert words["digest"] == masks.digest(mask)
    assert float(words["density"]) == masks.density(mask)
    assert (words["criterion"], json.loads(words["config"])) == ("ntk_sap", {"rounds": 20})


def test_any_flipped_byte_is_an_error_or_changes_nothing(tmp_path, name):
    path, mask = tmp_path / name, random_mask(1)
    exchange.save_mask(path, mask, criterion="ntk_sap", config={"rounds": 20})
    whole = path.read_bytes()
    wanted = (masks.density(mask), masks.digest(mask), "ntk_sap", {"rounds": 20})
    unnoticed = 0
    for i in range(len(whole)):
        for bit in (1, 32):
            path.write_bytes(whole[:i] + bytes([whole[i] ^ bit]) + whole[i + 1 :])
            try:
                again, info = exchange.load_mask(path, like=PARAMS)
            except ValueError as error:
                assert str(path) in str(error)
                continue
            assert (masks.digest(again), info) == (masks.digest(mask), wanted)
            unnoticed += 1
    assert unnoticed < len(whole) / 2  # of a zip archive dates, versions and the like


def test_a_cut_file_is_an_error(tmp_path, name):
    path = tmp_path / name
    exchange.save_mask(path, random_mask(1), criterion="ntk_sap")
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"mask\.(npz|safetensors)"):
            exchange.load_mask(path, like=PARAMS)


def rewritten(path, change):
    """Changes what a file says about its mask."""
    if path.suffix == ".npz":
        with zipfile.ZipFile(path, "a") as archive:
            member = archive.infolist()[0]
            member.comment = json.dumps(change(json.loads(member.comment))).encode()
            archive.comment = archive.comment
        return
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = change(header["__metadata__"])
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


@pytest.mark.parametrize(
    "change",
    [
        lambda words: words | {"config": '{"rounds": 1}'},
        lambda words: words | {"criterion": "random"},
        lambda words: {k: v for k, v in words.items() if k != "checksum"},
        lambda words: {k: v for k, v in words.items() if k != "digest"},
        lambda words: words | {"format": "another"},
    ],
)
def test_words_that_were_not_saved_are_an_error(tmp_path, name, change):
    path = tmp_path / name
    exchange.save_mask(path, random_mask(1), criterion="ntk_sap", config={"rounds": 20})
    rewritten(path, lambda words: words)
    exchange.load_mask(path, like=PARAMS)
    rewritten(path, change)
    with pytest.raises(ValueError, match=r"mask\.\w+ is damaged: what it says about the mask"):
        exchange.load_mask(path, like=PARAMS)


def test_the_words_of_another_mask_are_an_error(tmp_path, name):
    path, other = tmp_path / name, tmp_path / f"other-{name}"
    exchange.save_mask(path, random_mask(1))
    exchange.save_mask(other, random_mask(2))
    words = {}
    rewritten(other, lambda found: words.update(found) or found)
    rewritten(path, lambda _: words)
    with pytest.raises(ValueError, match="is damaged: it does not hold the mask that was saved"):
        exchange.load_mask(path, like=PARAMS)


def test_files_for_other_params_are_errors(tmp_path, name):
    path = tmp_path / name
    exchange.save_mask(path, {"tail": {"kernel": jnp.ones((4, 2), bool)}})
    with pytest.raises(ValueError, match="'tail/kernel'"):
        exchange.load_mask(path, like=PARAMS)
    exchange.save_mask(path, {"conv": {"kernel": jnp.ones((3, 3, 1, 5), bool)}})
    with pytest.raises(ValueError, match=r"'conv/kernel' has shape \(3, 3, 1, 5\)"):
        exchange.load_mask(path, like=PARAMS)
    with pytest.raises(FileNotFoundError):
        exchange.load_mask(tmp_path / f"none-{name}", like=PARAMS)


def test_a_failed_save_leaves_what_was_there(tmp_path, name, monkeypatch):
    path = tmp_path / name
    exchange.save_mask(path, random_mask(1))
    before = path.read_bytes()

    def fail(*args):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        exchange.save_mask(path, random_mask(2))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"config": {"f": jax.nn.relu}}, TypeError, "config: JSON cannot hold it"),
        ({"config": {"x": float("nan")}}, TypeError, "config: JSON cannot hold it"),
        ({"criterion": len}, TypeError, "criterion: got builtin_function_or_method"),
        ({"config": {"x": "y" * 70000}}, ValueError, r"config: takes 70\d+ bytes.*\.safetensors"),
    ],
)
def test_what_cannot_be_written_is_an_error(tmp_path, options, error, match):
    with pytest.raises(error, match=match):
        exchange.save_mask(tmp_path / "mask.npz", random_mask(1), **options)
    assert not list(tmp_path.iterdir())


def test_only_masks_and_known_endings_are_written(tmp_path):
    with pytest.raises(TypeError, match="'conv/bias' is float32"):
        exchange.save_mask(tmp_path / "mask.npz", PARAMS)
    with pytest.raises(ValueError, match=r"mask\.pt, expected .* \.npz or \.safetensors"):
        exchange.save_mask(tmp_path / "mask.pt", random_mask(1))
    with pytest.raises(ValueError, match=r"mask\.pt, expected"):
        exchange.load_mask(tmp_path / "mask.pt", like=PARAMS)
    assert not list(tmp_path.iterdir())


def test_without_safetensors_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    path = tmp_path / "mask.safetensors"
    with pytest.raises(ImportError, match=r"pip install 'ntksap_jax\[exchange\]'"):
        exchange.save_mask(path, random_mask(1))
    with pytest.raises(ImportError, match="safetensors package"):
        exchange.load_mask(path, like=PARAMS)
