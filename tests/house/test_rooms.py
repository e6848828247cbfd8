"""docs/architecture.md shows the rooms as they are."""

import runpy
import subprocess
import sys
from pathlib import Path

from tests.house.tree import ROOT, files

PICTURES = ROOT / "docs" / "pictures"


def test_the_picture_of_the_rooms_is_what_its_script_draws() -> None:
    script = runpy.run_path(str(PICTURES / "draw_rooms.py"))
    assert (PICTURES / "rooms.svg").read_text(encoding="utf-8") == script["draw"]()


def test_no_room_is_too_full() -> None:
    """18 files; cli/ has one for each command."""
    full = {
        room.name: len(inside)
        for room in (ROOT / "retroflow").iterdir()
        if room.is_dir()
        and len(inside := [path for path in room.glob("*.py") if path.name != "__init__.py"])
        > (24 if room.name == "cli" else 18)
    }
    assert not full, "a room has one subject; split it (docs/architecture.md)"


def test_no_file_of_the_library_escapes_these_rules_or_the_linter() -> None:
    every = set((ROOT / "retroflow").rglob("*.py"))
    assert set(files("retroflow", "*.py")) == every
    command = [sys.executable, "-m", "ruff", "check", "--show-files", "retroflow"]
    linted = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True).stdout
    assert {Path(line) for line in linted.splitlines()} == every


def test_every_room_and_every_named_file_is_in_the_architecture() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = [path.name for path in (ROOT / "retroflow").iterdir() if (path / "__init__.py").exists()]
    assert not [room for room in rooms if f"`{room}/`" not in text]
    named = [word for word in text.replace("`", " ").split() if word.endswith(".py") and "/" in word]
    assert not [name for name in named if not (ROOT / "retroflow" / name).exists()]
