"""Grids: what a file or flags expand to, and what is said of a mistake in them."""

import itertools

import pytest

from experiments.cifar import config as config_lib
from experiments.cifar.config import Config, SearchConfig
from experiments.cifar.presets import PRESETS
from experiments.shell.errors import UserError
from experiments.sweep import grid, programs


def read(tmp_path, text):
    path = tmp_path / "table.toml"
    path.write_text(text)
    return grid.read(path)


def names(expanded, only=None):
    return [config_lib.run_name(config) for config in grid.cells(expanded, only, name="x")]


# -- Expansion -----------------------------------------------------------------------------------


def test_a_grid_is_every_combination_on_top_of_set_on_top_of_the_preset(tmp_path):
    expanded = read(
        tmp_path,
        """
        preset = "demo"
        runs_dir = "elsewhere"
        [set]
        model = "mlp"
        epochs = 3
        learning_rate = 1
        [grid]
        criterion = ["random", "ntk_sap"]
        density = [0.1, 0.02]
        seed = [0, 1]
        """,
    )
    configs = grid.cells(expanded)
    assert [(c.search.criterion, c.search.density, c.seed) for c in configs] == list(
        itertools.product(["random", "ntk_sap"], [0.1, 0.02], [0, 1])
    )
    _, demo = PRESETS["demo"]
    for config in configs:
        assert config.model == "mlp"
        assert config.training.epochs == 3
        assert config.training.learning_rate == 1.0
        assert isinstance(config.training.learning_rate, float)
        assert config.training.batch_size == demo.training.batch_size
        assert config.dataset == "digits"
        assert str(config.runs_dir) == "elsewhere"
        assert config.compare == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (  # Further grids stand on their own, and equal cells are one.
            """
            preset = "demo"
            [grid]
            criterion = ["random"]
            density = [0.1]
            seed = [0, 1]
            [[grids]]
            criterion = ["random", "magnitude"]
            density = [0.1]
            [[grids]]
            criterion = ["ntk_sap"]
            shuffle_mask = [false, true]
            """,
            [
                "digits-resnet8-random-0.1-seed0",
                "digits-resnet8-random-0.1-seed1",
                "digits-resnet8-magnitude-0.1-seed0",
                "digits-resnet8-ntk_sap-0.05-seed0",
                "digits-resnet8-ntk_sap-shuffled-0.05-seed0",
            ],
        ),
        (  # The dense network is one cell whatever the search.
            """
            [grid]
            criterion = ["dense", "magnitude"]
            density = [0.1, 0.02]
            [[grids]]
            criterion = ["dense"]
            rounds = [7]
            """,
            [
                "cifar10-resnet20-dense-1-seed0",
                "cifar10-resnet20-magnitude-0.1-seed0",
                "cifar10-resnet20-magnitude-0.02-seed0",
            ],
        ),
        (  # A label tells cells apart.
            """
            [grid]
            seed = [0]
            [[grids]]
            epochs = [4]
            warmup_epochs = [0.5]
            label = ["short"]
            """,
            ["cifar10-resnet20-ntk_sap-0.05-seed0", "cifar10-resnet20-ntk_sap-0.05-short-seed0"],
        ),
    ],
)
def test_cells_are_told_apart_by_what_they_compute(tmp_path, text, expected):
    assert names(read(tmp_path, text)) == expected


def test_what_is_set_may_be_right_only_with_what_varies(tmp_path):
    text = """
        preset = "short"
        [set]
        warmup_epochs = 5
        scope = "2:4"
        criterion = "magnitude"
        [grid]
        epochs = [10, 20]
        density = [0.5]
        label = ["a"]
        """
    cells = [c for e in ("10", "20") for c in grid.cells(read(tmp_path, text.replace("10, 20", e)))]
    assert [(c.training.epochs, c.search.scope) for c in cells] == [(10, "2:4"), (20, "2:4")]


def of_demo(**lists):
    return grid.cells(grid.from_preset("demo")._replace(tables=(grid.Table("", lists),)))


def test_the_number_of_rounds_does_not_tell_one_shot_criteria_apart():
    assert len(of_demo(criterion=["snip"], rounds=[3, 4])) == 1
    with pytest.raises(UserError, match="same run folder"):
        of_demo(criterion=["synflow"], rounds=[3, 4])


def test_values_of_every_kind_come_in_their_own_type(tmp_path):
    expanded = read(
        tmp_path,
        """
        data_dir = "data"
        [set]
        exclude = ["fc"]
        nesterov = true
        weights = "runs/other"
        micro_batch_size = "none"
        estimator = "vjp"
        [grid]
        drop_epochs = [[1], [2, 3]]
        label = ["a"]
        """,
    )
    assert [table.lists for table in expanded.tables] == [
        {"drop_epochs": [(1,), (2, 3)], "label": ["a"]}
    ]
    base = programs.replace(expanded.base, expanded.fixed)
    assert base.search.exclude == ("fc",)
    assert base.training.nesterov is True
    assert str(base.weights) == "runs/other"
    assert base.search.micro_batch_size is None
    assert base.search.estimator == "vjp"
    assert str(base.data_dir) == "data"


def test_every_field_of_the_configuration_can_be_set_by_its_own_name():
    defaults = dict(programs.leaves(Config()))
    of_all_runs = {"runs_dir", "data_dir", "compare", "resume"}
    of_processes = {"distributed", "coordinator", "num_processes", "process_id", "start_seconds"}
    assert set(programs.types(Config)) == set(defaults) - of_all_runs - of_processes
    changed = programs.replace(Config(), {"seed": 3, "rounds": 4, "epochs": 5})
    assert dict(programs.leaves(changed)) == {**defaults, "seed": 3, "rounds": 4, "epochs": 5}
    assert changed.search == SearchConfig(rounds=4)


# -- Part of a grid ------------------------------------------------------------------------------

PARTS = """
preset = "demo"
[grid]
criterion = ["dense", "random"]
density = [0.64, 0.01801439850948198]
seed = [0, 1]
[[grids]]
criterion = ["synflow"]
rounds = [100]
density = [0.64, 0.01801439850948198]
"""


def test_a_part_of_a_grid_has_the_values_asked_for(tmp_path):
    whole = read(tmp_path, PARTS)
    assert len(names(whole)) == 8
    assert names(whole, {"density": [0.01801], "seed": [0]}) == [
        "digits-resnet8-dense-1-seed0",
        "digits-resnet8-random-0.01801-seed0",
        "digits-resnet8-synflow-0.01801-seed0",
    ]
    assert grid.cells(whole, {"density": [0.01801]})[-1].search.density == 0.01801439850948198
    assert len(names(whole, {"rounds": [20], "criterion": ["random"]})) == 4


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"density": [0.64, 0.02]}, r"--density 0\.02: the grid x has no such cell \(there: 0\.64"),
        ({"epochs": [1]}, r"--epochs 1: .*\(there: 15\)"),
        ({"seed": [1], "rounds": [100]}, r"the grid x has no cell with all of these values"),
    ],
)
def test_a_part_that_is_not_there_is_a_mistake(tmp_path, wanted, message):
    with pytest.raises(UserError, match=message):
        names(read(tmp_path, PARTS), wanted)


# -- Mistakes ------------------------------------------------------------------------------------

SEEDS = "[grid]\nseed = [0]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("preset =\n[grid]", r"cannot read the grid file .*table\.toml: .*line 1"),
        ("presett = 'demo'\n" + SEEDS, r"unknown field 'presett'\. Did you mean preset\?"),
        ("preset = 'demoo'\n" + SEEDS, r"unknown preset in .*'demoo'\. Did you mean demo\?"),
        ("[set]\nepoch = 3\n" + SEEDS, r"\[set\]: unknown key 'epoch'\. Did you mean epochs\?"),
        ("[grid]\ndensty = [0.1]", r"\[grid\]: unknown key 'densty'\. Did you mean density\?"),
        (SEEDS + "\n[[grids]]\nqqq = [1]", r"\[\[grids\]\] number 1: unknown key 'qqq'\. "),
        ("[set]\nresume = true\n" + SEEDS, r"\[set\]: unknown key 'resume'"),
        ("[set]\ndrop_epochs = 4\n" + SEEDS, r"\[set\] drop_epochs: expected a valid .*got 4"),
        ("[grid]\ndensity = [0.1, 'x']", r'\[grid\] density: expected a valid number, got "x"'),
        ("[grid]\nseed = 3", r"grid: seed: expected a valid array, got 3"),
        ("preset = 'demo'", r"the grid is empty\. Give it a table \[grid\]"),
        ("[grid]\nseed = []", r"\[grid\]: the grid is empty\. Give it lists"),
        ("[set]\nseed = 3\n" + SEEDS, r"\[grid\]: seed is in \[set\] too\. Give it in one"),
        ("[grid]\ndensity = [0.3]\nscope = ['2:4']", r"\[grid\]: --scope: expected --density 0.5"),
        (
            SEEDS + "\n[[grids]]\nepochs = [4]",
            r"\[grid\] and .*\[\[grids\]\] number 1: two cells go to the same run folder "
            r"cifar10-resnet20-ntk_sap-0\.05-seed0 but differ \(epochs: 160 -> 4\).* label",
        ),
    ],
)
def test_a_mistake_in_a_file_is_one_line_that_says_which_and_where(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as error:
        grid.cells(read(tmp_path, text))
    assert "\n" not in str(error.value)
    assert "table.toml" in str(error.value)


# -- The grids that come with the programs -------------------------------------------------------

PAPERS_CRITERIA = {"random", "magnitude", "snip", "iterative_snip", "grasp", "synflow", "ntk_sap"}


@pytest.mark.parametrize("name", ["paper-cifar10", "paper-cifar100", "paper-tiny"])
def test_the_papers_grids_are_the_papers_sweeps_on_the_papers_presets(name):
    configs = grid.cells(grid.read(grid.NAMED[name]))
    _, preset = PRESETS[name]
    by_criterion = {}
    for config in configs:
        by_criterion.setdefault(config.search.criterion, []).append(config)
        assert config.training == preset.training
        assert (config.dataset, config.model) == (preset.dataset, preset.model)
    assert set(by_criterion) == PAPERS_CRITERIA | {"dense", "px"}
    densities = [0.8**k for k in range(2, 19, 2)]
    for criterion, of_it in by_criterion.items():
        found = {(config.search.density, config.seed) for config in of_it}
        if criterion == "dense":
            assert found == {(1.0, 0), (1.0, 1), (1.0, 2)}
            continue
        assert len(found) == len(of_it) == 27
        assert {seed for _, seed in found} == {0, 1, 2}
        kept = sorted({density for density, _ in found}, reverse=True)
        assert kept == pytest.approx(densities, rel=1e-12)
    rounds = {name: of_it[0].search.rounds for name, of_it in by_criterion.items()}
    assert rounds["ntk_sap"] == (20 if name == "paper-cifar10" else 100)
    assert rounds["synflow"] == rounds["px"] == rounds["iterative_snip"] == 100
