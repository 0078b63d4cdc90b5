"""The journal: whatever cuts it off, what is left is whole."""

from pathlib import Path

import msgspec
import pytest

from jobs.contract import Annotated, Annotation, ModelRef, Size, Timing
from jobs.settings import SettingsError
from scripts.journal import Entry, Journal


def entry(name: str, label: str = "coin", stamp: str = "1") -> Entry:
    finds = [Annotation(label, 0.5, (1, 2, 3, 4), keypoints=[(1, 1, 2)])]
    result = Annotated(Size(9, 9), ModelRef("m", "1"), finds, Timing(1, 1, 1, 1))
    return Entry(name, stamp, "00", result)


def test_every_cut_leaves_the_lines_before_it(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path, "begun")
    sizes = [path.stat().st_size]
    for name in "cab":
        journal.add(entry(name))
        sizes.append(path.stat().st_size)
    journal.close()
    whole = path.read_bytes()
    for cut in sorted({*range(0, len(whole), 7), *sizes, *(size - 1 for size in sizes)}):
        path.write_bytes(whole[:cut])
        torn = Journal(path, "begun")
        lines = sum(size <= cut for size in sizes[1:])
        assert [each.name for each in torn] == sorted("cab"[:lines])
        torn.add(entry("d"))
        torn.close()
        again = Journal(path, "begun")
        assert [each.name for each in again] == sorted(["d", *"cab"[:lines]])
        again.close()


def test_the_last_line_of_a_name_counts(tmp_path: Path) -> None:
    for path in (tmp_path / "journal", None):
        journal = Journal(path, "begun")
        journal.add(entry("a", "old"))
        journal.add(entry("b"))
        journal.add(entry("a", "new", "2"))
        assert [each.result.annotations[0].label for each in journal] == ["new", "coin"]
        assert journal.has("a", "2")
        assert not journal.has("a", "1")
        assert len(journal) == 2
        assert journal.keypoints == 1
        journal.close()


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    for content, told in (
        (b"my notes\n", "not a journal"),
        (b'{"a":1}\n', "not a journal"),
        (msgspec.json.encode({"mayfly": 1, "begun": "other"}) + b"\n", "other prompts"),
    ):
        path.write_bytes(content)
        with pytest.raises(SettingsError, match=told):
            Journal(path, "begun")
        assert path.read_bytes() == content


def test_two_runs_do_not_share_one(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", "begun")
    with pytest.raises(SettingsError, match="in use"):
        Journal(tmp_path / "journal", "begun")
    journal.close()
    Journal(tmp_path / "journal", "begun").close()
