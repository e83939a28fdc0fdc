"""What is printed without a terminal: plain lines, now and then."""

import io
import types

import pytest
from rich.console import Console

from experiments.shell import console as screen


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is told."""
    clock = types.SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(screen, "time", clock)
    return clock


def plain_console():
    return Console(file=io.StringIO(), width=200, force_terminal=False)


def test_lines_in_quick_succession_are_dropped_but_never_the_last(clock):
    console = plain_console()
    with screen.track(console, "Pruning", total=20, unit="round") as progress:
        for number in range(1, 21):
            clock.now += 1.0
            progress.advance()
            progress.line(f"round {number}")
    assert console.file.getvalue().split("\n")[:-1] == [
        f"round {number}" for number in (1, 6, 11, 16, 20)
    ]


def test_a_long_silence_is_broken_with_rate_and_time_left(clock):
    console = plain_console()
    with screen.track(console, "Training", done=10, total=110, unit="step") as progress:
        clock.now += 60.0  # Compilation, which must not count.
        progress.advance()
        for _ in range(9):
            clock.now += 4.0
            progress.advance()
    assert console.file.getvalue() == "Training: step 19/110, 4.0 s/step, 6 min 04 s left\n"


def test_a_terminal_gets_the_lines_too():
    console = Console(file=io.StringIO(), width=200, force_terminal=True, highlight=False)
    with screen.track(console, "Pruning", total=1, unit="round") as progress:
        progress.advance()
        progress.line("round 1/1  density 0.05")
    assert "round 1/1  density 0.05" in console.file.getvalue()


@pytest.mark.parametrize(("width", "tables"), [(40, 2), (60, 1)])
def test_columns_that_do_not_fit_go_below_and_no_number_is_cut(width, tables):
    console = Console(file=io.StringIO(), width=width)
    rows = [("ntk_sap", "1,234,567", "91.20%", "92.00% (150)"), ("l1", "7", "8", "9")]
    screen.show_table(console, "a title", ("method", "weights kept", "last epoch", "best"), rows)
    shown = console.file.getvalue()
    assert max(map(len, shown.splitlines())) <= width
    assert shown.count("ntk_sap") == shown.count("method") == tables
    assert all(cell in shown for row in rows for cell in row)


def test_a_plan_shows_what_stands_in_brackets():
    console = Console(file=io.StringIO(), width=80)
    screen.show_plan(console, "Plan", [("convolution", "pip install 'ntksap_jax[cpu]'")])
    assert "'ntksap_jax[cpu]'" in console.file.getvalue()
