"""The command line: what is read, and what is said of a mistake."""

from typing import Annotated

import pytest
from pydantic import Field

from experiments.shell import command_line
from experiments.shell.configuration import configuration
from experiments.shell.errors import UserError


@configuration
class Inner:
    density: Annotated[float, Field(le=1)] = 0.1
    kind: str = "jvp"


@configuration
class Config:
    seed: int = 0
    drop_epochs: tuple[int, ...] = (80, 120)
    resume: bool = False
    inner: Inner = Inner()


PRESETS = {
    "demo": ("the quick one", Config(seed=1)),
    "paper": ("the long one", Config(seed=2)),
}


def parse(line):
    return command_line.parse(line.split(), PRESETS, prog="prog")


def test_a_preset_gives_the_defaults_of_the_flags():
    assert parse("paper") == Config(seed=2)
    expected = Config(seed=1, drop_epochs=(5, 7), resume=True, inner=Inner(density=0.5))
    assert parse("demo --density 0.5 --resume --drop-epochs 5 7") == expected
    assert parse("demo --density=0.5 --drop_epochs 5 7 --resume") == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("demoo", r"unknown preset 'demoo'\. Did you mean demo\? Known: demo, paper"),
        ("--seed 3 demo", r"a preset comes first.*got '--seed'\. Presets: demo, paper"),
        ("demo --sed 3", r"options: --sed, 3\. Did you mean --seed\? See: prog demo --help"),
        ("demo --density 1.5", r"^--density: expected less than or equal to 1, got 1.5$"),
        ("demo --density x", r"--density: could not convert string to float: 'x'"),
        ("demo --seed", r"Missing value for argument '--seed'"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(line, message):
    with pytest.raises(UserError, match=message) as error:
        parse(line)
    assert "\n" not in str(error.value)
    assert "│" not in str(error.value)


def test_help_is_no_mistake_but_no_argument_at_all_is(capsys):
    for arguments, code in ((["--help"], 0), (["demo", "--help"], 0), ([], 2)):
        with pytest.raises(SystemExit) as stop:
            command_line.parse(arguments, PRESETS, prog="prog")
        assert stop.value.code == code
        shown = capsys.readouterr().out
        assert ("--density" if arguments[:1] == ["demo"] else "the quick one") in shown
