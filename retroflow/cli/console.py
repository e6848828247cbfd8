"""What a failed command prints, and its exit code (docs/exit-codes.md)."""

import errno
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import NoReturn

from retroflow.cli.streams import STDOUT, describe_failed_stdout
from retroflow.errors import RankEnded, RetroflowError, is_out_of_memory

FAILURE, USAGE, INTERRUPTED = 1, 2, 130

EXIT_SECONDS = 90.0
"""Time limit for exit handlers of libraries; W&B's waits until everything is sent."""

_REMEDIES = {
    errno.ENOSPC: "The disk is full. Free space or choose another folder, and run the same command again.",
    errno.EDQUOT: "The disk quota is used up. Free space or choose another folder, and run the same command again.",
    errno.EROFS: "The file system is read-only. Choose another folder (data.artifacts_folder, trainer.runs_folder).",
    errno.EACCES: "Permission denied. Change the permissions or choose another folder "
    "(data.artifacts_folder, trainer.runs_folder).",
    errno.EMFILE: "Too many files are open. Raise the limit with `ulimit -n`.",
}
_REMEDIES[errno.EPERM] = _REMEDIES[errno.EACCES]

_ARGUMENT = re.compile(
    r"(?<![\w.])(ignore_memory|allow_mass_removal|dry_run|resume|checkpoint|output|retrieval|rows|over|values|sequences|database|corpus|against|retriever|vectors|random|queries|dataset|memory_limit)=(?:'([^']+)'|(True|False|STEP|\d+))"
)
"""Arguments of the Python API that are options of a command of the same name."""

_PREPARING = (
    "use another retriever (docs/retrievers.md), or lower embedder.batch_tokens (bert) or embedder.buckets (lexical)"
)
_MEMORY_REMEDIES = {
    "fit": "While training: raise trainer.accumulate, set trainer.activation_checkpointing=true, lower "
    f"trainer.batch_size, or make the model smaller (model.width, model.num_layers). While preparing: {_PREPARING}.",
    "evaluate": "Lower trainer.eval_batch_size.",
    "prepare": f"{_PREPARING[0].upper()}{_PREPARING[1:]}.",
    "generate": "Give fewer --neighbours, shorter or fewer prompts, or a lower --batch-size.",
    "recipe": "Check that the file is a recipe; a recipe has a few kilobytes.",
}
_MORE_MEMORY = "Use a machine with more memory, or end other programs on this one."
_LONGEST_REASON = 200


def exit_code_of(error: BaseException, *, show_traceback: bool, words: Sequence[str] = ()) -> int:
    """Print an error on stderr and return its exit code.

    An error that a user can correct is one message. Any other is a bug and keeps its traceback.

    Args:
        error: what ended the command.
        show_traceback: print the traceback of a user's error, too.
        words: the command line, for a hint at the intended command.
    """
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        print_error("interrupted.")
        return INTERRUPTED
    if isinstance(error, RankEnded):  # rank 0 says why
        return error.code if isinstance(error.code, int) else FAILURE
    if show_traceback:
        traceback.print_exception(error)
    if is_out_of_memory(error):
        print_error(_describe_out_of_memory(error, words))
        return FAILURE
    if isinstance(error, RetroflowError):
        print_error(in_flags(str(error)))
        return error.exit_code
    if isinstance(error, OSError) and error.errno is not None:
        print_error(describe_failed_stdout(error) if error.filename == STDOUT else describe_os_error(error))
        return FAILURE
    # typer's usage errors; their classes moved from click into typer, their shape did not change
    format_message = getattr(error, "format_message", None)
    if callable(format_message):
        _print_usage_error(error, str(format_message()), words)
        return USAGE
    if not show_traceback:
        traceback.print_exception(error)
    ended = ""
    if isinstance(error, SystemExit):
        ended = f"the command was ended from inside (SystemExit: {error}); "
    print_error(f"{ended}this is a bug in retroflow or in a plugin; please report it with the traceback above.")
    return FAILURE


def _describe_out_of_memory(error: BaseException, words: Sequence[str]) -> str:
    command = next((word for word in words if not word.startswith("-")), "")
    reason = str(error).strip().partition("\n")[0]
    if len(reason) > _LONGEST_REASON:
        reason = f"{reason[:_LONGEST_REASON]} ..."
    reported = f" ({reason})" if reason else ""
    return f"out of memory{reported}. {_MEMORY_REMEDIES.get(command, _MORE_MEMORY)} --traceback shows where."


def in_flags(message: str) -> str:
    """Return a library message with its arguments, such as `ignore_memory=True`, as options of the command line."""

    def flag(found: re.Match[str]) -> str:
        name, text, value = found[1].replace("_", "-"), found[2], found[3]
        if value == "False":
            return f"--no-{name}"
        return f"--{name}" if text == "last" or value == "True" else f"--{name} {text or value}"

    return _ARGUMENT.sub(flag, message)


def describe_os_error(error: OSError) -> str:
    """Return path, reason and remedy of a failed file operation in one line."""
    path = error.filename2 or error.filename
    place = f"{os.fsdecode(path)}: " if isinstance(path, str | bytes | os.PathLike) else ""
    notes = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
    remedy = _REMEDIES.get(error.errno or 0, "--traceback shows where it happened.")
    return f"{place}{error.strerror or error}. {remedy}{notes}"


def print_error(message: str) -> None:
    """Print `error: message` on stderr, in colour on a terminal unless NO_COLOR is set."""
    colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    label = "\x1b[1;31merror:\x1b[0m" if colour else "error:"
    print(f"{label} {message}", file=sys.stderr)


def end_within(code: int, *, seconds: float = EXIT_SECONDS) -> NoReturn:
    """Exit, even if an exit handler of a library hangs or fails; results are already written and flushed."""

    def give_up() -> None:
        time.sleep(seconds)
        os._exit(code)

    threading.Thread(target=give_up, daemon=True).start()
    sys.unraisablehook = lambda failed: None  # W&B's handler fails with a traceback if its process was killed
    sys.exit(code)


def _print_usage_error(error: BaseException, message: str, words: Sequence[str]) -> None:
    if not message:  # a command without words has shown its help
        return
    context = getattr(error, "ctx", None)
    hint = f" Try: {context.command_path} --help" if context is not None else ""
    recipes = [word for word in words if word.endswith((".yaml", ".yml"))]
    if "--recipe" in message and recipes and "--recipe" not in words:  # or the command has no such option
        hint = f" Write: --recipe {recipes[0]}"
    print_error((message if message.endswith((".", "?")) else f"{message}.") + hint)
