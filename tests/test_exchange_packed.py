"""Packed networks: nothing is lost, the size falls with the density, damage is found."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntksap_jax import exchange, masks, models

DTYPES = ["float32", "bfloat16", "float16", "int32", "uint8"]


def networks_of(rng, shapes, dtypes, density):
    mask = [{"kernel": rng.random(shape) < density, "bias": None} for shape in shapes]
    params = [
        {
            "kernel": np.where(m["kernel"], 10 * rng.normal(size=shape), 0).astype(dtype),
            "bias": np.ones(3, dtype),
        }
        for m, shape, dtype in zip(mask, shapes, map(jnp.dtype, dtypes), strict=True)
    ]
    return params, mask


@st.composite
def pruned_networks(draw):
    sizes = st.lists(st.integers(1, 5), min_size=2, max_size=4).map(tuple)
    shapes = draw(st.lists(sizes, min_size=1, max_size=4))
    dtypes = [draw(st.sampled_from(DTYPES)) for _ in shapes]
    density = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    return networks_of(np.random.default_rng(draw(st.integers(0, 99))), shapes, dtypes, density)


def assert_same(again, params):
    assert jax.tree.structure(again) == jax.tree.structure(params)
    for old, new in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
        assert old.dtype == new.dtype
        np.testing.assert_array_equal(old, new)


@settings(max_examples=15)
@given(pruned_networks())
def test_nothing_is_lost(tmp_path_factory, network):
    params, mask = network
    path = tmp_path_factory.mktemp("packed") / "network.npz"
    exchange.save_packed(path, params, mask)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    again, kept = exchange.load_packed(path, like=like)
    assert_same(again, params)
    masks.check(kept, params)
    assert masks.digest(kept) == masks.digest(mask)


def test_nans_infinities_and_kept_zeros_stay_what_they_are(tmp_path):
    params = {"w": jnp.array([[jnp.nan, -jnp.inf, 0.0, 1e-45, -0.0, 0.0]])}
    mask = {"w": jnp.array([[True, True, True, True, True, False]])}
    exchange.save_packed(tmp_path / "x.npz", params, mask)
    again, kept = exchange.load_packed(tmp_path / "x.npz", like=params)
    assert np.asarray(again["w"]).tobytes() == np.asarray(params["w"]).tobytes()
    np.testing.assert_array_equal(kept["w"], mask["w"])


def resnet(density):
    images = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(models.resnet20().init, jax.random.key(0), images)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)
    mask = masks.map_prunable(
        lambda m: rng.random(m.shape) < density, masks.create(variables["params"])
    )
    pruned = masks.map_prunable(np.multiply, mask, variables["params"])
    return variables | {"params": masks.merge(pruned, variables["params"])}, mask


def test_the_size_on_disk_falls_with_the_density(tmp_path):
    path = tmp_path / "resnet20.npz"
    sizes = {}
    for density in (0.1, 0.02):
        variables, mask = resnet(density)
        exchange.save_packed(path, variables, {"params": mask})
        again, kept = exchange.load_packed(path, like=variables)
        assert_same(again, variables)
        assert masks.digest(kept["params"]) == masks.digest(mask)
        assert not jax.tree.leaves(kept["batch_stats"])
        sizes[density] = path.stat().st_size
        rest = sum(leaf.nbytes for leaf in jax.tree.leaves(variables)) - 4 * 270_896
        bits = 270_896 / 8
        assert sizes[density] < bits + 4 * masks.num_kept(mask) + rest + 4000
    dense = 4 * 272_474
    assert sizes[0.1] < 0.16 * dense
    assert sizes[0.02] < 0.05 * dense


# -- Errors ----------------------------------------------------------------------------------------

PARAMS, MASK = networks_of(np.random.default_rng(0), [(3, 4), (2, 2, 5)], ["float32"] * 2, 0.5)


@pytest.mark.parametrize(
    ("params", "mask", "error", "match"),
    [
        (jax.tree.map(jnp.ones_like, PARAMS), MASK, ValueError, r"'0/kernel' has \d pruned"),
        (PARAMS, {"params": MASK}, ValueError, "'params/0/kernel' .* does not exist in the tree"),
        (PARAMS[:1], MASK, ValueError, "'1/kernel' .* does not exist in the tree"),
        ({"w": jnp.ones((1, 2))}, {"w": jnp.ones((2, 1), bool)}, ValueError, "'w'.* has shape"),
        (PARAMS, jax.tree.map(jnp.ones_like, PARAMS), TypeError, "'0/bias' is float32, expected"),
        (PARAMS, [{"kernel": None}], ValueError, "no prunable leaf"),
    ],
)
def test_what_would_be_lost_is_an_error(tmp_path, params, mask, error, match):
    with pytest.raises(error, match=match):
        exchange.save_packed(tmp_path / "x.npz", params, mask)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def path(tmp_path):
    exchange.save_packed(tmp_path / "network.npz", PARAMS, MASK)
    return tmp_path / "network.npz"


@pytest.mark.parametrize(
    ("like", "match"),
    [
        (PARAMS[:1], "'1/bias' is missing, in"),
        (
            [*PARAMS, {"w": jnp.ones(1)}],
            r"'2/w' is of shape \(1,\) and type float32, in .* missing",
        ),
        ([PARAMS[0], PARAMS[0]], r"'1/kernel' is of shape \(3, 4\).* in .* of shape \(2, 2, 5\)"),
        (jax.tree.map(lambda p: p.astype(jnp.float16), PARAMS), "type float16, in .* type float32"),
    ],
)
def test_a_file_of_another_network_is_an_error(path, like, match):
    with pytest.raises(ValueError, match=match):
        exchange.load_packed(path, like=like)


def test_any_flipped_byte_is_an_error_or_changes_nothing(path):
    whole = path.read_bytes()
    unnoticed = 0
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1 :])
        try:
            again, kept = exchange.load_packed(path, like=PARAMS)
        except ValueError as error:
            assert str(path) in str(error)
            continue
        assert_same(again, PARAMS)
        assert masks.digest(kept) == masks.digest(MASK)
        unnoticed += 1
    assert unnoticed < len(whole) / 3  # of a zip archive dates, versions and the like


def test_a_cut_or_foreign_file_is_an_error(path, tmp_path):
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"network\.npz is not a readable"):
            exchange.load_packed(path, like=PARAMS)
    masks.save(path, MASK)
    with pytest.raises(ValueError, match=r"network\.npz is not .* a packed network"):
        exchange.load_packed(path, like=PARAMS)
    with pytest.raises(FileNotFoundError):
        exchange.load_packed(tmp_path / "none.npz", like=PARAMS)


def forged(path, change):
    """Writes a file whose hashes are right, but that says something else."""
    with np.load(path) as archive:
        members = {name: archive[name] for name in archive.files}
    about = json.loads(members["about"].tobytes())
    change(about, members)
    body = hashlib.sha256(members["mask"].tobytes() + members["values"].tobytes())
    about["sha256"] = body.hexdigest()
    members["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez_compressed(path, **members)
    comment = hashlib.sha256(members["about"].tobytes()).hexdigest().encode()
    data = path.read_bytes()
    path.write_bytes(data[:-2] + len(comment).to_bytes(2, "little") + comment)


def larger(about, members):
    about["leaves"][0][2] = [10**15]


def twice(about, members):
    about["leaves"].append(about["leaves"][0])


def longer(about, members):
    members["values"] = np.zeros(10**6, np.uint8)


def shorter(about, members):
    members["mask"] = members["mask"][:-1]


def without_version(about, members):
    del about["version"]


def of_another_type(about, members):
    members["values"] = members["values"].view(np.int8)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (larger, r"like: leaf '0/bias' .* of shape \(1000000000000000,\)"),
        (twice, "a leaf is there twice"),
        (longer, "it has no 'values' of"),
        (shorter, "it has no 'mask' of 4 bytes"),
        (without_version, "version"),
        (of_another_type, "it has no 'values' of"),
    ],
)
def test_what_a_file_says_is_not_believed(path, change, match):
    forged(path, lambda about, members: None)
    assert_same(exchange.load_packed(path, like=PARAMS)[0], PARAMS)
    forged(path, change)
    with pytest.raises(ValueError, match=match):
        exchange.load_packed(path, like=PARAMS)
