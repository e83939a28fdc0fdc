"""Files from strangers: what they hold is used or refused by name, and nothing else happens.

`NTKSAP_LONG_TESTS=all` tries 3000 inputs of each kind instead of 100.
"""

import copy
import io
import json
import os
import pickle
import tempfile
import tracemalloc
import zipfile
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from damage import damage_bytes
from fake_runs import configure, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from experiments.cifar import config as config_lib
from experiments.cifar import pretrained, search_files
from experiments.cifar.config import Config
from experiments.data import crops
from experiments.data.image_folders import tiny_imagenet
from experiments.report import runs
from experiments.shell.configuration import to_dict
from experiments.shell.errors import UserError
from experiments.storage import files, run_folder
from experiments.sweep import cells, grid
from experiments.sweep.options import parse, plan
from ntksap_jax import masks
from ntksap_jax.structured import shrinking

LONG = os.environ.get("NTKSAP_LONG_TESTS") == "all"
fuzzed = settings(
    max_examples=3000 if LONG else 100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

PARAMS = {
    "conv": {"kernel": jax.ShapeDtypeStruct((3, 3, 1, 2), jnp.float32)},
    "head": {
        "kernel": jax.ShapeDtypeStruct((2, 5), jnp.float32),
        "bias": jax.ShapeDtypeStruct((5,), jnp.float32),
    },
}
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


# -- Configurations ------------------------------------------------------------------------------

FIELDS = [path[-1] for path in places(to_dict(Config())) if path]


def read_config(path):
    return config_lib.from_dict(files.read_json(path), str(path))


@fuzzed
@given(mutated(to_dict(Config())) | VALUES)
def test_any_configuration_is_valid_or_the_field_is_named(tmp_path, values):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    try:
        config = read_config(path)
    except ValueError as error:
        refused(error, str(path), "expected a dict")
        return
    again = config_lib.from_dict(json.loads(json.dumps(to_dict(config))))
    assert again == config
    # Whatever it says, the run folder is one folder in `runs_dir`.
    assert cells.folder(config).parent == config.runs_dir
    assert len(os.fsencode(cells.folder(config).name)) < 255


@fuzzed
@given(st.binary(max_size=60) | st.sampled_from([b"[" * 10**5, b'{"a":' * 10**5, b"9" * 10**5]))
def test_any_bytes_for_json_are_refused_or_read(tmp_path, data):
    path = tmp_path / "config.json"
    path.write_bytes(data)
    with pytest.raises(UserError, match="cannot read .*config.json"):
        run_folder.read_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"seed": 1, "seed": 2}', "a key occurs twice"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5000, "Exceeds the limit"),
        ("[]", "expected a dict, got list"),
    ],
)
def test_json_that_could_mean_two_things_or_too_much_is_refused(tmp_path, text, why):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=f"cannot read .*config.json: .*{why}"):
        run_folder.read_config(tmp_path)


def test_a_text_without_end_is_not_read(tmp_path):
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(files.LARGEST + 1)  # Takes no space on the disk.
    with pytest.raises(UserError, match="expected at most"):
        run_folder.read_config(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="no regular file"):
        run_folder.read_config(tmp_path)


# -- Grids ---------------------------------------------------------------------------------------

NAMES = st.sampled_from([*map(str, FIELDS), "preset", "grid", "set", "grids", "__class__", "a b"])
GRID = """
preset = "demo"
runs_dir = "runs/x"
[set]
epochs = 4
label = "a"
[grid]
criterion = ["dense", "random"]
density = [0.05, 0.02]
seed = [0, 1]
[[grids]]
criterion = ["synflow"]
drop_epochs = [[1], [2, 3]]
"""


def as_toml(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{as_toml(k)} = {as_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(as_toml, value))}]"
    if isinstance(value, str):
        return json.dumps(value)
    return {None: '"none"', True: "true", False: "false"}.get(value, str(value))


@st.composite
def grid_texts(draw):
    lines = [
        f"{as_toml(draw(NAMES))} = {as_toml(draw(VALUES))}" for _ in range(draw(st.integers(0, 1)))
    ]
    for header in draw(st.lists(st.sampled_from(["[set]", "[grid]", "[[grids]]"]), max_size=3)):
        lines.append(header)
        for name in draw(st.lists(NAMES, max_size=4, unique=True)):
            value = draw(VALUES if header == "[set]" else st.lists(VALUES, max_size=2))
            lines.append(f"{name if name.isidentifier() else as_toml(name)} = {as_toml(value)}")
    return "\n".join(lines)


def read_grid(path):
    return grid.cells(grid.read(path))


@fuzzed
@given(grid_texts() | st.text(max_size=40))
def test_any_grid_is_cells_or_an_error_that_names_the_file(tmp_path, text):
    path = tmp_path / "table.toml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    try:
        configs = read_grid(path)
    except ValueError as error:
        refused(error, str(path))
        return
    for config in configs:
        assert cells.folder(config).parent == config.runs_dir


@fuzzed
@given(st.data())
def test_a_grid_with_wrong_bytes_is_cells_or_an_error_that_names_the_file(tmp_path, data):
    path = tmp_path / "table.toml"
    path.write_bytes(data.draw(damage_bytes(GRID.encode())))
    try:
        read_grid(path)
    except ValueError as error:
        refused(error, str(path))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[grid]\nseed = " + "[" * 10_000, "nested too deeply|is not TOML"),
        ("a." * 2000 + "b = 1", "unknown key|is not TOML"),
        ("[set]\n" + "a." * 2000 + "b = 1\n[grid]\nseed = [0]", "unknown key"),
        ("[grid]\nseed = [0x" + "f" * 20_000 + "]", r"\[grid\] seed: expected what JSON can hold"),
        ("[grid]\nlearning_rate = [0x" + "f" * 20_000 + "]", "expected what JSON can hold"),
        ("#" * (grid.LARGEST + 1), "expected at most 65536"),
        (
            "[grid]\n"
            + "\n".join(
                f"{name} = {list(range(1, 20))}"
                for name in ("epochs", "rounds", "seed", "batch_size")
            ),
            "130,321 cells, expected at most 10,000",
        ),
        (
            "[set]\nweights = 'a\\u0000b'\n[grid]\nseed=[0]".replace("'", '"'),
            "weights: .*printable",
        ),
        ("[grid]\nlabel = ['../../x']", "label: expected at most 100 letters"),
        (f"[grid]\nlabel = ['{'x' * 101}']", "label: expected at most 100 letters"),
        ("[grid]\nscope = ['block:99999999999999x1']", "scope: expected"),
        ("[grid]\nepochs = [2147483648]", "epochs: expected less than 2147483648"),
    ],
)
def test_a_grid_that_asks_for_too_much_is_refused(tmp_path, text, why):
    path = tmp_path / "table.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=why) as error:
        read_grid(path)
    refused(error.value, str(path))


@pytest.mark.parametrize("place", ["/elsewhere", "../x", "runs/../../x"])
def test_a_grid_file_writes_below_the_current_folder_unless_asked(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    path = Path("table.toml")
    path.write_text(f'runs_dir = "{place}"\n[grid]\nseed = [0]')
    with pytest.raises(UserError, match="table.toml: runs_dir .*--runs-dir"):
        plan(parse([str(path)]))
    [config] = plan(parse([str(path), "--runs-dir", str(tmp_path / "asked")]))
    assert config.runs_dir == tmp_path / "asked"


# -- Masks ---------------------------------------------------------------------------------------


def member(text, data=b""):
    """An array of an .npz file with a header of one's own."""
    header = text.encode("latin-1")
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def header(shape, descr="|b1", order=False):
    return f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}\n"


def archive(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as made:
        for name, data in members:
            made.writestr(name, data)


HEAD = ("head/kernel.npy", member(header((2, 5)), bytes(10)))
WHOLE = io.BytesIO()
archive(WHOLE, [("conv/kernel.npy", member(header((3, 3, 1, 2)), bytes([1] * 18))), HEAD])


@fuzzed
@given(damage_bytes(WHOLE.getvalue()))
def test_a_mask_with_wrong_bytes_is_a_mask_or_an_error_that_names_the_file(tmp_path, data):
    path = tmp_path / "mask.npz"
    path.write_bytes(data)
    check_mask(path)


def check_mask(path):
    try:
        mask = masks.load(path, like=PARAMS)
    except ValueError as error:
        refused(error, str(path))
        return
    masks.check(mask, PARAMS)
    for leaf in jax.tree.leaves(mask):
        assert set(np.unique(np.asarray(leaf).view(np.uint8))) <= {0, 1}


LEAVES = st.sampled_from(
    ["conv/kernel", "head/kernel", "head/bias", "../../x", "/etc/x", "", "a\0b"]
)
SHAPES = st.lists(
    st.integers(0, 6) | st.sampled_from([10**12, 2**62, 10**17, -1, 10**30]), max_size=5
).map(tuple) | st.sampled_from([(3, 3, 1, 2), (2, 5), (5,)])
DESCRS = st.sampled_from(
    ["|b1", "|O", "<f4", "<U9", "|V0", "<U0", "<M8[s]", "x", "<f99", "|b1' or '"]
)
HEADERS = st.builds(header, SHAPES, DESCRS, st.booleans()) | st.sampled_from(
    ["", "(" * 9000, "-" * 9000, "{}", "[]", "__import__('os')", "{'descr': [('a', '|O')]}", "\xff"]
)


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
    st.sampled_from(
        [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
    ),
)
def test_an_archive_of_anything_is_a_mask_or_an_error_that_names_the_file(
    tmp_path, members, method
):
    path = tmp_path / "mask.npz"
    archive(path, members, method)
    check_mask(path)
    assert list(tmp_path.iterdir()) == [path]


class Evil:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize(
    ("members", "method", "why"),
    [
        ([("conv/kernel.npy", member(header((10**12,))))], zipfile.ZIP_DEFLATED, "not as long as"),
        ([("head/bias.npy", member(header((5,), "|O"), b"x" * 40))], zipfile.ZIP_STORED, "objects"),
        ([HEAD, HEAD], zipfile.ZIP_STORED, "twice"),
        ([HEAD], zipfile.ZIP_LZMA, "another method"),
        ([("../../head/kernel.npy", HEAD[1])], zipfile.ZIP_STORED, "'../../head/kernel'"),
        ([("head/kernel.npy", HEAD[1] + b"x")], zipfile.ZIP_STORED, "not as long as"),
        (
            [("head/kernel.npy", HEAD[1].replace(b"|b1", b"|i1"))],
            zipfile.ZIP_STORED,
            "expected .* bool",
        ),
    ],
)
def test_what_a_mask_file_must_not_hold(tmp_path, members, method, why):
    path = tmp_path / "mask.npz"
    with pytest.warns() if members == [HEAD, HEAD] else tempfile.SpooledTemporaryFile():
        archive(path, members, method)
    with pytest.raises(ValueError, match=why) as error:
        masks.load(path, like=PARAMS)
    refused(error.value, str(path))


@pytest.mark.parametrize("load", ["mask", "network"])
def test_a_pickle_is_never_loaded(tmp_path, monkeypatch, load):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file.npz"
    np.savez(path, about=np.array([Evil()], object), allow_pickle=True)
    plain = io.BytesIO()
    np.save(plain, np.array([Evil()], object), allow_pickle=True)
    for content in (path.read_bytes(), plain.getvalue(), pickle.dumps(Evil())):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="file.npz"):
            if load == "mask":
                masks.load(path, like=PARAMS)
            else:
                shrinking.load(path, MODEL)
    assert not Path("pwned").exists()


def peak_memory(call):
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("leaf", ["head/kernel", "elsewhere"])
def test_a_bomb_takes_no_memory(tmp_path, leaf):
    path, size = tmp_path / "mask.npz", 10**8
    archive(path, [(f"{leaf}.npy", member(header((size,)), bytes(size)))])
    assert path.stat().st_size < 2 * 10**5

    def load():
        with pytest.raises(ValueError, match=leaf):
            masks.load(path, like=PARAMS)

    assert peak_memory(load) < 10**6


def test_a_mask_is_on_the_disk_before_its_name_is(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (order.append("sync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *args: (order.append("rename"), replace(*args)))
    masks.save(tmp_path / "mask.npz", masks.create(PARAMS))
    assert order == ["sync", "rename", "sync"]


def test_a_link_planted_where_files_are_written_aside_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("mask.npz", "config.json"):
        (folder / f".{name}.{os.getpid()}").symlink_to(victim)
    masks.save(folder / "mask.npz", masks.create(PARAMS))
    run_folder.write_json(folder / "config.json", {})
    assert victim.read_text() == "mine"


# -- Shrunk networks -----------------------------------------------------------------------------

MODEL = nn.Dense(2)
ABOUT = {
    "format": "ntksap_jax shrunk network",
    "version": 1,
    "features": {"a": 2},
    "dtypes": {"params/kernel": "float32"},
}
KERNEL = ("params/kernel.npy", member(header((3, 2), "<f4"), bytes(24)))


def about_member(about):
    text = io.BytesIO()
    np.lib.format.write_array(text, np.array(json.dumps(about)), version=(1, 0))
    return "about.npy", text.getvalue()


@fuzzed
@given(mutated(ABOUT) | VALUES)
def test_any_text_about_a_network_is_refused_by_name_or_read(tmp_path, about):
    path = tmp_path / "network.npz"
    archive(path, [about_member(about), KERNEL], zipfile.ZIP_STORED)
    try:
        _, variables = shrinking.load(path, MODEL)
    except ValueError as error:
        refused(error, str(path))
        return
    assert variables["params"]["kernel"].shape == (3, 2)


@pytest.mark.parametrize(
    ("about", "members", "why"),
    [
        ({"features": {"a": 10**12}}, [KERNEL], "10{12} features, expected 1 to 6"),
        ({"dtypes": {"params/kernel": "object"}}, [KERNEL], "expected numbers"),
        (
            {"dtypes": {"params/kernel": "float16"}},
            [KERNEL],
            "is of type float32, expected float16",
        ),
        (
            {"dtypes": {"params/kernel": "float32", "params/kernel/x": "float32"}},
            [KERNEL, ("params/kernel/x.npy", KERNEL[1])],
            "not a readable file",
        ),
    ],
)
def test_what_a_network_file_must_not_hold(tmp_path, about, members, why):
    path = tmp_path / "network.npz"
    archive(path, [about_member({**ABOUT, **about}), *members], zipfile.ZIP_STORED)
    with pytest.raises(ValueError, match=why):
        shrinking.load(path, MODEL)
    archive(path, [about_member(ABOUT), *members])
    with pytest.raises(ValueError, match="is compressed"):
        shrinking.load(path, MODEL)


# -- Run folders ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lock", "search", "checkpoints", "metrics.csv"])
def test_a_run_folder_with_links_is_not_written_to(tmp_path, name):
    config = to_dict(Config(resume=True))
    run_folder.prepare(tmp_path, config, data_source="digits 1.0")
    run_folder.check(tmp_path, config)
    (tmp_path / name).symlink_to("/etc/elsewhere")
    for refuse in (lambda: run_folder.check(tmp_path, config), lambda: run_folder.make(tmp_path)):
        with pytest.raises(UserError, match=f"{name} is a link"):
            refuse()


LIKE = {"w": {"kernel": jax.ShapeDtypeStruct((4, 4), jnp.float32)}}
MASK = {"w": {"kernel": jnp.arange(16).reshape(4, 4) < 7}}
ROW = {"round": 1, "density": 0.5, "sha256": masks.digest(MASK), "seconds": 0.1}


@fuzzed
@given(st.data())
def test_a_sealed_round_of_a_stranger_is_used_or_refused(tmp_path, data):
    (tmp_path / "search").mkdir(exist_ok=True)
    run_folder.write_json(tmp_path / "config.json", to_dict(Config()))
    masks.save(tmp_path / "search" / "round-1.npz", MASK)
    original = {"run": run_folder.identity(tmp_path), "rows": [ROW]}
    sealed = files.seal(data.draw(mutated(original) | VALUES))
    run_folder.write_json(tmp_path / "search" / "round-1.json", sealed)
    try:
        rows, mask = search_files.load_round(tmp_path, LIKE, say=lambda text: None)
    except UserError as error:
        refused(error, str(tmp_path))
        return
    assert rows[0]["round"] == len(rows) == 1
    assert masks.digest(mask) == masks.digest(MASK)


@fuzzed
@given(st.data())
def test_a_stranger_s_run_is_in_the_report_or_named_as_damaged(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("runs")
    folder = write(root, configure("ntk_sap", 0.1), 0.5, spectrum=[[1.0, 0.5]])
    name = data.draw(
        st.sampled_from(["summary.json", "config.json", "environment.json", "spectrum.csv"])
    )
    path = folder / name
    if name == "spectrum.csv":
        path.write_bytes(data.draw(damage_bytes(path.read_bytes())))
    else:
        original = json.loads(path.read_text())
        path.write_text(json.dumps(data.draw(mutated(original))))
    try:
        runs.read(folder)
    except runs.Damaged as error:
        refused(error, name)


def test_links_that_lead_round_in_circles_end(tmp_path):
    folder = write(tmp_path, configure("random", 0.1), 0.5)
    for name in "abc":
        (tmp_path / name).symlink_to(tmp_path)
    assert [run.folder for run in runs.find([tmp_path]).runs] == [folder]


def test_weights_come_from_a_run_folder_that_is_only_read(tmp_path):
    folder = write(tmp_path, configure("random", 0.1), 0.5)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="--weights .*: it has no checkpoints"):
        pretrained.load(folder, configure("random", 0.1), MODEL, (4,))
    assert sorted(tmp_path.rglob("*")) == before
    config = json.loads((folder / "config.json").read_text())
    for wrong in ({"seed": "x"}, {"search": 3}, {"model": ["resnet8"]}, {"other": 1}):
        (folder / "config.json").write_text(json.dumps({**config, **wrong}))
        with pytest.raises(UserError, match=r"--weights .*config\.json: "):
            pretrained.load(folder, configure("random", 0.1), MODEL, (4,))


# -- Images --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["EPS", "BMP", "TIFF", "GIF"])
def test_only_the_kinds_of_images_that_data_sets_hold_are_decoded(kind):
    encoded = io.BytesIO()
    Image.new("RGB", (4, 4)).save(encoded, kind)
    with pytest.raises(ValueError, match="no image"):
        crops.decode(encoded.getvalue())


def test_a_class_that_leads_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "wnids.txt").write_text("../../secret\n")
    with pytest.raises(ValueError, match="wnids.txt names '../../secret'"):
        tiny_imagenet(tmp_path)
