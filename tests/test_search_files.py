"""What the search leaves behind: rounds to go on from, the mask at the end, and damage to both."""

import json

import jax.numpy as jnp
import pytest

from experiments.cifar import search_files
from experiments.cifar.config import Config
from experiments.shell.configuration import to_dict
from experiments.shell.errors import UserError
from experiments.storage import run_folder
from ntksap_jax import masks
from ntksap_jax.types import RoundInfo

PARAMS = {"conv": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}}
COUNTS = (12, 7, 5)


def make_mask(kept):
    return {"conv": {"kernel": jnp.arange(16).reshape(4, 4) < kept, "bias": None}}


def make_row(number, kept):
    mask = make_mask(kept)
    info = RoundInfo(
        round=number,
        density=masks.density(mask),
        num_kept=kept,
        threshold=0.1 * number,
        layer_densities=masks.layer_densities(mask),
        metrics={"trace": 1e6 / number},
        seconds=0.25,
    )
    return search_files.round_row(info, mask)


ROWS = [make_row(number, kept) for number, kept in enumerate(COUNTS, start=1)]


@pytest.fixture
def folder(tmp_path):
    """A run folder after three rounds."""
    run_folder.prepare(tmp_path, to_dict(Config()), data_source="digits 1.0")
    for number, count in enumerate(COUNTS, start=1):
        search_files.save_round(tmp_path, ROWS[:number], make_mask(count))
    return tmp_path


def flip(path):
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def load(folder):
    """The number of the round that is loaded, which is checked, and what is said."""
    said = []
    rows, mask = search_files.load_round(folder, PARAMS, say=said.append)
    assert rows == ROWS[: len(rows)]
    if rows:
        assert masks.digest(mask) == masks.digest(make_mask(COUNTS[len(rows) - 1]))
    return len(rows), said


def test_the_search_goes_on_from_its_last_round(folder):
    # A mask whose row was not written any more, because the run was killed in between.
    masks.save(folder / "search" / "round-4.safetensors", make_mask(3))
    assert load(folder) == (3, [])
    assert not list((folder / "search").glob("round-1.*"))


def test_a_new_search_starts_from_nothing(tmp_path):
    assert load(tmp_path) == (0, [])
    assert search_files.load_mask(tmp_path, PARAMS) is None


@pytest.mark.parametrize("ending", ["safetensors", "json"])
@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "foreign"])
def test_of_a_damaged_round_the_one_before_is_used_and_the_loss_said(folder, ending, how):
    path = folder / "search" / f"round-3.{ending}"
    if how == "flipped":
        flip(path)
    elif how == "foreign":
        path.write_bytes((folder / "search" / f"round-2.{ending}").read_bytes())
    else:
        path.write_bytes(path.read_bytes()[: 60 if how == "cut" else 0])
    number, [said] = load(folder)
    assert number == 2
    assert said.startswith("the search goes on from round 2; damaged: round 3: ")
    assert "\n" not in said


def test_rounds_of_another_run_are_not_used(folder):
    config = json.loads((folder / "config.json").read_text())
    run_folder.write_json(folder / "config.json", {**config, "seed": 5})
    with pytest.raises(UserError, match="round 3: it is of another run; round 2: it is of"):
        load(folder)


def test_without_any_intact_round_nothing_starts_silently_from_the_beginning(folder):
    for path in (folder / "search").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(UserError, match=r"no round of the search .* can be read .* or delete"):
        load(folder)
    for path in (folder / "search").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="there is none, but search.csv"):
        load(folder)


def test_the_found_mask_is_kept_with_its_rows_and_digest(folder):
    search_files.save_mask(folder, ROWS, make_mask(5))
    assert (folder / "mask.sha256").read_text().strip() == masks.digest(make_mask(5))
    rows, mask = search_files.load_mask(folder, PARAMS)
    assert rows == ROWS
    assert masks.digest(mask) == masks.digest(make_mask(5))
    search_files.drop_rounds(folder)
    assert not (folder / "search").exists()


def test_a_damaged_or_exchanged_mask_is_an_error(folder):
    search_files.save_mask(folder, ROWS, make_mask(5))
    path = folder / "mask.safetensors"
    masks.save(path, make_mask(6))
    with pytest.raises(ValueError, match="safetensors is not the mask whose SHA-256 was recorded"):
        search_files.load_mask(folder, PARAMS)
    for spoil in (lambda: path.write_bytes(path.read_bytes()[:50]), path.unlink):
        spoil()
        with pytest.raises(ValueError, match="cannot read the mask .*mask.safetensors"):
            search_files.load_mask(folder, PARAMS)
    search_files.save_mask(folder, ROWS, make_mask(5))
    flip(folder / "search.json")
    with pytest.raises(ValueError, match=r"cannot read .*search\.json"):
        search_files.load_mask(folder, PARAMS)
