"""Files of masks, packed and shrunk networks: nothing is lost, and damage or malice is an error."""

import json
import os
import pickle
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import safetensors.numpy
from damage import JSON, VALUES, damage_bytes, fuzzed, mutated, refused
from hypothesis import given, settings
from hypothesis import strategies as st

from ntksap_jax import _tensors, exchange, masks, models, structured

OLD = Path(__file__).parent / "data" / "version_0_1"

MASK = {
    "conv": {"kernel": (jnp.arange(36) % 3 == 0).reshape(3, 3, 1, 4), "bias": None},
    "head": [{"kernel": (jnp.arange(8) % 2 == 0).reshape(4, 2), "bias": None}],
}
PARAMS = masks.apply(
    MASK,
    {
        "conv": {"kernel": jnp.arange(36.0).reshape(3, 3, 1, 4), "bias": jnp.arange(4.0)},
        "head": [
            {"kernel": jnp.arange(8).reshape(4, 2).astype(jnp.bfloat16), "bias": jnp.zeros(2)}
        ],
    },
)
MODEL = nn.Dense(2, param_dtype=jnp.bfloat16)
VARIABLES = {
    "params": {
        "kernel": jnp.arange(6).reshape(3, 2).astype(jnp.bfloat16),
        "bias": jnp.array([-1, 0.5], jnp.bfloat16),
    }
}
INFO = exchange.MaskInfo(16 / 44, masks.digest(MASK), "ntk_sap", {"rounds": 20})


def save(kind, path):
    if kind == "mask":
        exchange.save_mask(path, MASK, criterion=INFO.criterion, config=INFO.config)
    elif kind == "packed":
        exchange.save_packed(path, PARAMS, MASK)
    else:
        structured.save(path, MODEL, VARIABLES)


def load(kind, path):
    if kind == "mask":
        return exchange.load_mask(path, like=PARAMS)
    if kind == "packed":
        return exchange.load_packed(path, like=PARAMS)
    return structured.load(path, MODEL)


def assert_whole(kind, value):
    one, other = value
    if kind == "mask":
        assert_same(one, MASK)
        assert other == INFO
    elif kind == "packed":
        assert_same(one, PARAMS)
        assert_same(other, MASK)
    else:
        assert not one.features  # none but the model's own
        assert_same(other, VARIABLES)


def assert_same(again, tree):
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    for old, new in zip(jax.tree.leaves(tree), jax.tree.leaves(again), strict=True):
        assert old.dtype == new.dtype
        np.testing.assert_array_equal(old, new)


@pytest.fixture(params=["mask", "packed", "shrunk"])
def kind(request):
    return request.param


@pytest.fixture
def path(tmp_path, kind):
    save(kind, tmp_path / f"{kind}.safetensors")
    return tmp_path / f"{kind}.safetensors"


# -- What is written is read -----------------------------------------------------------------------


def test_files_are_read_and_nothing_else_is_left_in_the_folder(kind, path):
    assert_whole(kind, load(kind, path))
    assert os.listdir(path.parent) == [path.name]
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()


def umask():
    current = os.umask(0)
    os.umask(current)
    return current


@pytest.mark.parametrize("kind", ["mask", "packed", "shrunk"])
def test_files_of_version_0_1_are_read(kind):
    assert_whole(kind, load(kind, OLD / f"{kind}.npz"))


@pytest.mark.parametrize("name", ["masks_save.npz", "mask.npz", "mask.safetensors"])
def test_masks_of_version_0_1_are_read(name):
    assert_same(masks.load(OLD / name, like=PARAMS), MASK)
    info = exchange.load_mask(OLD / name, like=PARAMS)[1]
    assert info == (INFO._replace(criterion=None, config={}) if "save" in name else INFO)


@settings(max_examples=20)
@given(st.integers(0, 99), st.none() | st.text(max_size=9), st.dictionaries(st.text(), JSON))
def test_masks_come_back_with_what_was_said_about_them(tmp_path_factory, seed, criterion, config):
    path = tmp_path_factory.mktemp("masks") / "mask.safetensors"
    rng = np.random.default_rng(seed)
    mask = masks.map_prunable(lambda m: jnp.asarray(rng.random(m.shape) < 0.5), MASK)
    exchange.save_mask(path, mask, criterion=criterion, config=config)
    again, info = exchange.load_mask(path, like=PARAMS)
    assert_same(again, mask)
    assert info == (masks.density(mask), masks.digest(mask), criterion, config)
    assert_same(masks.load(path, like=PARAMS), mask)
    masks.save(path, mask)
    assert exchange.load_mask(path, like=PARAMS)[1] == (*info[:2], None, {})


def test_what_others_say_in_their_files_is_left_to_them(tmp_path):
    path, arrays = tmp_path / "theirs.safetensors", {"kernel": np.array([[True, False]])}
    about = {"digest": "theirs", "config": "yaml: no", "checksum": "1", "criterion": "theirs"}
    safetensors.numpy.save_file(arrays, path, metadata=about)
    mask, info = exchange.load_mask(path, like=arrays)
    np.testing.assert_array_equal(mask["kernel"], arrays["kernel"])
    assert (info.criterion, info.config) == (None, {})
    for kind in (np.float32, np.uint8):
        safetensors.numpy.save_file({"kernel": arrays["kernel"].astype(kind)}, path)
        np.testing.assert_array_equal(masks.load(path, like=arrays)["kernel"], arrays["kernel"])
    safetensors.numpy.save_file({"kernel": np.array([[0.5, 0.0]])}, path)
    with pytest.raises(ValueError, match="'kernel' of type float64 holds numbers other than 0"):
        masks.load(path, like=arrays)
    old = tmp_path / "theirs.npz"
    np.savez(old, **arrays)
    with zipfile.ZipFile(old, "a") as archive:
        archive.comment = b"theirs"
    np.testing.assert_array_equal(masks.load(old, like=arrays)["kernel"], arrays["kernel"])


def test_arrays_of_the_other_byte_order_are_written_in_ours(tmp_path):
    path, native = tmp_path / "packed.safetensors", np.arange(6, dtype="f4").reshape(2, 3)
    for order in "<>":
        params = {"kernel": native.astype(f"{order}f4")}
        exchange.save_packed(path, params, {"kernel": native > 0})
        read, _ = exchange.load_packed(path, like={"kernel": native})
        np.testing.assert_array_equal(read["kernel"], native)


def test_masks_are_read_by_others_and_theirs_by_us(tmp_path):
    path, theirs = tmp_path / "mask.safetensors", tmp_path / "x.safetensors"
    save("mask", path)
    arrays = safetensors.numpy.load_file(path)
    wanted = masks.leaf_paths(MASK)
    assert arrays.keys() == wanted.keys()
    jax.tree.map(np.testing.assert_array_equal, arrays, wanted)
    about = taken_apart(path)[0]["__metadata__"]
    assert (about["digest"], float(about["density"])) == (INFO.digest, INFO.density)
    assert (about["criterion"], json.loads(about["config"])) == ("ntk_sap", {"rounds": 20})
    safetensors.numpy.save_file(arrays, theirs, metadata={"format": "pt"})
    assert_same(masks.load(theirs, like=PARAMS), MASK)


DTYPES = ["float32", "bfloat16", "float16", "int32", "uint8"]


@st.composite
def pruned_networks(draw):
    sizes = st.lists(st.integers(1, 5), min_size=2, max_size=4).map(tuple)
    shapes = draw(st.lists(sizes, min_size=1, max_size=4))
    density = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    mask = [{"kernel": rng.random(shape) < density, "bias": None} for shape in shapes]
    dtypes = [jnp.dtype(draw(st.sampled_from(DTYPES))) for _ in shapes]
    params = [
        {
            "kernel": np.where(m["kernel"], 10 * rng.normal(size=shape), 0).astype(dtype),
            "bias": np.ones(3, dtype),
        }
        for m, shape, dtype in zip(mask, shapes, dtypes, strict=True)
    ]
    return params, mask


@settings(max_examples=15)
@given(pruned_networks())
def test_packed_networks_lose_nothing(tmp_path_factory, network):
    params, mask = network
    path = tmp_path_factory.mktemp("packed") / "network.safetensors"
    exchange.save_packed(path, params, mask)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    again, kept = exchange.load_packed(path, like=like)
    assert_same(again, params)
    masks.check(kept, params)
    assert masks.digest(kept) == masks.digest(mask)


def test_nans_infinities_and_kept_zeros_stay_what_they_are(tmp_path):
    params = {"w": jnp.array([[jnp.nan, -jnp.inf, 0.0, 1e-45, -0.0, 0.0]])}
    mask = {"w": jnp.array([[True, True, True, True, True, False]])}
    exchange.save_packed(tmp_path / "x.safetensors", params, mask)
    again, kept = exchange.load_packed(tmp_path / "x.safetensors", like=params)
    assert np.asarray(again["w"]).tobytes() == np.asarray(params["w"]).tobytes()
    np.testing.assert_array_equal(kept["w"], mask["w"])


def test_the_size_of_a_packed_network_falls_with_the_density(tmp_path):
    path, sizes = tmp_path / "resnet20.safetensors", {}
    shapes = jax.eval_shape(models.resnet20().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(0)
    for density in (0.1, 0.02):
        variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype("f4"), shapes)
        mask = oracles.random_mask(jax.random.key(0), variables["params"], density)
        variables["params"] = jax.tree.map(
            lambda leaf, m: leaf if m is None else leaf * np.asarray(m), variables["params"], mask
        )
        exchange.save_packed(path, variables, {"params": mask})
        again, kept = exchange.load_packed(path, like=variables)
        assert_same(again, variables)
        assert masks.digest(kept["params"]) == masks.digest(mask)
        assert not jax.tree.leaves(kept["batch_stats"])
        sizes[density] = path.stat().st_size
        rest = sum(leaf.nbytes for leaf in jax.tree.leaves(variables)) - 4 * 270_896
        assert sizes[density] < 270_896 / 8 + 4 * masks.num_kept(mask) + rest + 12_000
    dense = 4 * 272_474
    assert sizes[0.1] < 0.16 * dense
    assert sizes[0.02] < 0.05 * dense


# -- What cannot be written ------------------------------------------------------------------------


def test_a_failed_save_leaves_what_was_there(kind, path, monkeypatch):
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "replace", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(kind, path)
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == [path.name]


def test_a_link_planted_where_files_are_written_aside_is_not_followed(kind, path, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    path.with_name(f".{path.name}.{os.getpid()}").symlink_to(victim)
    save(kind, path)
    assert victim.read_text() == "mine"
    assert_whole(kind, load(kind, path))


def test_other_endings_are_refused(kind, tmp_path):
    for name in ("x.npz", "x.pt", "x"):
        with pytest.raises(ValueError, match=f"got .*{name}, expected .* in .safetensors"):
            save(kind, tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("mask", "options", "match"),
    [
        (MASK, {"config": {"f": jax.nn.relu}}, "config: JSON cannot hold it"),
        (MASK, {"config": {"x": float("nan")}}, "config: JSON cannot hold it"),
        (MASK, {"criterion": len}, "criterion: got builtin_function_or_method"),
        (PARAMS, {}, "'conv/bias' is float32"),
    ],
)
def test_what_is_no_mask_or_no_json_is_an_error(tmp_path, mask, options, match):
    with pytest.raises(TypeError, match=match):
        exchange.save_mask(tmp_path / "mask.safetensors", mask, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("params", "mask", "error", "match"),
    [
        (jax.tree.map(jnp.ones_like, PARAMS), MASK, ValueError, r"'conv/kernel' has 24 pruned"),
        (PARAMS, {"params": MASK}, ValueError, "'params/conv/kernel' .* does not exist in the"),
        ({"w": jnp.ones((1, 2))}, {"w": jnp.ones((2, 1), bool)}, ValueError, "'w'.* has shape"),
        (PARAMS, jax.tree.map(jnp.ones_like, PARAMS), TypeError, "'conv/bias' is float32, exp"),
        (PARAMS, {"conv": {"kernel": None}}, ValueError, "no prunable leaf"),
        (
            {"w": jnp.zeros(2, jnp.float8_e5m2)},
            {"w": jnp.ones(2, bool)},
            TypeError,
            "'values/w' is float8_e5m2, expected one of",
        ),
    ],
)
def test_what_would_be_lost_is_an_error(tmp_path, params, mask, error, match):
    with pytest.raises(error, match=match):
        exchange.save_packed(tmp_path / "x.safetensors", params, mask)
    assert not list(tmp_path.iterdir())


def test_what_is_no_module_is_an_error(tmp_path):
    with pytest.raises(TypeError, match="model: got dict"):
        structured.save(tmp_path / "small.safetensors", {}, {})
    with pytest.raises(TypeError, match="model: got dict"):
        structured.load(OLD / "shrunk.npz", {})


# -- Files of other params -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "match"),
    [
        ({"tail": {"kernel": jnp.ones((4, 2), bool)}}, "holds leaf 'tail/kernel'"),
        ({"conv": {"kernel": jnp.ones((3, 3), bool)}}, r"'conv/kernel' has shape \(3, 3\)"),
    ],
)
def test_a_mask_for_other_params_is_an_error(tmp_path, mask, match):
    masks.save(tmp_path / "mask.safetensors", mask)
    for read in (masks.load, exchange.load_mask):
        with pytest.raises(ValueError, match=match):
            read(tmp_path / "mask.safetensors", like=PARAMS)


HALVES = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), PARAMS)


@pytest.mark.parametrize(
    ("like", "match"),
    [
        ({"conv": PARAMS["conv"]}, "'head/0/bias' is missing, in"),
        ({**PARAMS, "w": jnp.ones(1)}, r"'w' is of shape \(1,\) and type float32, in .* missing"),
        (
            {**PARAMS, "conv": {**PARAMS["conv"], "kernel": jnp.ones((2, 2))}},
            r"'conv/kernel' is of shape \(2, 2\).* in .* of shape \(3, 3, 1, 4\)",
        ),
        (HALVES, "type float16, in .* type float32"),
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_a_packed_network_of_other_params_is_an_error(tmp_path, like, match, old):
    save("packed", tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=match):
        exchange.load_packed(OLD / "packed.npz" if old else tmp_path / "x.safetensors", like=like)


def test_a_file_that_is_missing_or_holds_something_else_is_an_error(kind, path, tmp_path):
    with pytest.raises(FileNotFoundError):
        load(kind, tmp_path / "none.safetensors")
    for name in {"mask", "packed", "shrunk"} - {kind}:
        save(name, path)
        with pytest.raises(ValueError, match=path.name):
            load(kind, path)
        with pytest.raises(ValueError, match=f"{name}.npz"):
            load(kind, OLD / f"{name}.npz")


# -- Damage ----------------------------------------------------------------------------------------


def assert_whole_or_refused(kind, path):
    try:
        value = load(kind, path)
    except ValueError as error:
        refused(error, str(path))
        return
    assert_whole(kind, value)


def test_any_flipped_byte_is_an_error_or_changes_nothing(kind, path):
    whole = path.read_bytes()
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :])
        assert_whole_or_refused(kind, path)


def test_a_cut_file_is_an_error(kind, path):
    old = (OLD / f"{kind}.npz").read_bytes()
    old = old[: old.rindex(b"PK") + 22]  # A comment follows, but all arrays are there.
    for whole in (path.read_bytes(), old):
        for size in range(0, len(whole), 31):
            path.write_bytes(whole[:size])
            with pytest.raises(ValueError, match=path.name):
                load(kind, path)


@fuzzed
@given(data=st.data(), old=st.booleans())
def test_damage_is_an_error_or_changes_nothing(kind, path, data, old):
    whole = path.with_name("whole")
    whole = whole if whole.exists() else path.rename(whole)
    whole = OLD / f"{kind}.npz" if old else whole
    path.write_bytes(data.draw(damage_bytes(whole.read_bytes())))
    assert_whole_or_refused(kind, path)


# -- Files of strangers ----------------------------------------------------------------------------


def taken_apart(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def put_together(path, header, data):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@fuzzed
@given(st.data())
def test_any_header_is_refused_by_name_or_read(kind, path, data):
    whole = path.with_name("whole")
    header, contents = taken_apart(whole if whole.exists() else path.rename(whole))
    about = header["__metadata__"]
    if data.draw(st.booleans()):
        header = data.draw(mutated(header) | VALUES)
    else:  # What follows the checksum.
        about |= data.draw(
            st.dictionaries(st.sampled_from(sorted(about)), VALUES.map(json.dumps), max_size=3)
        )
        about["checksum"] = _tensors.checksum(about)
    put_together(path, header, contents)
    try:
        load(kind, path)
    except (ValueError, TypeError) as error:
        refused(error, str(path), *masks.leaf_paths(PARAMS))
    assert sorted(os.listdir(path.parent)) == [path.name, "whole"]


def forged(path, change):
    """Writes a packed network whose hashes are right, but that says something else."""
    _, about = _tensors.read_headers(path)
    arrays = safetensors.numpy.load_file(path)
    shapes = json.loads(about["shapes"])
    change(shapes, arrays)
    about |= {"shapes": json.dumps(shapes), "digest": _tensors.digest(arrays)}
    _tensors.write(path, arrays, about)


def deflated(size):
    return np.frombuffer(zlib.compress(bytes(size)), np.uint8)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda shapes, arrays: shapes.update({"conv/kernel": [10**15]}), r"shape \(10{15},\)"),
        (lambda shapes, arrays: shapes.update({"x": [1]}), "an array is missing"),
        (lambda shapes, arrays: arrays.pop("mask"), "an array is missing"),
        (lambda shapes, arrays: arrays.update({"mask": deflated(10**7)}), "another number of bits"),
        (lambda shapes, arrays: arrays.update({"mask": deflated(5)}), "another number of bits"),
        (lambda shapes, arrays: arrays.update({"mask": deflated(6)}), "as many values as its mask"),
        (lambda shapes, arrays: arrays.update({"mask": np.ones(6, np.uint8)}), "not a readable"),
    ],
)
def test_what_a_packed_network_says_is_not_believed(tmp_path, change, match):
    path = tmp_path / "packed.safetensors"
    save("packed", path)
    forged(path, lambda shapes, arrays: None)
    assert_whole("packed", load("packed", path))
    forged(path, change)
    assert_refused_in_little_memory("packed", path, match)


@pytest.mark.parametrize(
    ("name", "about", "match"),
    [
        ("params/kernel", {"features": '{"a": 1000000}'}, "1000000 features, expected 1 to 6"),
        ("params/kernel", {"version": "3"}, "does not hold a shrunk network"),
        ("params/bias/x", {}, "is a leaf and holds others"),
    ],
)
def test_what_a_shrunk_network_says_is_not_believed(tmp_path, name, about, match):
    path = tmp_path / "shrunk.safetensors"
    arrays = {"params/bias": np.zeros(2, "f4"), name: np.zeros((3, 2), "f4")}
    format_ = {"format": "ntksap_jax shrunk network", "version": "2", "features": "{}"}
    digest = {"digest": _tensors.digest(arrays)}
    _tensors.write(path, arrays, format_ | digest)
    if name == "params/kernel":
        structured.load(path, nn.Dense(2))
    _tensors.write(path, arrays, format_ | digest | about)
    assert_refused_in_little_memory("shrunk", path, match)


def assert_refused_in_little_memory(kind, path, match):
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=match) as error:
            load(kind, path)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()
    refused(error.value, str(path))


class Evil:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


def test_a_pickle_is_never_loaded(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file.npz"
    np.savez(path, about=np.array([Evil()], object), allow_pickle=True)
    for content in (path.read_bytes(), pickle.dumps(Evil())):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="file.npz"):
            load(kind, path)
    assert not Path("pwned").exists()


def test_what_is_no_regular_file_is_refused(kind, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", "."):
        with pytest.raises(ValueError, match="no regular file"):
            load(kind, tmp_path / name)


# -- Archives of strangers, in the format of version 0.1 -------------------------------------------


def member(text, data=b""):
    """An array of an .npz file with a header of one's own."""
    header = text.encode("latin-1")
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def header(shape, descr="|b1", order=False):
    return f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}\n"


def archive(path, members, method):
    with zipfile.ZipFile(path, "w", method) as made:
        for name, data in members:
            made.writestr(name, data)


HEAD = ("head/0/kernel.npy", member(header((4, 2)), bytes(8)))
LEAVES = st.sampled_from(["conv/kernel", "head/0/kernel", "about", "../../x", "", "a\0b"])
SHAPES = st.lists(
    st.integers(0, 6) | st.sampled_from([10**12, 2**62, 10**17, -1, 10**30]), max_size=5
).map(tuple) | st.sampled_from([(3, 3, 1, 4), (4, 2), (5,)])
DESCRS = st.sampled_from(["|b1", "|O", "<f4", "<U9", "|V0", "<M8[s]", "x", "<f99", "|b1' or '"])
HEADERS = st.builds(header, SHAPES, DESCRS, st.booleans()) | st.sampled_from(
    ["", "(" * 9000, "{}", "[]", "__import__('os')", "{'descr': [('a', '|O')]}", "\xff"]
)
METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


@fuzzed
@given(
    st.lists(
        st.tuples(
            st.tuples(LEAVES, st.sampled_from([".npy", ".bin", "/"])).map("".join),
            st.builds(member, HEADERS, st.binary(max_size=30)) | st.just(HEAD[1]),
        ),
        max_size=3,
        unique_by=lambda pair: pair[0].partition("\0")[0],
    ),
    st.sampled_from(METHODS),
)
def test_an_archive_of_anything_is_read_or_an_error_that_names_it(kind, tmp_path, members, method):
    path = tmp_path / "x.npz"
    archive(path, members, method)
    try:
        mask, _ = load(kind, path)
    except ValueError as error:
        refused(error, str(path))
    else:
        assert kind == "mask"
        masks.check(mask, PARAMS)
        for leaf in jax.tree.leaves(mask):
            assert set(np.unique(np.asarray(leaf).view(np.uint8))) <= {0, 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("members", "match"),
    [
        ([("x.npy", member(header((10**12,))))], "not as long as"),
        ([("head/0/bias.npy", member(header((2,), "|O"), bytes(16)))], "object"),
        ([HEAD, HEAD], "twice"),
        ([HEAD], "another method"),
        ([("../../kernel.npy", HEAD[1])], "'../../kernel'"),
        ([(HEAD[0], HEAD[1] + b"x")], "not as long as"),
        ([(HEAD[0], HEAD[1].replace(b"|b1", b"|S1"))], "expected .* bool"),
        ([(HEAD[0], member(header((10**7,)), bytes(10**7)))], "head/0/kern"),
        ([("x.npy", member(header((10**7,)), bytes(10**7)))], "'x'"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_what_an_archive_must_not_hold(tmp_path, members, match):
    path = tmp_path / "mask.npz"
    archive(path, members, zipfile.ZIP_LZMA if "method" in match else zipfile.ZIP_DEFLATED)
    assert_refused_in_little_memory("mask", path, match)
