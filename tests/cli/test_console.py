import errno
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from retroflow import errors
from retroflow.cli.console import exit_code_of, print_error

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.RetroflowError("x"), 1),
        (errors.UsageError("x"), 2),
        (errors.CorpusError("x"), 2),
        (errors.UnknownComponentError("x"), 2),
        (errors.ComponentError("x"), 1),
        (errors.DamagedDataError("x"), 3),
        (errors.MissingExtraError("x"), 4),
        (errors.BrokenPluginError("x"), 4),
        (errors.ComponentConflictError("x"), 4),
        (errors.Preempted("x"), 75),
    ],
)
def test_each_kind_of_error_has_its_exit_code_and_no_traceback(error: Exception, code: int, capsys: Capture) -> None:
    assert exit_code_of(error, show_traceback=False) == code
    assert capsys.readouterr().err == "error: x\n"


def test_every_exit_code_is_documented() -> None:
    from pathlib import Path

    page = (Path(__file__).resolve().parents[2] / "docs" / "exit-codes.md").read_text()
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "exit_code")]
    for code in {kind.exit_code for kind in kinds} | {0, 130}:
        assert f"| {code} |" in page


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "The disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permissions"),
        (errno.EPERM, "permissions"),
        (errno.EIO, "--traceback shows where"),
    ],
)
def test_a_failed_file_operation_is_one_line_with_path_and_remedy(number: int, remedy: str, capsys: Capture) -> None:
    assert exit_code_of(OSError(number, os.strerror(number), "/some/file"), show_traceback=False) == 1
    line = capsys.readouterr().err
    assert line.startswith("error: /some/file: ")
    assert remedy in line
    assert line.count("\n") == 1


def test_a_write_without_a_path_still_says_what_to_do(capsys: Capture) -> None:
    exit_code_of(OSError(errno.ENOSPC, "No space left on device"), show_traceback=False)
    assert capsys.readouterr().err.startswith("error: No space left on device. The disk is full.")


def test_an_interrupt_is_130(capsys: Capture) -> None:
    assert exit_code_of(KeyboardInterrupt(), show_traceback=False) == 130
    assert capsys.readouterr().err == "error: interrupted.\n"


def test_a_bug_keeps_its_traceback(capsys: Capture) -> None:
    assert exit_code_of(_raised(lambda: 1 // 0), show_traceback=False) == 1
    shown = capsys.readouterr().err
    assert "ZeroDivisionError" in shown
    assert shown.splitlines()[-1].startswith("error: this is a bug")


NO_MEMORY = [
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
    type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("std::bad_alloc"),
    errors.OutOfMemory("rank 1: CUDA out of memory."),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=repr)
@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["fit", "--recipe", "x.yaml"], "trainer.accumulate"),
        (["evaluate", "runs/x"], "Lower trainer.eval_batch_size."),
        (["prepare"], "embedder.buckets"),
        (["generate", "runs/x"], "fewer --neighbours"),
        (["recipe", "check"], "Check that the file is a recipe"),
        (["export"], "Use a machine with more memory"),
    ],
)
def test_out_of_memory_names_the_remedy_of_the_command(
    error: Exception, words: list[str], remedy: str, capsys: Capture
) -> None:
    assert exit_code_of(error, show_traceback=False, words=words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: out of memory") and remedy in line
    assert ("trainer.batch_size" in line) == (words[0] == "fit")


def test_what_torch_raises_without_memory_is_known(capsys: Capture) -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    for error in (caught.value, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")):
        assert exit_code_of(error, show_traceback=False, words=["fit"]) == 1
        assert capsys.readouterr().err.startswith("error: out of memory (")


def test_other_errors_at_runtime_stay_bugs(capsys: Capture) -> None:
    assert exit_code_of(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), show_traceback=False) == 1
    assert "this is a bug" in capsys.readouterr().err


@pytest.mark.parametrize("code", [None, 0, 3, 75, "bye"])
def test_an_exit_from_inside_a_command_is_a_failure(code: object, capsys: Capture) -> None:
    assert exit_code_of(SystemExit(code), show_traceback=False) == 1
    assert f"the command was ended from inside (SystemExit: {code})" in capsys.readouterr().err


@pytest.mark.parametrize("code", [1, 3, 75, 130])
def test_a_rank_leaves_with_the_code_of_rank_0_and_without_a_word(code: int, capsys: Capture) -> None:
    assert exit_code_of(errors.RankEnded(code), show_traceback=False) == code
    assert capsys.readouterr().err == ""


def test_colour_is_for_terminals_without_no_color(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    print_error("x")
    assert "\x1b[" in capsys.readouterr().err
    monkeypatch.setenv("NO_COLOR", "1")
    print_error("x")
    assert "\x1b[" not in capsys.readouterr().err


def _raised(function: Callable[[], object]) -> Exception:
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError


def test_a_hanging_exit_handler_does_not_keep_the_process() -> None:
    program = (
        "import atexit, threading\n"
        "from retroflow.cli.console import end_within\n"
        "atexit.register(threading.Event().wait)\n"
        "print('result')\n"
        "end_within(3, seconds=0.5)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stdout) == (3, "result\n")


def test_a_failing_exit_handler_adds_nothing_to_what_was_said() -> None:
    program = (
        "import atexit\n"
        "from retroflow.cli.console import end_within\n"
        "atexit.register(lambda: 1 / 0)\n"
        "print('result')\n"
        "end_within(3)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stdout, result.stderr) == (3, "result\n", "")


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("ignore_memory=True trains anyway.", "--ignore-memory trains anyway."),
        ("continue with resume='last'.", "continue with --resume."),
        ("use resume='runs/a/0001' or checkpoint=20.", "use --resume runs/a/0001 or --checkpoint 20."),
        ("give a database, or retrieval=False.", "give a database, or --no-retrieval."),
        ("trainer.resume=3 and output=", "trainer.resume=3 and output="),
    ],
)
def test_arguments_of_the_library_are_shown_as_options(message: str, shown: str, capsys: Capture) -> None:
    exit_code_of(errors.RetroflowError(message), show_traceback=False)
    assert capsys.readouterr().err == f"error: {shown}\n"
