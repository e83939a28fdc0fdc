"""What was saved on some devices goes on on others: searches, trainings, and the real program."""

import json
import signal

import jax
import kill_harness
import numpy as np
import oracles
import pytest
from test_training import ConvNet, compiled_step, make_stage, noisy, run_stage, start, undisturbed

import ntksap_jax as nts
from experiments.shell.errors import Preempted
from experiments.training import checkpoints
from experiments.training.checkpoints import Progress
from ntksap_jax import criteria, masks, sharding

KEY = jax.random.key(1)


def placements(tree):
    """The same numbers on one device, copied to four, and split over four."""
    mesh = sharding.model_mesh(4, jax.devices()[:4])
    rule = sharding.split_outputs(mesh, min_size=1)
    copied = sharding.replicate(tree, sharding.data_mesh(jax.devices()[:4]))
    return [tree, copied, sharding.shard_params(tree, mesh, rule=rule)]


@pytest.mark.long
def test_a_search_goes_on_on_other_devices_with_a_mask_that_was_saved(tmp_path):
    network = nts.linen(oracles.ReluMLP((8,), 4), (4,))
    score = criteria.ntk_sap(network, num_samples=2, batch_size=8)
    schedule = [0.6, 0.3]
    params = network.init(KEY)
    undisturbed, _ = nts.prune(KEY, params, score, schedule=schedule)

    def interrupted(info, mask):
        masks.save(tmp_path / "mask.safetensors", mask)
        if info.round == 1:
            raise KeyboardInterrupt

    placed = placements(params)
    for before, after in zip(placed, placed[1:] + placed[:1], strict=True):
        with pytest.raises(KeyboardInterrupt):
            nts.prune(KEY, before, score, schedule=schedule, on_round=interrupted)
        mask, _ = nts.prune(
            KEY,
            after,
            score,
            schedule=schedule,
            mask=masks.load(tmp_path / "mask.safetensors", like=after),
            start_round=1,
        )
        np.testing.assert_array_equal(oracles.flat(mask), oracles.flat(undisturbed))


@pytest.mark.long
def test_a_training_goes_on_on_other_devices(tmp_path):
    state = start(ConvNet())[0]
    stage = make_stage(tmp_path, compiled_step(ConvNet(), noisy))
    with pytest.raises(Preempted):
        run_stage(stage, state, devices=4, stop_at=4)
    variables, rows = run_stage(stage, state, devices=2)
    expected_variables, expected_rows = undisturbed()
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
        variables,
        expected_variables,
    )
    for row, expected in zip(rows, expected_rows, strict=True):
        assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)


@pytest.mark.parametrize("number", range(3))
def test_a_checkpoint_is_read_onto_other_devices(tmp_path, number):
    state, *_ = start(ConvNet())
    placed = placements(state)
    with checkpoints.open_manager(tmp_path) as manager:
        checkpoints.save(manager, 3, placed[number], Progress(), run="run")
    after = placed[(number + 1) % 3]
    with checkpoints.open_manager(tmp_path) as manager:
        restored, _ = checkpoints.restore_last(manager, after, run="run", say=pytest.fail)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    lying = jax.tree.map(lambda x, y: x.sharding == y.sharding, restored, after)
    assert all(jax.tree.leaves(lying))


@pytest.mark.long
def test_the_program_goes_on_on_other_devices_and_back(tmp_path):
    """One device up to a round of the search, four up to a step of the training, one to the end."""
    disturbed, undisturbed = tmp_path / "disturbed", tmp_path / "undisturbed"
    folder = disturbed / kill_harness.NAME
    for devices, path in ((1, folder / "config.json"), (4, folder / "checkpoints")):
        process = kill_harness.start(disturbed, devices)
        kill_harness.wait_for([process], path)
        process.send_signal(signal.SIGTERM)
        kill_harness.finish(process, disturbed, expected=kill_harness.PREEMPTED)
    for runs in (disturbed, undisturbed):
        kill_harness.finish(kill_harness.start(runs), runs)
    sessions = json.loads((folder / "environment.json").read_text())
    assert [len(session["devices"]) for session in sessions] == [1, 4, 1]
    kill_harness.assert_near(disturbed, undisturbed)
