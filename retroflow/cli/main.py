"""`retroflow`: find the command, run it, turn an error into one message and an exit code.

Command files import only typer and the standard library at the top, and their room inside the function. So `--help`
loads no torch. Only the file of the command that was typed is imported.
"""

import importlib
import os
import sys
from typing import Annotated

import typer

from retroflow.cli.console import INTERRUPTED, end_within, exit_code_of
from retroflow.cli.streams import drop_unprinted, ready_streams
from retroflow.distributions import shield_libraries
from retroflow.version import __version__

# Every command, in the order `--help` lists them. The function in module retroflow.cli.X is called X.
RECIPE_COMMANDS = ("fit", "prepare", "evaluate", "compare")
GROUPS = ("db", "recipe", "runs", "components")
OTHER_COMMANDS = (
    "curve",
    "bench",
    "generate",
    "score",
    "report",
    "inspect",
    "serve",
    "chat",
    "export",
    "clean",
    "doctor",
)

# The override parser handles dashes: it knows that `--trainer.max_steps 5` means trainer.max_steps=5.
OVERRIDES_FOLLOW = {"ignore_unknown_options": True}


def main() -> None:
    """Run the command line of this process and exit."""
    # torch then asks Linux for huge pages; a base's pass over 4,096 tokens takes four fifths of the time on a CPU.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    ready_streams()
    end_within(run(sys.argv[1:]))


def run(words: list[str]) -> int:
    """Run one command line.

    Args:
        words: the words after `retroflow`.

    Returns:
        The exit code (docs/exit-codes.md).
    """
    words, show_traceback = _without_traceback_flag(words)
    _leave_out_impossible_width()
    try:
        shield_libraries()
        command = typer.main.get_command(build_app(words))
        code = command.main(args=words, prog_name="retroflow", standalone_mode=False)
        if code == INTERRUPTED:  # typer turns a KeyboardInterrupt into this, silently
            raise KeyboardInterrupt
        sys.stdout.flush()
    except BaseException as error:  # SystemExit, too: a command that is ended from inside has not succeeded
        # The reader has closed the pipe, as `| head` does; typer turns it into a SystemExit.
        is_unread = any(isinstance(one, BrokenPipeError) for one in (error, error.__context__))
        code = 1 if is_unread else exit_code_of(error, show_traceback=show_traceback, words=words)
    drop_unprinted()
    return code if isinstance(code, int) else 0


def build_app(words: list[str]) -> typer.Typer:
    """Return the application: with one command if `words` names it, with all commands otherwise."""
    app = typer.Typer(
        help="Train, evaluate and run retrieval-enhanced language models.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    app.callback()(_global_options)
    every = (*RECIPE_COMMANDS, *GROUPS, *OTHER_COMMANDS)
    first = words[0] if words else ""
    for name in (first,) if first in every else every:
        module = importlib.import_module(f"retroflow.cli.{name}")
        if name in GROUPS:
            app.add_typer(module.app, name=name)
        else:
            settings = OVERRIDES_FOLLOW if name in RECIPE_COMMANDS else {}
            app.command(name, context_settings=settings)(getattr(module, name))
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"retroflow {__version__}")
        raise typer.Exit


def _global_options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show Python's traceback of an error, too; allowed anywhere.")
    ] = False,
) -> None:
    """Declare the options before the command; both are handled before this runs."""


def _leave_out_impossible_width() -> None:
    """Treat COLUMNS=0 as unset: rich would draw tables without columns."""
    if not os.environ.get("COLUMNS", "1").strip("0"):
        del os.environ["COLUMNS"]


def _without_traceback_flag(words: list[str]) -> tuple[list[str], bool]:
    kept = [word for word in words if word != "--traceback"]
    return kept, len(kept) < len(words)
