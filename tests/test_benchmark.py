"""The benchmark: what it says of given times, and tiny cases from end to end."""

import importlib.util
import json
import os
import signal
import time
import warnings
from dataclasses import astuple, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntksap_jax as nts
from experiments.benchmark import (
    aot,
    cases,
    child,
    file_sizes,
    nominal_flops,
    ours,
    picture,
    results,
    shrunk_latency,
    timing,
    tpu_compiler,
    types,
)
from experiments.benchmark import program as benchmark
from experiments.cifar import choices
from ntksap_jax import exchange, flops, masks, models, ntk, scopes
from ntksap_jax.criteria.ntk_sap import trace_and_gradient

TINY = {"model": "mlp", "input_shape": (4, 4, 3), "batch_size": 3}


@pytest.fixture
def tiny_cases(monkeypatch):
    """Replaces the cases by small ones of the same kinds."""
    tiny = {
        "tiny-search": replace(cases.CASES["search-resnet20"], num_rounds=3, **TINY),
        "tiny-selection": replace(cases.CASES["selection-1M"], num_scores=1000),
    }
    tiny = {name: replace(case, name=name) for name, case in tiny.items()}
    monkeypatch.setattr(cases, "CASES", tiny)
    table = results.Table("Tiny", ("a", "b"), [("c", "1")], "A legend.")
    monkeypatch.setattr(benchmark, "TABLES", {"tiny-table": lambda: table})


def without_torch(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "torch" else find(n))


# -- From end to end -------------------------------------------------------------------------------


@pytest.mark.long
def test_our_side_alone(tiny_cases, tmp_path, monkeypatch, capsys):
    without_torch(monkeypatch)
    files = {name: tmp_path / f"{name}.png" for name in ("json", "markdown", "picture")}
    arguments = ["--without-torch", "--repeats", "2", "--batch-size", "2"]
    for name, file in files.items():
        arguments += [f"--{name}", str(file)]
    assert benchmark.main(arguments) == 0
    written = json.loads(files["json"].read_text())
    assert written["setting"]["versions"]["jax"] == jax.__version__
    assert [table["title"] for table in written["tables"]] == ["Tiny"]

    search, selection = written["cases"]
    forward = sum(flops.count(nts.linen(models.mlp(), (4, 4, 3))).values())
    beside = "neither compiling nor scoring"
    for case, steps, rounds, nominal in (
        (search, ["step", beside, "matmul"], 1, 6 * forward * 2 * 5 * 3),
        (selection, ["step", "under jit"], 2, None),
    ):
        [side] = case["sides"].values()
        assert side["ready"]["flops"] == nominal
        assert len(side["rounds"]) == rounds
        for measured in side["rounds"]:
            assert list(measured["seconds"]) == steps
            assert min(measured["seconds"].values()) > 0 < measured["memory_peak"]
    # Compilation is part of a search, and told apart from the rest of it.
    [measured] = search["sides"]["ours"]["rounds"]
    compiling = measured["compile_seconds"]
    assert 0 < compiling["step"] < measured["seconds"]["step"]
    assert compiling[beside] < 0.2 * compiling["step"]

    text = files["markdown"].read_text()
    assert "| tiny-search |" in text and "| c | 1 |" in text
    assert files["picture"].read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr()
    assert "tiny-selection, under jit" in printed.out
    assert printed.err == ""


def test_the_compile_clock_counts_what_is_compiled_within_once():
    clock, started = ours.compile_clock(), time.perf_counter()
    inner = jax.jit(lambda x: jnp.sin(x) @ x)
    outer = jax.jit(lambda x: inner(inner(x)))
    outer(np.ones((3, 3))).block_until_ready()
    elapsed, compiled = time.perf_counter() - started, clock()
    assert 0.3 * elapsed < compiled < elapsed
    outer(np.ones((3, 3))).block_until_ready()
    assert clock() == compiled


@pytest.mark.long
def test_both_sides_take_turns(tiny_cases, tmp_path):
    pytest.importorskip("torch")
    file = tmp_path / "times.json"
    assert benchmark.main(["--case", "tiny-sel", "--repeats", "3", "--json", str(file)]) == 0
    written = json.loads(file.read_text())
    [case] = written["cases"]
    assert list(case["sides"]) == ["ours", "nchw"]
    assert written["setting"]["versions"]["torch"]
    assert [len(side["rounds"]) for side in case["sides"].values()] == [3, 3]
    assert case["summaries"][0]["ratio"]["median"] > 0


@pytest.mark.long
def test_a_case_that_fails_costs_one_line(tiny_cases, tmp_path, monkeypatch, capsys):
    """The other case is measured all the same."""
    broken = replace(cases.CASES["tiny-search"], model="resnet21")
    monkeypatch.setitem(cases.CASES, "tiny-search", broken)
    file = tmp_path / "times.json"
    arguments = ["--case", "tiny-search", "tiny-selection", "--without-torch", "--repeats", "1"]
    assert benchmark.main([*arguments, "--json", str(file)]) == 1
    message = "error: tiny-search: our process failed: KeyError: 'resnet21'\n"
    assert capsys.readouterr().err == message
    names = [case["case"]["name"] for case in json.loads(file.read_text())["cases"]]
    assert names == ["tiny-selection"]


def echo(first):
    return first, lambda order: os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.long
def test_a_child_that_is_killed():
    with child.start("it", echo, 5) as ask:
        assert ask(None) == 5
        with pytest.raises(child.ChildLost, match="^it was ended by SIGKILL, for want of memory"):
            ask("anything")


# -- Mistakes on the command line ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--case", "slection-11M"], "unknown case 'slection-11M'. Did you mean selection-11M?"),
        (["--json", "no/such/folder/a.json"], "--json: there is no folder no/such/folder"),
        (["--case", "criterion-erk", "--picture", "a.png"], "--picture: these cases have no ratio"),
        (["--case", "train"], "pip install -e '.[bench]', or time our side alone"),
        (["--aot", "v5e"], "got 'v5e', expected a kind of TPU and the shape"),
        (["--aot", "v5e:2x4", "--picture", "x.png"], "--picture: nothing is timed"),
        (["--aot", "v5e:2x4"], "the TPU compiler is not installed"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, capsys, arguments, message):
    without_torch(monkeypatch)
    monkeypatch.setattr(aot, "compiler_is_installed", lambda: False)
    with pytest.raises(SystemExit) as stop:
        benchmark.main(arguments)
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_an_interruption_promises_nothing(monkeypatch, capsys):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "check", interrupt)
    with pytest.raises(SystemExit) as stop:
        benchmark.main(["--case", "selection"])
    assert (stop.value.code, capsys.readouterr().err) == (130, "interrupted\n")


def test_list_prints_the_names(capsys):
    assert benchmark.main(["--list", "--case", "search", "criterion-synflow"]) == 0
    assert capsys.readouterr().out.split() == ["search-resnet20", "criterion-synflow"]
    assert benchmark.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    expected = {"selection-1M", "file-sizes", "shrunk-latency", "--aot TOPOLOGY --case resnet8-jvp"}
    assert expected <= set(lines)


# -- What is said of given times -------------------------------------------------------------------


def test_nominal_flops(monkeypatch):
    network = nts.linen(models.VGG((16, 16), num_classes=1), (32, 32, 3))
    layer = flops.count(network)["conv_1/kernel"]
    assert nominal_flops.count(cases.CASES["convolution-16-of-32x32"]) == 10 * 3 * 100 * layer
    assert nominal_flops.count(cases.CASES["selection-11M"]) is None
    monkeypatch.setattr(flops, "count", lambda network: {"conv": 7, "fc": 3})
    for name, passes in (
        ("sample-jvp-resnet20", 9 * 100),
        ("search-resnet20", 20 * 5 * 6 * 100),
        ("train-resnet20-masked", 3 * 128),
    ):
        case = replace(cases.CASES[name], model="mlp")
        assert nominal_flops.count(case) == passes * 10, name


def made_up_side(step, *, memory=0.0, peak=1.0, warm=1.0, gflops=100.0, compiling=0.0, dense=None):
    """A side whose matrix products run at `gflops`."""
    product = 2 * types.MATMUL_SIZE**3 / (1e9 * gflops)
    compiled, nothing = ({"step": value, "dense": value} for value in (compiling, 0.0))
    extras = [{"dense": seconds} for seconds in dense] if dense else [{}] * len(step)
    rounds = [
        types.Round({"step": seconds, "matmul": product, **extra}, nothing, warm)
        for seconds, extra in zip(step, extras, strict=True)
    ]
    warm_up = types.Round({"step": 9.0, "dense": 9.0}, compiled, peak)
    return types.Side(types.Ready({}, 60e9, 0.5, memory), [warm_up], rounds)


def made_up(**nchw):
    sides = {
        "ours": made_up_side(
            [1.0, 3.0, 0.8], memory=100.0, peak=350.0, warm=250.0, compiling=5.0,
            dense=[1.0, 2.0, 0.8],
        ),
        "nchw": made_up_side([4.0, 4.0, 4.0], **nchw),
        "channels_last": made_up_side([2.0, 4.0, 2.0], memory=80.0, peak=400.0),
    }  # fmt: skip
    return results.summarise(cases.CASES["train-resnet20-masked"], sides)


def test_a_summary_of_made_up_times():
    summary, dense = made_up()
    assert summary.torch.name == "channels_last"
    # Round by round, 0.5, 0.75 and 0.4: not the ratio of the medians.
    assert astuple(summary.ratio) == pytest.approx((0.5, 0.45, 0.625))
    assert astuple(summary.ours.seconds) == pytest.approx((1.0, 0.9, 2.0))
    assert summary.ours.gflops == pytest.approx(60)
    assert summary.peak == pytest.approx(100)
    assert summary.ours.of_peak == pytest.approx(0.6)
    assert summary.torch.of_peak == pytest.approx(0.3)
    assert summary.compile_seconds == pytest.approx(0.5 + 5.0)
    # PyTorch's side has no such step, and is compared by its own.
    assert dense.name == "train-resnet20-masked, dense"
    assert astuple(dense.ratio) == pytest.approx((0.5, 0.45, 0.5))
    assert dense.ours.gflops is None
    # The peak is that of the better side.
    assert made_up(gflops=120.0)[0].peak == pytest.approx(120)


def test_tables_and_markdown():
    times, resources = results.tables(made_up())
    row = ("train-resnet20-masked", "1,000", "2,000 C", "0.50 (0.45 to 0.62)", "60.0", "60%", "30%")
    dense = (f"{row[0]}, dense", "1,000", "2,000 C", "0.50 (0.45 to 0.50)", "–", "–", "–")
    assert times.rows == [row, dense]
    assert resources.rows == [(row[0], "5.5", "100 + 250", "+ 150", "80 + 320")]
    text = results.markdown([times], ["machine: 2 cores"])
    assert f"| {' | '.join(row)} |\n" in text
    assert "\n - machine: 2 cores\n" in text


def test_the_picture_shows_the_numbers():
    alone = results.summarise(cases.CASES["round-resnet20"], {"ours": made_up_side([1.2] * 3)})
    shown = [made_up()[0], *alone]
    ratios, rates = picture.draw(shown, "a title").axes
    labels = [text.get_text() for text in ratios.get_yticklabels()]
    assert labels == ["train-resnet20-masked", "round-resnet20"]
    _, quartiles, median = ratios.get_lines()
    np.testing.assert_allclose(quartiles.get_xdata(), [0.45, 0.625])
    np.testing.assert_allclose(median.get_xdata(), [0.5])
    widths = [bar.get_width() for bar in rates.patches if bar.get_width()]
    np.testing.assert_allclose(widths, [0.6, 0.3, 0.5])


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="measured on Linux only")
def test_the_peak_of_memory_starts_again():
    held = np.ones(2**23)  # 64 MiB
    peak = timing.memory(timing.PEAK)
    assert peak >= timing.memory(timing.HELD) >= 64
    del held
    timing.reset_peak()
    assert timing.memory(timing.PEAK) <= peak - 60


# -- Tables of our side alone ----------------------------------------------------------------------


def test_on_disk_only_what_packs_shrinks_with_the_density():
    params = {"kernel": jax.random.normal(jax.random.key(0), (64, 256)), "bias": jnp.ones(256)}
    scores = {"kernel": jnp.abs(params["kernel"]), "bias": None}
    dense = masks.create(params)
    found = []
    for density in (1.0, 0.5, 0.1):
        mask = scopes.Global().select(scores, dense, density=density)
        found.append(file_sizes.sizes(masks.apply(mask, params), mask))
        kept = masks.num_kept(mask)
        assert 0.8 * 4 * kept < found[-1]["save_packed"] < 4 * (kept + 256) + 64 * 256 / 8 + 3000
    plain = [sizes["np.savez"] for sizes in found]
    assert plain[0] == plain[1] == plain[2] > 4 * 64 * 256


def test_shrunk_networks_are_as_large_as_said_and_run():
    model = models.VGG((16, "M", 16, "M", 16, "M"), num_classes=4)
    shrunk = shrunk_latency.shrink(model, shares=(0.2,))
    (_, dense), (small, fifth) = shrunk.values()
    assert 0.05 * dense < fifth <= 0.2 * dense
    kernels = [leaf for leaf in jax.tree.leaves(small.variables["params"]) if leaf.ndim == 4]
    assert all(2 <= kernel.shape[-1] <= 11 for kernel in kernels)  # Of 16: no layer is spared.
    images = jnp.ones((2, *shrunk_latency.INPUT_SHAPE))
    outputs = jax.jit(lambda v, x: small.model.apply(v, x, train=False))(small.variables, images)
    assert outputs.shape == (2, 4)
    assert np.isfinite(outputs).all()


# -- PyTorch's side --------------------------------------------------------------------------------


@pytest.fixture
def torch():
    """PyTorch, whose forward-mode differentiation imports parts of it that warn about others."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.script.*")
        yield pytest.importorskip("torch")


def tensors(tree):
    """A tree of ours as PyTorch has it."""
    import torch

    return {name: torch.tensor(array) for name, array in exchange.to_torch(tree).items()}


def images_to_torch(images):
    import torch

    return torch.tensor(np.moveaxis(np.asarray(images), -1, 1).copy())


def draw(tree, seed):
    """Gaussian numbers, small enough for weights, without compiling anything."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: 0.3 * random.standard_normal(leaf.shape, np.float32), tree)


@pytest.mark.parametrize("name", ["resnet20", "vgg16_bn", "resnet50"])
def test_the_networks_have_the_same_parameters(name, torch):
    from experiments.benchmark import torch_models

    init = choices.MODELS[name]().init
    params = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), params)
    model = torch_models.MODELS[name]()
    shapes = {path: weight.shape for path, weight in model.named_parameters()}
    assert shapes == {path: weight.shape for path, weight in tensors(zeros).items()}
    num_prunable = sum(layer.weight.numel() for _, layer in torch_models.prunable_layers(model))
    assert num_prunable == masks.num_prunable(masks.create(zeros))


@pytest.mark.parametrize(
    "estimator", ["finite_difference", "jvp", pytest.param("vjp", marks=pytest.mark.long)]
)
def test_the_scores_are_the_same_for_the_same_draws(estimator, torch):
    """Trace and its gradient in the masks of a small network, by either side's functions."""
    from experiments.benchmark import torch_models, torch_steps

    network = nts.linen(models.ResNet(blocks=(1, 1), width=4), (8, 8, 3), train=False)
    params = draw(jax.eval_shape(network.init, jax.random.key(0)), 0)
    mask = masks.map_prunable(lambda m, noise: noise > -0.15, masks.create(params), params)
    inputs, cotangent = np.random.default_rng(1).standard_normal((2, 5, 8 * 8 * 3), np.float32)
    inputs, cotangent = inputs.reshape(5, 8, 8, 3), cotangent[:, :10]
    tangent = masks.map_prunable(lambda m, v: v, mask, draw(params, 2))
    sigma = torch_steps.SIGMA
    estimates = {
        "finite_difference": lambda fn, w: (
            sigma**2 * ntk.difference_norm(fn, w, tangent, sigma=sigma)
        ),
        "jvp": lambda fn, w: ntk.tangent_norm(fn, w, tangent),
        "vjp": lambda fn, w: ntk.cotangent_norm(fn, w, cotangent),
    }

    @jax.jit
    def score(params, mask, inputs):
        return trace_and_gradient(
            network, params, mask, inputs, estimate=estimates[estimator], unbiased=True
        )

    trace, gradient = score(params, mask, inputs)

    model = torch_models.cifar_resnet((1, 1), width=4)
    model.load_state_dict(tensors(params), strict=False)
    torch_models.add_masks(model)
    with torch.no_grad():
        for name, keep in tensors(mask).items():
            model.get_buffer(f"{name}_mask").copy_(keep)
    torch_steps.require_mask_gradients(model)
    images = images_to_torch(inputs)
    torch_steps.calibrate(model, images)
    direction = {f"{name}_orig": values for name, values in tensors(tangent).items()}
    theirs = {
        "finite_difference": lambda: torch_steps.finite_difference(model, images, direction),
        "jvp": lambda: torch_steps.jvp(model, images, direction),
        "vjp": lambda: torch_steps.vjp(model, images, torch.tensor(cotangent)),
    }[estimator]()
    np.testing.assert_allclose(theirs.item(), trace, rtol=1e-4)
    masks_of = {path: layer.weight_mask for path, layer in torch_models.prunable_layers(model)}
    theirs.backward(inputs=list(masks_of.values()))
    expected = tensors(gradient)
    assert {f"{path}.weight" for path in masks_of} == expected.keys()
    for path, mask in masks_of.items():
        values = expected[f"{path}.weight"]
        tolerance = 1e-3 * float(values.abs().max())
        np.testing.assert_allclose(mask.grad, values, atol=tolerance, err_msg=path)


def test_the_sums_of_a_convolution_are_the_same(torch):
    from experiments.benchmark import torch_steps

    random = np.random.default_rng(0)
    x, y = random.standard_normal((2, 3, 5, 4, 2), np.float32)
    w = random.standard_normal((3, 3, 2, 2), np.float32)
    kernel = torch.tensor(w.transpose(3, 2, 0, 1).copy())
    theirs = torch_steps.CONVOLUTION_SUMS
    assert ours.CONVOLUTION_SUMS.keys() == theirs.keys()
    for name, each in ours.CONVOLUTION_SUMS.items():
        expected = theirs[name](images_to_torch(x), kernel, images_to_torch(y)).numpy()
        axes = (2, 3, 1, 0) if name == "kernel gradient" else (0, 2, 3, 1)
        np.testing.assert_allclose(each(x, w, y), expected.transpose(axes), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["sample", "round", "train"])
def test_their_steps_run(kind, torch):
    """Every step of PyTorch's side does its work twice, in both layouts."""
    from experiments.benchmark import torch_side

    for name, case in cases.CASES.items():
        if case.kind != kind or not name.endswith(("resnet20", "masked", "dense")):
            continue
        case = replace(case, batch_size=2, input_shape=(8, 8, 3))
        for layout in case.layouts:
            step = torch_side.prepare(case, layout=layout, cores=1).steps["step"]
            step()
            step()


def test_their_selection_keeps_what_ours_keeps(torch):
    from experiments.benchmark import torch_steps

    random = np.random.default_rng(0)
    scores = {"a": random.random((7, 5), np.float32), "b": random.random(40, np.float32)}
    mask = jax.tree.map(lambda s: jnp.ones(s.shape, bool), scores)
    for density in (0.2, 1.0):
        kept = scopes.Global().select(scores, mask, density=density)
        theirs = torch_steps.select([torch.tensor(s) for s in scores.values()], round(density * 75))
        for ours_kept, their_kept in zip(kept.values(), theirs, strict=True):
            np.testing.assert_array_equal(ours_kept, their_kept)


# -- Ahead of time, for a TPU ----------------------------------------------------------------------


def test_the_costs_on_a_tpu_are_shown_and_written(tmp_path, monkeypatch, capsys):
    def ask(topology, program):
        assert topology == "v5e:2x4"
        if program.name == "resnet20-vjp":
            raise child.ChildLost("the TPU compiler failed: no memory")
        return aot.Cost(12e9, 2e9, 3e9, 4_000_000, 500_000, 8_000, 1, 6_000, 7.0)

    monkeypatch.setattr(aot, "compiler_is_installed", lambda: True)
    monkeypatch.setattr(aot, "ask", ask)
    files = {name: tmp_path / f"costs.{name}" for name in ("json", "markdown")}
    arguments = ["--aot", "v5e:2x4", "--case", "resnet20", "--json", str(files["json"])]
    assert benchmark.main([*arguments, "--markdown", str(files["markdown"])]) == 1
    assert "error: resnet20-vjp: the TPU compiler failed" in capsys.readouterr().err
    written = json.loads(files["json"].read_text())
    assert list(written["programs"]) == [
        f"resnet20-{name}" for name in ("forward", "finite_difference", "jvp")
    ]
    row = "| resnet20-jvp | 12.0 | 6.00 | 3.00 | 4.00 | 0.500 | 0.00800 | 0.00600 (1) | 7 |"
    assert row in files["markdown"].read_text()


@pytest.mark.long
def test_a_tpu_compiler_that_fails_says_why():
    """Topologies are checked by libtpu alone; without it, the import says so."""
    program = aot.PROGRAMS["resnet20-forward"]
    with pytest.raises(child.ChildLost, match="the TPU compiler (failed|ended)"):
        aot.ask("v99:1x1", program)


@pytest.mark.parametrize("name", ["resnet20-forward", "resnet8-jvp-devices-8-inputs"])
def test_the_programs_for_a_tpu_can_be_traced(name):
    """With the devices of this machine in the place of a TPU's."""
    program = aot.PROGRAMS[name]
    devices = np.resize(jax.devices(), min(program.devices, jax.device_count()))
    mesh = jax.sharding.Mesh(devices, ("data",))
    network = nts.linen(models.cifar_resnet(8, width=4), tpu_compiler.INPUT_SHAPE)
    function, arguments = tpu_compiler.traced(program, network, mesh)
    result = jax.eval_shape(function, *arguments)
    if program.estimator is None:
        assert result.shape == (program.batch_size, 10)
    else:
        assert result[1]["trace"].shape == ()


def test_collectives_and_arrays_are_read_from_the_compiled_program():
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x = jax.device_put(jnp.ones((4, 3)), sharding)
    text = jax.jit(lambda x: x.sum(axis=0)).lower(x).compile().as_text()
    assert tpu_compiler.collectives(text) == [12]
    assert tpu_compiler.collectives(jax.jit(jnp.sin).lower(x).compile().as_text()) == []
