"""Files from strangers: what they hold is used or refused by name, and nothing else happens."""

import io
import json
import os
from pathlib import Path

import pytest
from damage import VALUES, damage_bytes, fuzzed, mutated, places, refused
from fake_runs import configure, write
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from experiments.cifar import config as config_lib
from experiments.cifar import pretrained
from experiments.cifar.config import Config
from experiments.data import crops
from experiments.report import runs
from experiments.shell.configuration import to_dict
from experiments.shell.errors import UserError
from experiments.storage import files, run_folder
from experiments.sweep import grid
from experiments.sweep.options import parse, plan

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
    name = config_lib.run_name(config)
    assert Path(name).name == name
    assert len(os.fsencode(name)) < 255


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5000, "Exceeds the limit"),
        ("[]", "expected a dict, got list"),
    ],
)
def test_json_that_means_too_much_is_refused(tmp_path, text, why):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=f"cannot read .*config.json: .*{why}"):
        run_folder.read_config(tmp_path)


def test_a_text_without_end_is_not_read(tmp_path):
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(files.LARGEST + 1)  # Takes no space on the disk.
    with pytest.raises(UserError, match="expected at most"):
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
@given(
    (grid_texts() | st.text(max_size=40)).map(lambda text: text.encode(errors="surrogatepass"))
    | damage_bytes(GRID.encode())
)
def test_any_grid_is_cells_or_an_error_that_names_the_file(tmp_path, data):
    path = tmp_path / "table.toml"
    path.write_bytes(data)
    try:
        configs = read_grid(path)
    except ValueError as error:
        refused(error, str(path))
        return
    for config in configs:
        assert Path(config_lib.run_name(config)).name == config_lib.run_name(config)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[grid]\nseed = " + "[" * 10_000, "nested too deeply|cannot read"),
        ("a." * 2000 + "b = 1", "what JSON can hold|cannot read"),
        ("[grid]\nseed = [0x" + "f" * 20_000 + "]", "expected what JSON can hold"),
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
        ("[grid]\nscope = ['block:99999999999999x1']", "scope: expected"),
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
        plan(*parse([str(path)]))
    [cell] = plan(*parse([str(path), "--runs-dir", str(tmp_path / "asked")]))
    assert cell.folder.parent == tmp_path / "asked"


# -- Run folders ---------------------------------------------------------------------------------


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
    for _, error in runs.find([folder]).damaged:
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
        pretrained.load(folder, configure("random", 0.1), None)
    assert sorted(tmp_path.rglob("*")) == before
    config = json.loads((folder / "config.json").read_text())
    for wrong in ({"seed": "x"}, {"search": 3}, {"model": ["resnet8"]}, {"other": 1}):
        (folder / "config.json").write_text(json.dumps({**config, **wrong}))
        with pytest.raises(UserError, match=r"--weights .*config\.json: "):
            pretrained.load(folder, configure("random", 0.1), None)


# -- Images --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["EPS", "BMP", "TIFF", "GIF"])
def test_only_the_kinds_of_images_that_data_sets_hold_are_decoded(kind):
    encoded = io.BytesIO()
    Image.new("RGB", (4, 4)).save(encoded, kind)
    with pytest.raises(ValueError, match="no image"):
        crops.decode(encoded.getvalue())
