"""Killed anywhere and run again, prepare ends with the bytes of a run that was never killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def outcomes(folder: Path, points: list[str]) -> list[str]:
    command = [sys.executable, "-m", "tests.pipeline.kill_and_resume", str(folder), *points]
    run = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=Path(__file__).parents[2])
    assert run.returncode == 0, run.stderr
    return run.stdout.split("\n")[:-1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child")
def test_killed_in_any_stage_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    points = ["2", "12", "33", "58", "66", "85", "97", "40+7"]
    assert outcomes(tmp_path, points) == [f"{point} same" for point in points]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child")
def test_a_share_killed_anywhere_and_run_again_ends_with_the_same_bytes(tmp_path: Path) -> None:
    points = ["s3", "s9", "s17"]
    assert outcomes(tmp_path, points) == [f"{point} same" for point in points]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child")
def test_a_share_killed_at_every_single_fsync_ends_with_the_same_bytes(tmp_path: Path) -> None:
    points = [f"s{point}" for point in range(1, 60)]
    assert outcomes(tmp_path, points) == [f"{point} same" for point in points]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child")
def test_killed_at_every_single_fsync_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    number = int(outcomes(tmp_path, [])[0])
    points = [str(point) for point in range(1, number + 1)] + [f"{first}+{first // 3}" for first in range(5, number, 5)]
    (tmp_path / "again").mkdir()
    assert outcomes(tmp_path / "again", points) == [f"{point} same" for point in points]
