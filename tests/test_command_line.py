"""The command line: what is read, and what is said of a mistake."""

from dataclasses import dataclass, field

import pytest

from experiments.shell import command_line
from experiments.shell.errors import UserError


@dataclass(frozen=True)
class Inner:
    density: float = 0.1
    kind: str = "jvp"


@dataclass(frozen=True)
class Config:
    seed: int = 0
    drop_epochs: tuple[int, ...] = (80, 120)
    resume: bool = False
    inner: Inner = field(default_factory=Inner)


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
        ("xyz", r"unknown preset 'xyz'\. Known: demo, paper"),
        ("--seed 3 demo", r"a preset comes first.*got '--seed'\. Presets: demo, paper"),
        ("demo --sed 3", r"unknown flag --sed\. Did you mean --seed\? See: prog demo --help"),
        ("demo --densty=0.3", r"unknown flag --densty\. Did you mean --density\?"),
        ("demo 0.3", r"unexpected word '0.3'"),
        ("demo --density x", r"--density: could not convert string to float: 'x'"),
        ("demo --seed 1.5", r"--seed: invalid literal"),
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


def test_of_equally_similar_names_the_one_with_the_same_beginning_is_suggested():
    with pytest.raises(UserError, match=r"Did you mean resnet20\?"):
        command_line.check_name("model", "resnet21", ["resnet20", "resnet32"])
    command_line.check_name("model", "resnet20", ["resnet20", "resnet32"])


def test_flags_are_all_that_a_configuration_holds():
    assert command_line.flags(Config()) == [
        "--seed",
        "--drop-epochs",
        "--resume",
        "--density",
        "--kind",
    ]
