"""Checkpoints: resuming, what is kept, and what is made of damaged and foreign ones."""

import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from damage import ORBAX_LEAVES_SOMETHING, collected_here, damage  # noqa: F401
from test_training import ConvNet, Linear, start

from experiments.shell.errors import UserError
from experiments.training import checkpoints
from experiments.training.checkpoints import Progress, Sums

pytestmark = ORBAX_LEAVES_SOMETHING


def assert_equal(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def save_all(folder, *steps, model=None, run="run"):
    """Saves a state a step; it holds its step in its weights too."""
    state = start(model or Linear())[0]
    with checkpoints.open_manager(folder) as manager:
        for step in steps:
            there = state_at(state, step)
            checkpoints.save(manager, step, there, progress_at(step), run=run)


def state_at(state, step):
    moved = jax.tree.map(lambda leaf: leaf + step, state.params)
    return state._replace(step=jnp.int32(step), params=moved)


def progress_at(step):
    return Progress(({"epoch": 1, "loss": 0.1 * step},), Sums(1 / 3, 5, 8, step), 0.7)


def restore_last(folder, model=None, run="run"):
    """Returns what was restored, the steps that are left, and what was said."""
    said = []
    with checkpoints.open_manager(folder) as manager:
        found = checkpoints.restore_last(
            manager, start(model or Linear())[0], run=run, say=said.append
        )
        return found, manager.all_steps(), said


def assert_is_step(step, found):
    state, progress = found
    assert_equal(state, state_at(start(Linear())[0], step))
    assert progress == progress_at(step)


def test_the_last_checkpoints_are_kept(tmp_path):
    assert restore_last(tmp_path) == (None, [], [])
    save_all(tmp_path, 1, 2, 3)
    found, steps, said = restore_last(tmp_path)
    assert_is_step(3, found)
    assert (steps, said) == ([2, 3], [])


def test_nothing_is_saved_behind_what_is_there_silently(tmp_path):
    save_all(tmp_path, 3)
    with pytest.raises(RuntimeError, match="step 2 was not saved"):
        save_all(tmp_path, 2)


def test_of_a_damaged_checkpoint_the_one_before_is_used_and_the_loss_said(tmp_path):
    folder = tmp_path / "checkpoints"
    save_all(folder, 1, 2)
    for path in (folder / "2").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:3])
    found, steps, [said] = restore_last(folder)
    assert_is_step(1, found)
    assert steps == [1]
    assert said.startswith("the training goes on from step 1; damaged checkpoints, now in ")
    assert "step 2: " in said and "\n" not in said
    assert (tmp_path / "damaged" / "checkpoint-2").is_dir()
    save_all(folder, 2)
    assert_is_step(2, restore_last(folder)[0])


def test_arrays_that_were_exchanged_are_recognised(tmp_path):
    folder, other = tmp_path / "checkpoints", tmp_path / "other"
    save_all(folder, 1, 2)
    save_all(other, 1)
    shutil.rmtree(folder / "2" / "state")
    shutil.copytree(other / "1" / "state", folder / "2" / "state")
    found, _, [said] = restore_last(folder)
    assert_is_step(1, found)
    assert "step 2: its arrays are not those whose SHA-256 was recorded" in said


def test_without_any_intact_checkpoint_nothing_starts_silently_from_the_beginning(tmp_path):
    save_all(tmp_path, 1, 2)
    with pytest.raises(UserError, match=r"no checkpoint .* can be read \(step 2: .*another run"):
        restore_last(tmp_path, run="another")
    with pytest.raises(UserError, match=r"no checkpoint .* can be read .*; step 1: .*or delete"):
        restore_last(tmp_path, ConvNet())
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["1", "2"]


def test_a_checkpoint_under_the_name_of_a_later_step_is_recognised(tmp_path):
    folder = tmp_path / "checkpoints"
    save_all(folder, 1, 2)
    (folder / "2").rename(folder / "7")
    found, steps, _ = restore_last(folder)
    assert_is_step(1, found)
    assert steps == [1]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pristine") / "checkpoints"
    save_all(folder, 1, 2)
    return folder


@pytest.mark.parametrize("seed", range(8))
def test_damage_at_random_is_recovered_from_or_an_error(pristine, tmp_path, seed):
    rng = random.Random(seed)
    folder = tmp_path / "checkpoints"
    shutil.copytree(pristine, folder)
    damage(rng, folder / rng.choice(["1", "2", "2", "."]))
    try:
        found, _, said = restore_last(folder)
    except UserError as error:
        assert "no checkpoint" in str(error)
        return
    step = int(found[0].step)
    assert_is_step(step, found)
    # The last one, or the one before, which is said.
    assert bool(said) == (step == 1)
