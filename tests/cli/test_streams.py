"""The standard streams: closed, full, and with a plugin that prints; and what a crash of native code leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from retroflow.cli import console
from retroflow.cli.main import run
from retroflow.cli.streams import only_results_on_stdout, print_result
from retroflow.errors import RetroflowError
from retroflow.pipeline.index import IndexStage
from tests.pipeline.recipes import small_recipe

MAIN = "from retroflow.cli.main import main; main()"


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text("recipe_version: 1\nmodel: {name: retro}\n" + small_recipe(tmp_path).to_yaml())
    return file


def shell(line: str, *words: str, program: str = MAIN, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a line of bash in which "$@" is retroflow."""
    return subprocess.run(
        ["bash", "-c", line, "bash", sys.executable, "-c", program, *words],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_stdout_is_told_as_stdout(unbuffered: str) -> None:
    result = shell('"$@" > /dev/full', "components", PYTHONUNBUFFERED=unbuffered)
    assert result.returncode == 1
    assert result.stderr.startswith("error: stdout: No space left on device. The result could not be printed")
    assert result.stderr.count("\n") == 1


def test_a_full_stdout_of_prepare_is_not_a_full_disk_of_artifacts(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert run(["prepare", "--recipe", str(recipe_file)]) == 1
    assert "error: stdout: No space left on device" in capsys.readouterr().err


def test_what_belongs_on_a_closed_stdout_goes_to_stderr() -> None:
    result = shell('"$@" >&-', "components")
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr == shell('"$@"', "components").stdout


def test_with_closed_streams_no_file_takes_their_numbers(tmp_path: Path) -> None:
    program = (
        "import sys; from retroflow.cli import main\n"
        "def run(words):\n"
        "    with open(words[0], 'w') as file:\n"
        "        assert file.fileno() > 2\n"
        "        print('printed'); print('told', file=sys.stderr); file.write('content')\n"
        "    return 0\n"
        "main.run = run; main.main()"
    )
    for closed in (">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"):
        file = tmp_path / closed
        assert shell(f'"$@" {closed}', str(file), program=program).returncode == 0
        assert file.read_text() == "content"


def test_what_a_plugin_prints_is_not_part_of_the_result(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = IndexStage.begin

    def loud(self: IndexStage, partial: Path) -> object:
        print("a plugin says hello")
        return begin(self, partial)

    monkeypatch.setattr(IndexStage, "begin", loud)
    assert run(["prepare", "--recipe", str(recipe_file), "--json"]) == 0
    printed = capsys.readouterr()
    assert len(json.loads(printed.out)["stages"]) == 4
    assert "a plugin says hello\n" in printed.err


def test_results_reach_stdout_from_within(capsys: pytest.CaptureFixture[str]) -> None:
    with only_results_on_stdout(), only_results_on_stdout():
        print("elsewhere")
        print_result("result")
    print_result("after")
    assert capsys.readouterr() == ("result\nafter\n", "elsewhere\n")


def test_what_native_code_prints_is_no_part_of_the_result() -> None:
    program = (
        "import ctypes, os; from retroflow.cli import main, streams\n"
        "def run(words):\n"
        "    streams.print_result('before')\n"
        "    with streams.only_results_on_stdout(), streams.only_results_on_stdout():\n"
        "        ctypes.CDLL(None).puts(b'in its buffer'); os.write(1, b'at once\\n'); streams.print_result('result')\n"
        "    streams.print_result('after')\n"
        "    return 0\n"
        "main.run = run; main.main()"
    )
    printed = shell('"$@"', program=program)
    assert printed.returncode == 0 and printed.stdout == "before\nresult\nafter\n"
    assert "in its buffer\n" in printed.stderr and "at once\n" in printed.stderr
    full = shell('"$@" > /dev/full', program=program.replace("streams.print_result('before')", "pass"))
    assert full.returncode != 0 and "stdout: No space left on device" in full.stderr
    assert "Exception ignored" not in full.stderr


def test_a_closed_pipe_is_still_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Gone())
    with pytest.raises(BrokenPipeError):
        print_result("x")
    assert not issubclass(BrokenPipeError, RetroflowError)


def test_a_crash_of_native_code_names_its_python_lines() -> None:
    program = (
        "import ctypes; from retroflow.cli import main\n"
        "def search_of_a_plugin(words): ctypes.string_at(0)\n"
        "main.run = search_of_a_plugin; main.main()"
    )
    result = shell('"$@"', program=program)
    assert "Segmentation fault" in result.stderr and "in search_of_a_plugin" in result.stderr
    assert result.returncode != 0 and shell('"$@" 2>&-', program=program).returncode != 0


def test_console_knows_the_streams_name() -> None:
    assert console.exit_code_of(OSError(28, "No space left on device", "stdout"), show_traceback=False) == 1
