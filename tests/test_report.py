"""The report says what the run folders hold, and keeps apart what must not be mixed."""

import base64
import csv
import dataclasses
import json
import re
import statistics
from xml.etree import ElementTree

import fake_runs
import pytest
from fake_runs import TINY, configure, write, write_filters

from experiments.cifar.choices import CRITERIA
from experiments.cifar.config import TrainingConfig
from experiments.cifar.presets import PRESETS
from experiments.report import (
    accuracy,
    comparison,
    drawing,
    filters,
    gallery,
    layers,
    runs,
    setups,
    spectra,
)
from experiments.report import program as report
from experiments.shell import pictures

NAMES = ("summary", "config")
DENSITIES = [0.8**power for power in range(2, 20, 2)]
PAPER = next(
    config
    for name, (_, config) in PRESETS.items()
    if name.startswith("paper") and config.dataset == "cifar10"
)


@pytest.fixture
def no_pictures(monkeypatch):
    """Pictures take a second each; the tests of the words do without."""
    drawn = {"svg": b"<svg/>", "png": b"a picture"}
    monkeypatch.setattr(gallery, "render", lambda make, *arguments: drawn)


def make_report(root, *more, code=0):
    assert report.main([str(root), *map(str, more), "--out", str(root / "out")]) == code
    return root / "out"


def refusal(capsys, *arguments):
    """What is printed when there is no report."""
    with pytest.raises(SystemExit) as stop:
        report.main([*map(str, arguments)])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: ")
    return error


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def sections(root):
    return setups.group(runs.find([root]).runs)


def write_small(root):
    """Two criteria at two densities, a sanity check and the dense network."""
    for seed, (good, bad, shuffled, dense) in enumerate(
        [(0.80, 0.50, 0.70, 0.90), (0.82, 0.55, 0.74, 0.91), (0.84, 0.51, 0.72, 0.92)]
    ):
        write(root, configure("ntk_sap", 0.1, seed), good)
        write(root, configure("random", 0.1, seed), bad)
        write(root, configure("ntk_sap", 0.1, seed, shuffle_mask=True), shuffled)
        write(root, configure("dense", seed=seed), dense)
    write(root, configure("ntk_sap", 0.02), 0.61)
    write(root, configure("random", 0.02), 0.30)


# -- Numbers -------------------------------------------------------------------------------------


def test_tables_hold_means_and_deviations(tmp_path, no_pictures, capsys):
    write_small(tmp_path)
    out = make_report(tmp_path)
    assert "14 runs; the report is" in capsys.readouterr().out

    std = statistics.stdev([80, 82, 84])  # Divides by n - 1: 2, not 1.63.
    assert std == 2
    table = (out / "table.md").read_text()
    first = table[: table.index("What the masks keep")]
    assert "| criterion | 1 | 0.1 | 0.02 |" in first
    assert "| dense | 91.00 ± 1.00 (3) | – | – |" in first
    assert "| ntk_sap | – | **82.00 ± 2.00 (3)** | 61.00 (1) |" in first
    assert "| ntk_sap, mask shuffled | – | 72.00 ± 2.00 (3) | – |" in first
    assert "| random | – | 52.00 ± 2.65 (3) | 30.00 (1) |" in first

    cells = {(row["line"], row["density"]): row for row in read_csv(out / "table.csv")}
    assert len(cells) == 6
    cell = cells["random", "0.1"]
    assert float(cell["mean_accuracy"]) == pytest.approx(52)
    assert float(cell["std_accuracy"]) == pytest.approx(statistics.stdev([50, 55, 51]))
    assert cell["seeds"] == "3"
    assert cells["ntk_sap", "0.02"]["std_accuracy"] == ""
    assert [key for key, row in cells.items() if row["ahead"] == "True"] == [("ntk_sap", "0.1")]

    single = read_csv(out / "runs.csv")
    assert len(single) == 14
    of_random = [float(row["last_test_accuracy"]) for row in single if row["line"] == "random"]
    assert of_random == pytest.approx([50, 55, 51, 30])

    # Who is ahead is decided by the pooled deviation, √((2·2² + 2·2²) / 4) = 2.
    shuffled = "At density 0.1 ntk_sap is 10.00 points ahead of ntk_sap, mask shuffled (pooled"
    assert f"{shuffled} standard deviation 2.00)." in table
    assert "At density 0.02 there is one seed each: ntk_sap is highest, 31.00 points ahead" in table


def test_a_lead_within_the_deviation_is_not_bold(tmp_path, no_pictures):
    for seed, (one, other) in enumerate([(0.80, 0.79), (0.82, 0.81), (0.84, 0.83)]):
        write(tmp_path, configure("snip", 0.1, seed), one)
        write(tmp_path, configure("grasp", 0.1, seed), other)
    text = (make_report(tmp_path) / "table.md").read_text()
    assert "**" not in text
    assert "At density 0.1 the best two cannot be separated: snip is 1.00 points ahead" in text


def test_what_the_masks_keep_and_older_versions_did_not_record(tmp_path, no_pictures):
    for seed, dead in enumerate([[], ["b/kernel"]]):
        write(
            tmp_path,
            configure("snip", 0.1, seed),
            0.5,
            live_channels={"a/kernel": 1.0, "b/kernel": 0.5},
            dead_layers=dead,
            effective_density=0.06 + 0.02 * seed,
            kept_flops=200,
            search_seconds=1.0 + seed,
        )
    old = write(tmp_path, configure("ntk_sap", 0.1), 0.5)
    (old / "environment.json").unlink()
    summary, config = (json.loads((old / f"{name}.json").read_text()) for name in NAMES)
    for name in ("effective_density", "live_channels", "dead_layers", "variants"):
        del summary[name]
    del config["image_size"], config["search"]["scope"]
    for name, values in zip(NAMES, (summary, config), strict=True):
        fake_runs.write_json(old / f"{name}.json", values)
    out = make_report(tmp_path)
    table = (out / "table.md").read_text()
    assert "| snip | 0.1 | 0.07 | 20.0% | 75% | 0.5 | 1.5 s | 30 s |" in table
    assert "| ntk_sap | 0.1 | – | 10.0% | – | – |" in table
    assert [row["dead_layers"] for row in read_csv(out / "runs.csv")] == ["", "", "b/kernel"]


# -- Lines ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("configs", "expected"),
    [
        pytest.param(
            [
                configure("ntk_sap", 0.1),
                configure("ntk_sap", 0.1, rounds=5),
                configure("ntk_sap", 0.1, scope="layer", invert_scores=True),
            ],
            [
                "ntk_sap, rounds 20",
                "ntk_sap, rounds 5",
                "ntk_sap, scores inverted, scope layer, rounds 20",
            ],
            id="options that matter",
        ),
        pytest.param(
            [
                configure("random", 0.1, seed=0),
                configure("random", 0.1, seed=1, rounds=5, samples_per_class=3),
                configure("snip", 0.1, seed=0),
                configure("snip", 0.1, seed=1, micro_batch_size=7),
            ],
            ["random", "snip"],
            id="one-shot, or without data: options that do not",
        ),
        pytest.param(
            [
                configure("random", 0.1, base=dataclasses.replace(TINY, label=label))
                for label in ("long", "short")
            ],
            ["random, label long", "random, label short"],
            id="labels",
        ),
    ],
)
def test_lines_are_told_apart_by_what_matters(configs, expected, tmp_path):
    for number, config in enumerate(configs):
        write(tmp_path / str(number), config, 0.5)
    names = [line.name for section in sections(tmp_path) for line in section.lines]
    assert sorted(names) == expected


def test_the_same_configuration_twice_names_both_folders(tmp_path, capsys):
    one = write(tmp_path / "one", configure("random", 0.1), 0.5)
    two = write(tmp_path / "two", configure("random", 0.1), 0.6)
    error = refusal(capsys, tmp_path)
    assert f"{one} and {two} hold the same configuration and seed" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "report").exists()


# -- Set-ups -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "note", "told"),
    [
        ({"dataset": "cifar10"}, "", "data set: cifar10; source of the images: cifar10 1.0"),
        ({"training": TrainingConfig(epochs=7, lr_schedule="cosine")}, "", "epochs: 7"),
        ({}, "as JPEG", "note on the images: as JPEG"),
    ],
)
def test_set_ups_are_never_mixed(change, note, told, tmp_path, no_pictures):
    for seed in range(2):
        write(tmp_path / "0", configure("random", 0.1, seed), 0.5 + 0.01 * seed)
        config = configure("random", 0.1, seed, dataclasses.replace(TINY, **change))
        write(tmp_path / "1", config, 0.7 + 0.01 * seed, dataset_note=note)
    out = make_report(tmp_path)
    text, html = ((out / name).read_text() for name in ("table.md", "report.html"))
    means = re.findall(r"\d\d\.\d\d ± 0\.71 \(2\)", text)
    assert sorted(means) == ["50.50 ± 0.71 (2)", "70.50 ± 0.71 (2)"]
    assert len(re.findall("^## ", text, re.MULTILINE)) == html.count("<h2 id=") == 2
    assert f"Differs from the other set-ups in: {told}." in text
    assert {row["setup"] for row in read_csv(out / "table.csv")} == {"1", "2"}
    assert "compare within a section, not across" in html
    for page in (text, html):
        assert (f"About these images: {note}. Accuracies are not comparable" in page) == bool(note)


# -- Published -----------------------------------------------------------------------------------


def compared(tmp_path, base, **summary):
    for criterion in ("ntk_sap", "px", "random"):
        for density in DENSITIES[::4]:
            write(tmp_path, configure(criterion, density, base=base), 0.9, **summary)
    (section,) = sections(tmp_path)
    return section, comparison.compare(section)


def test_the_papers_own_set_up_is_the_same(tmp_path):
    section, found = compared(tmp_path, PAPER)
    assert [list(each.curves) for each in found] == [["ntk_sap"], ["px"]]
    assert all(each.is_same for each in found)
    assert comparison.search_differences(section) == []
    assert len(accuracy.draw(section, found).axes) == 1


@pytest.mark.parametrize(
    ("change", "summary", "difference"),
    [
        ({"model": "resnet32"}, {}, "network: resnet32 (paper: resnet20)"),
        ({"image_size": 16}, {}, "image size: 16 (paper: as it is)"),
        (
            {"training": dataclasses.replace(PAPER.training, epochs=159)},
            {},
            "epochs: 159 (paper: 160)",
        ),
        (
            {"training": dataclasses.replace(PAPER.training, drop_epochs=(80,))},
            {},
            "schedule: x 0.1 after epoch 80 (paper: x 0.1 after epoch 80, 120)",
        ),
        ({}, {"dataset_note": "JPEG"}, "note on the images: JPEG (paper: none)"),
    ],
)
def test_anything_else_is_not(change, summary, difference, tmp_path):
    section, found = compared(tmp_path, dataclasses.replace(PAPER, **change), **summary)
    assert [each.differences for each in found] == [(difference,)] * 2
    ours, theirs = accuracy.draw(section, found).axes
    assert not any("published" in text for text in legend(ours))
    assert legend(theirs) == ["ntk_sap, published", "px, published"]
    title = theirs.get_title()
    assert title.startswith("published, other set-up: resnet20, 160 epochs; NTK-SAP")


def test_the_pages_say_what_is_published_and_what_differs(tmp_path, no_pictures):
    training = dataclasses.replace(PAPER.training, epochs=5)
    shorter = dataclasses.replace(PAPER, training=training)
    for criterion in ("ntk_sap", "random"):
        write(tmp_path / "ours", configure(criterion, 0.044, base=shorter, rounds=4), 0.8)
    html = (make_report(tmp_path / "ours") / "report.html").read_text()
    assert "Published, other set-up: ntk_sap by NTK-SAP (Wang, Li, Sun, ICLR 2023)" in html
    assert "epochs: 5 (paper: 160)" in html
    assert "Our search differs from the paper's: ntk_sap: rounds: 4 (paper: 20)" in html
    assert "same set-up" not in html

    for density in DENSITIES[:2]:
        write(tmp_path / "same", configure("ntk_sap", density, base=PAPER), 0.9)
    text = (make_report(tmp_path / "same") / "table.md").read_text()
    assert "| ntk_sap, published | 91.36 ± 0.41 | ≈ 90.90 |" in text


# -- Pictures and page ---------------------------------------------------------------------------


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_accuracy_shows_means_bars_and_the_dense_band(tmp_path):
    write_small(tmp_path)
    (section,) = sections(tmp_path)
    (axes, *_) = accuracy.draw(section, []).axes
    # Dense first, then as the lines arrive at the right edge.
    assert legend(axes) == ["dense", "ntk_sap", "random", "ntk_sap, mask shuffled"]
    drawn = {
        bars.get_label(): [point for point in bars.lines[0].get_ydata()] for bars in axes.containers
    }
    assert drawn["ntk_sap"] == pytest.approx([82, 61])
    assert drawn["random"] == pytest.approx([52, 30])
    (band,) = axes.patches
    assert (band.get_y(), band.get_height()) == pytest.approx((90, 2))
    assert axes.get_xscale() == "log"
    assert axes.get_xlim()[0] > axes.get_xlim()[1]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0.02", "0.1"]


def test_layers_are_means_over_seeds_and_dead_ones_are_marked(tmp_path):
    for seed, (first, dead) in enumerate([(0.2, []), (0.4, ["fc/kernel"])]):
        write(
            tmp_path,
            configure("snip", 0.1, seed),
            0.5,
            layer_densities={"conv/kernel": first, "fc/kernel": 0.1},
            live_channels={"conv/kernel": 1.0, "fc/kernel": 0.5 * (seed == 0)},
            dead_layers=dead,
        )
    (section,) = sections(tmp_path)
    figure = layers.draw(section, 0.1, layers.panels(section, 0.1))
    density, alive = figure.axes[:2]
    assert density.images[0].get_array().ravel().tolist() == pytest.approx([0.3, 0.1])
    assert alive.images[0].get_array().ravel().tolist() == pytest.approx([1.0, 0.25])
    assert [text.get_text() for text in density.get_yticklabels()] == ["conv", "fc"]
    assert [(text.get_text(), text.get_position()) for text in density.texts] == [("×", (0, 1))]


def test_spectra_are_compared_with_the_dense_one(tmp_path):
    dense, pruned = [[100.0, 10.0], [90.0, 9.0]], [[10.0, 0.1], [50.0, 5.0]]
    for seed in range(2):
        write(tmp_path, configure("dense", seed=seed), 0.9, spectrum=dense)
        write(tmp_path, configure("ntk_sap", 0.1, seed), 0.8, spectrum=pruned)
    write(tmp_path, configure("random", 0.1), 0.8)  # Did not measure any.
    (section,) = sections(tmp_path)
    measured = spectra.measured(section, 0.1)
    assert [spectrum.line.name for spectrum in measured] == ["dense", "ntk_sap"]
    assert measured[1].eigenvalues.shape == (2, 2, 2)
    # 10.1 of 110; 10 of 100; a tenth and a hundredth are 1 and 2 decades off.
    assert list(map(str, spectra.table(measured).rows[1])) == ["ntk_sap", "0.0918", "0.1", "1.50"]

    above, below = spectra.draw_initial(measured, 0.1).axes
    assert above.lines[0].get_ydata() == pytest.approx(dense[0])
    assert above.lines[1].get_ydata() == pytest.approx(pruned[0])
    assert below.lines[1].get_ydata() == pytest.approx([0.1, 0.01])
    distance, last = spectra.draw_drift(measured, 0.1).axes
    assert distance.lines[0].get_ydata() == pytest.approx([0, 0.1])
    assert last.lines[2].get_ydata() == pytest.approx(pruned[1])


def test_what_is_the_same_for_all_criteria_has_no_panel(tmp_path):
    for criterion, density in (("snip", 0.1), ("grasp", 0.2)):
        layers_kept = {"conv/kernel": density, "fc/kernel": 0.1}
        write(tmp_path, configure(criterion, 0.1), 0.5, layer_densities=layers_kept)
    (section,) = sections(tmp_path)
    assert [panel.label for panel in layers.panels(section, 0.1)] == ["density of the layer"]
    assert len(layers.draw(section, 0.1, layers.panels(section, 0.1)).axes) == 2  # And its scale.


def test_the_page_needs_nothing_else(tmp_path):
    write(tmp_path, configure("random", 0.1), 0.5, spectrum=[[2.0, 1.0], [2.0, 0.5]])
    write(tmp_path, configure("dense"), 0.9, spectrum=[[3.0, 1.0], [2.0, 0.5]])
    out = make_report(tmp_path)
    html = (out / "report.html").read_text()
    assert not re.search(r"https?://|<script|<link|@import|url\(", html)
    names = ("accuracy", "seeds", "layers-0.1", "spectrum-0.1", "spectrum-drift-0.1")
    expected = {f"1-{name}.{ending}" for name in names for ending in ("svg", "png")}
    assert {path.name for path in out.iterdir() if path.suffix in (".svg", ".png")} == expected
    sources = re.findall(r'src="([^"]*)"', html)
    assert len(sources) == len(names)
    for source in sources:
        kind, picture = source.split(",", 1)
        assert kind == "data:image/svg+xml;base64"
        assert ElementTree.fromstring(base64.b64decode(picture, validate=True)).tag.endswith("svg")
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html


def test_every_cell_of_a_table_carries_the_name_of_its_column(tmp_path, no_pictures):
    """On a phone, where rows become blocks, the head of the table is not there."""
    write_small(tmp_path)
    html = (make_report(tmp_path) / "report.html").read_text()
    tables = re.findall(r"<table>.*?</table>", html, re.DOTALL)
    assert len(tables) == 2
    for table in tables:
        _, *columns = re.findall(r'<th scope="col">(.*?)</th>', table)
        rows = re.findall(r"<tr>\s*<th scope=\"row\">.*?</tr>", table, re.DOTALL)
        assert rows
        for row in rows:
            assert re.findall(r'data-label="(.*?)"', row) == columns


def test_the_page_records_commands_versions_and_folders(tmp_path, no_pictures):
    folder = write(tmp_path, configure("dense"), 0.9, dataset_note="<b>&")
    out = make_report(tmp_path)
    assert "| dense | 90.00 (1) |" in (out / "table.md").read_text()
    html = (out / "report.html").read_text()
    for words in ("demo --seed 0", "Python 3.11.7, jax 0.10.2; cpu: cpu", str(folder), report.PROG):
        assert words in html
    # What run folders say is text.
    assert "<b>" not in html
    assert "&lt;b&gt;&amp;" in html


def test_pictures_are_the_same_files_every_time():
    rows = [{"round": 1, "threshold": 1.0}, {"round": 2, "threshold": 3.0}]
    drawn = gallery.render(pictures.search_rounds, rows, "a title")
    assert drawn == gallery.render(pictures.search_rounds, rows, "a title")
    assert ElementTree.fromstring(drawn["svg"]).tag.endswith("svg")
    assert drawn["png"].startswith(b"\x89PNG")


def test_every_criterion_has_its_own_colour_and_marker():
    looks = [drawing.colour_and_marker(name) for name in CRITERIA if name != "dense"]
    colours, markers = map(set, zip(*looks, strict=True))
    assert len(looks) == len(colours) == len(markers) >= 10


# -- What cannot be used -------------------------------------------------------------------------


def test_incomplete_runs_are_listed_and_not_used(tmp_path, no_pictures, capsys):
    write(tmp_path, configure("random", 0.1, 0), 0.5)
    folder = write(tmp_path, configure("random", 0.1, 1), 0.5)
    (folder / "summary.json").unlink()
    out = make_report(tmp_path)
    assert f"left out: {folder} is not complete" in capsys.readouterr().err
    assert str(folder) in (out / "report.html").read_text()
    assert len(read_csv(out / "runs.csv")) == 1


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("summary.json", '{"density": 0.1}', "summary.json: last_test_accuracy: Field required"),
        ("config.json", '{"colour": "red"}', "config.json is not of this version"),
        ("config.json", None, "cannot read {}: "),
        ("environment.json", '[{"devices": 5}]', "environment.json: devices: "),
        ("spectrum.csv", "epoch,kernel_distance,eigenvalue_0\n0,0.0", "cannot read {}: "),
        ("spectrum.csv", "epoch,kernel_distance\n0,x\n", "spectrum.csv: not all are numbers"),
    ],
)
def test_damage_is_named_and_the_others_are_used(name, content, why, tmp_path, no_pictures, capsys):
    write(tmp_path, configure("random", 0.1, 0), 0.5)
    folder = write(tmp_path, configure("random", 0.1, 1), 0.5)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    out = make_report(tmp_path, code=1)
    assert f"left out: {folder} is damaged: {why.format(folder / name)}" in capsys.readouterr().err
    assert f"{folder}: " in (out / "report.html").read_text()
    assert len(read_csv(out / "runs.csv")) == 1


def test_mistakes_end_with_one_line(tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    write(tmp_path / "half", configure("random", 0.1), 0.5).joinpath("summary.json").unlink()
    for arguments, message in (
        ([], "name a folder that holds run folders"),
        ([empty], "no run folder in"),
        ([tmp_path / "nowhere"], "nowhere is not a folder"),
        ([tmp_path / "half"], "no complete run among 1 run folder"),
        ([empty, "--ot", "x"], "--ot"),
    ):
        assert message in refusal(capsys, *arguments)


def test_run_folders_count_once_at_any_depth(tmp_path):
    deep = write(tmp_path / "a" / "b", configure("random", 0.1), 0.5)
    # A run folder holds no others.
    write(deep / "checkpoints", configure("random", 0.1), 0.5)
    for roots in ([tmp_path], [deep], [tmp_path, deep]):
        assert [run.folder for run in runs.find(roots).runs] == [deep]


# -- Filters -------------------------------------------------------------------------------------


def test_runs_that_prune_filters_have_a_section(tmp_path, no_pictures, capsys):
    for seed, reached in enumerate((0.90, 0.92)):
        write_filters(tmp_path, "l1", 0.8, seed, reached)
    write_filters(tmp_path, "scratch", 0.8, 0, 0.85)
    write_filters(tmp_path, "dense", 0.8, 0, 0.95)
    shared = tmp_path / "dense"  # What these runs have in common is no run.
    shared.mkdir()
    fake_runs.write_json(shared / "config.json", {"data": "digits 1.0"})
    fake_runs.write_json(shared / "summary.json", {"test_accuracy": 0.95})
    write(tmp_path, configure("random", 0.1), 0.5)
    out = make_report(tmp_path)
    assert "5 runs; the report is" in capsys.readouterr().out
    table = (out / "table.md").read_text()
    assert "| random | 50.00 (1) |" in table
    rows = re.findall(r"\| (\S.*?) \| (all|ratio\S*) \|.*?\| (\S+ .*?) \|", table)
    assert [row[:2] for row in rows] == [
        ("dense", "all"),
        ("l1 lr 0.01", "ratio0.8"),
        ("scratch", "ratio0.8"),
    ]
    assert "| 91.00 ± 1.41 (2) |" in table
    assert [row["best_accuracy"] for row in read_csv(out / "filters.csv")] == [
        *("95.0", "90.0", "92.0", "85.0"),
    ]
    names = {path.name for path in out.glob("digits-*.svg")}
    assert names == {"digits-mlp-jsv.svg", "digits-mlp-speedup.svg"}


def test_the_pictures_of_filters_show_means_and_deviations(tmp_path):
    for seed, reached in enumerate((0.90, 0.92)):
        write_filters(tmp_path, "l1", 0.8, seed, reached)
        write_filters(tmp_path, "l1", 0.5, seed, reached + 0.02)
    (network,) = filters.group(runs.find([tmp_path]).filter_runs)
    axes = filters.draw_speedup(network).axes[0]
    (bars,) = axes.containers
    assert bars.lines[0].get_xdata() == pytest.approx([2, 5])
    assert bars.lines[0].get_ydata() == pytest.approx([93, 91])
    jacobian = filters.draw_jacobian(network).axes[0]
    assert jacobian.containers[0].lines[0].get_xdata() == pytest.approx([0.5, 0.8])
