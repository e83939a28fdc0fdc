"""Files written aside, and records that show damage."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.storage import files

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


def test_the_contents_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    path, order = tmp_path / "file", []
    fsync, replace = os.fsync, os.replace

    def recording_fsync(descriptor):
        order.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "replace", lambda *args: (order.append("rename"), replace(*args)))
    with files.aside(path) as aside:
        aside.write_text("x")
        assert not path.exists()
    assert order == [path.stat().st_ino, "rename", tmp_path.stat().st_ino]
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_what_went_wrong_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), files.aside(path) as aside:
        aside.write_text("new")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@settings(max_examples=20)
@given(JSON, JSON)
def test_a_sealed_value_is_returned_and_no_other(value, other):
    record = files.seal(value)
    assert files.unseal(record) == value
    if files.digest(other) != files.digest(value):
        with pytest.raises(ValueError, match="its SHA-256 is not the recorded one"):
            files.unseal({**record, "value": other})


@pytest.mark.parametrize("record", [None, 3, [], {}, {"value": 1}, {"sha256": "x", "val": 1}])
def test_what_is_no_record_is_an_error(record):
    with pytest.raises(ValueError, match="not a record of this program"):
        files.unseal(record)
