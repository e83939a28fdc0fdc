"""Pictures show the numbers they are given, on labelled axes."""

import numpy as np

from experiments.shell import pictures

EPOCHS = [
    {"epoch": t, "train_loss": 2 / t, "test_loss": 2.5 / t}
    | {"train_accuracy": 0.1 * t, "test_accuracy": 0.09 * t}
    for t in range(1, 6)
]


def lines(axes):
    return [np.asarray(line.get_ydata()) for line in axes.get_lines() if len(line.get_ydata())]


def assert_labelled(figure):
    figure.canvas.draw()
    for axes in figure.axes:
        assert axes.get_xlabel()
        assert axes.get_ylabel() or axes.get_yticklabels()
    assert figure.get_suptitle()


def test_training_curves():
    figure = pictures.training_curves({"ntk_sap": EPOCHS, "dense": EPOCHS[:3]}, "a title")
    assert_labelled(figure)
    loss, accuracy = figure.axes
    np.testing.assert_allclose(lines(loss)[0], [row["test_loss"] for row in EPOCHS])
    np.testing.assert_allclose(lines(loss)[1], [row["train_loss"] for row in EPOCHS])
    np.testing.assert_allclose(lines(accuracy)[2], [row["test_accuracy"] for row in EPOCHS[:3]])
    legend = [text.get_text() for text in accuracy.get_legend().get_texts()]
    assert legend[:2] == ["ntk_sap: 45.0%", "dense: 27.0%"]


def test_of_many_runs_the_test_set_alone_is_drawn():
    names = ("ntk_sap", "synflow", "snip", "random", "dense")
    loss, accuracy = pictures.training_curves(dict.fromkeys(names, EPOCHS), "a title").axes
    assert len(lines(loss)) == len(lines(accuracy)) == len(names)
    np.testing.assert_allclose(lines(accuracy)[4], [row["test_accuracy"] for row in EPOCHS])


def test_layer_densities_are_bars_from_the_first_layer_down():
    runs = {
        "ntk_sap": {"conv/kernel": 0.9, "fc/kernel": 0.2},
        "random": {"conv/kernel": 0.05, "fc/kernel": 0.06},
    }
    figure = pictures.layer_densities(runs, "a title")
    assert_labelled(figure)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["conv", "fc"]
    assert [bar.get_width() for bar in axes.patches] == [0.9, 0.2, 0.05, 0.06]
    assert axes.yaxis_inverted()


def test_search_rounds_with_and_without_a_trace():
    rows = [{"round": t, "threshold": 3.0 * t, "trace": 1e6 / t} for t in range(1, 5)]
    figure = pictures.search_rounds(rows, "a title")
    assert_labelled(figure)
    shown = [lines(axes)[0] for axes in figure.axes]
    np.testing.assert_allclose(shown[0], [row["threshold"] for row in rows])
    np.testing.assert_allclose(shown[1], [row["trace"] for row in rows])

    without = [{"round": t, "threshold": -1.0} for t in range(1, 5)]
    figure = pictures.search_rounds(without, "a title")
    assert_labelled(figure)
    assert len(figure.axes) == 1
