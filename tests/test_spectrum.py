"""The spectrum of the NTK: against dense Jacobians, and along a training."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import ntksap_jax as nts
from experiments.cifar import program as cifar
from experiments.storage import run_folder
from experiments.training import checkpoints
from ntksap_jax import _pruned_kernel, masks, ntk

CONV, SMOOTH = oracles.conv_bn(), oracles.smooth_mlp()  # Made once: compiled once.


def setting(network, num_images=4):
    params = network.init(jax.random.key(0))
    mask = oracles.random_mask(jax.random.key(1), params, density=0.6)
    inputs = jax.random.normal(jax.random.key(2), (num_images, *network.input_shape))
    return params, mask, inputs


def dense_kernel(network, params, mask, inputs):
    """J diag(m) Jᵀ through one dense Jacobian of all outputs; statistics of `inputs`, constant."""
    masked = masks.apply(mask, params)

    @jax.jit
    def jacobian_at(masked):
        apply = network.calibrate(jax.lax.stop_gradient(masked), inputs)
        return jax.jacfwd(lambda params: apply(params, inputs).ravel())(masked)

    jacobian = jacobian_at(masked)
    rows = [
        (leaf * keep).reshape(leaf.shape[0], -1)
        for leaf, keep in zip(
            jax.tree.leaves(masks.map_prunable(lambda keep, leaf: leaf, mask, jacobian)),
            jax.tree.leaves(mask),
            strict=True,
        )
    ]
    return sum(np.asarray(leaf) @ np.asarray(leaf).T for leaf in rows)


@pytest.mark.parametrize("network", [SMOOTH, CONV])
def test_the_kernel_is_that_of_the_dense_jacobian(network):
    params, mask, inputs = setting(network)
    theta = ntk.pruned_kernel(network, params, mask, inputs)
    assert theta.shape == (12, 12)
    np.testing.assert_allclose(theta, dense_kernel(network, params, mask, inputs), rtol=2e-4)
    relaxed = masks.map_prunable(lambda keep: keep.astype(jnp.float32), mask)
    dense_trace = jax.jit(oracles.dense_trace, static_argnums=0)
    trace = dense_trace(network, params, relaxed, inputs)
    np.testing.assert_allclose(np.trace(theta), trace, rtol=1e-4)


def test_blocks_and_columns_in_parts_give_the_whole(monkeypatch):
    params, mask, inputs = setting(SMOOTH, num_images=5)
    whole = ntk.pruned_kernel(SMOOTH, params, mask, inputs)
    for max_bytes in (1, 800):
        blocks = ntk.pruned_kernel(SMOOTH, params, mask, inputs, max_bytes=max_bytes)
        np.testing.assert_allclose(blocks, whole, rtol=1e-5)
    monkeypatch.setattr(_pruned_kernel, "COLUMNS", 5)
    np.testing.assert_allclose(ntk.pruned_kernel(SMOOTH, params, mask, inputs), whole, rtol=1e-5)


def test_kernels_of_networks_without_statistics_need_no_batch():
    network = nts.plain(
        lambda key: {"w": jax.random.normal(key, (3, 2))}, lambda p, x: x @ p["w"], (3,)
    )
    params = network.init(jax.random.key(0))
    inputs = jnp.eye(3)[:2]
    theta = ntk.pruned_kernel(network, params, masks.create(params), inputs)
    np.testing.assert_allclose(theta, np.eye(4), atol=1e-6)


def test_of_the_dense_network_it_is_the_librarys_kernel():
    params, _, inputs = setting(SMOOTH)
    theta = ntk.pruned_kernel(SMOOTH, params, masks.create(params), inputs)
    # The library's is with respect to all params; the rest of it is what the biases add.
    biases = {layer: {"kernel": None, "bias": leaves["bias"]} for layer, leaves in params.items()}

    def with_biases(b):
        return SMOOTH.apply({name: {**params[name], "bias": b[name]["bias"]} for name in b}, inputs)

    exact = jax.jit(ntk.exact, static_argnums=0)
    of_all = exact(lambda params: SMOOTH.apply(params, inputs), params)
    of_biases = exact(with_biases, biases)
    np.testing.assert_allclose(theta, of_all - of_biases, rtol=1e-4, atol=1e-5)


def test_the_distance_ignores_the_scale_and_reaches_one():
    theta = np.array([[2.0, 1.0], [1.0, 3.0]])
    assert ntk.kernel_distance(theta, theta) == pytest.approx(0, abs=1e-12)
    assert ntk.kernel_distance(theta, 5 * theta) == pytest.approx(0, abs=1e-12)
    assert ntk.kernel_distance(np.diag([1.0, 0.0]), np.diag([0.0, 1.0])) == 1
    # <diag(1, 1), diag(1, 0)> = 1, and the norms are √2 and 1.
    assert ntk.kernel_distance(np.eye(2), np.diag([1.0, 0.0])) == pytest.approx(1 - 0.5**0.5)
    assert np.isnan(ntk.kernel_distance(theta, np.zeros((2, 2))))


# -- In a run ------------------------------------------------------------------------------------

OPTIONS = [
    *("demo", "--model", "mlp", "--criterion", "random", "--density", "0.2", "--epochs", "2"),
    *("--rounds", "1", "--spectrum-samples", "1", "--compare"),
]


@pytest.mark.long
def test_a_resumed_run_measures_what_an_undisturbed_one_does(tmp_path, monkeypatch, capsys):
    cifar.main([*OPTIONS, "--runs-dir", str(tmp_path / "whole")])
    (whole,) = (tmp_path / "whole").iterdir()
    rows = run_folder.read_table(whole / "spectrum.csv")
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert len(rows[0]) == 2 + 100  # 10 images x 10 outputs.
    distances = [row["kernel_distance"] for row in rows]
    assert distances[0] == pytest.approx(0, abs=1e-9)
    assert all(0.001 < distance < 1 for distance in distances[1:])

    save = checkpoints.save

    def interrupted(manager, step, state, progress, *, run):
        if len(progress.rows) == 2:
            raise KeyboardInterrupt
        save(manager, step, state, progress, run=run)

    arguments = [*OPTIONS, "--runs-dir", str(tmp_path / "resumed")]
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(checkpoints, "save", interrupted)
        cifar.main(arguments)
    (resumed,) = (tmp_path / "resumed").iterdir()
    written = (resumed / "spectrum.csv").read_bytes()
    (resumed / "spectrum.csv").unlink()
    with pytest.raises(SystemExit):
        cifar.main([*arguments, "--resume"])
    assert "spectrum.csv holds 0 of the 2 rows up to epoch 1" in capsys.readouterr().err

    (resumed / "spectrum.csv").write_bytes(written)
    cifar.main([*arguments, "--resume"])
    assert (resumed / "spectrum.csv").read_bytes() == (whole / "spectrum.csv").read_bytes()
