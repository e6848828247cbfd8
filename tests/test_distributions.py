"""A distribution whose entry points cannot be read is named and passed over, whoever it is from."""

from importlib import metadata
from pathlib import Path

import pytest

from retroflow import distributions
from retroflow.distributions import declarations, install_again, missing_requirements, unreadable

UNREADABLE = {"undecodable": b"[console_scripts]\nx\xff = a:b\n", "no entry point": b"[console_scripts]\nx\n"}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(tmp_path))

    def write_distribution(name: str, points: bytes, described: bytes = b"") -> Path:
        folder = tmp_path / f"{name}-0.1.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_bytes(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n".encode() + described)
        (folder / "entry_points.txt").write_bytes(points)
        return folder

    return write_distribution


@pytest.mark.parametrize("points", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_entry_points_that_cannot_be_read_are_passed_over_by_name(write, points: bytes) -> None:
    assert unreadable() == []
    folder = write("stranger", points)
    write("mine", b"[some.group]\nx = y:Z\n")
    assert [(one.name, one.value, one.owner) for one in declarations("some.group")] == [("x", "y:Z", "mine 0.1")]
    (sentence,) = unreadable()
    assert sentence.startswith(f"{folder}: entry_points.txt cannot be read (")
    assert "stranger 0.1" in sentence and sentence.endswith(install_again("stranger 0.1"))


def test_metadata_that_cannot_be_read_leaves_the_folders_name(write) -> None:
    write("odd", b"[some.group]\nx = y:Z\n", b"Author: \xff\n")
    assert [one.owner for one in declarations("some.group")] == ["odd 0.1"]
    assert missing_requirements("odd") == []


def test_missing_requirements_are_those_of_this_machine_without_extras(write) -> None:
    needed = (
        b"Requires-Dist: numpy>=1\nRequires-Dist: nobody-has-it>=2\nRequires-Dist: old; python_version < '3'\n"
        b"Requires-Dist: more; extra == 'x'\nRequires-Dist: ???\n"
    )
    write("needy", b"", needed)
    assert missing_requirements("needy") == ["nobody-has-it>=2"]
    assert missing_requirements("not-installed-at-all") == []


def test_other_libraries_are_shielded_from_entry_points_that_cannot_be_read(write, monkeypatch) -> None:
    """torch, Lightning and fsspec read the entry points of every distribution when they are imported."""
    monkeypatch.setattr(metadata.Distribution, "entry_points", metadata.Distribution.entry_points)
    write("stranger", UNREADABLE["undecodable"])
    with pytest.raises(UnicodeDecodeError):
        metadata.entry_points(group="torch.backends")
    distributions.shield_libraries()
    assert not metadata.entry_points(group="torch.backends")
    assert metadata.entry_points(group="console_scripts")
