"""Errors that a user can cause. The message says where, what was given, what is allowed and what to do.

The command line prints the message as it is and exits with the class's `exit_code`; it never shows a traceback
for one of these. docs/exit-codes.md lists the codes.
"""

import errno

_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc", "bad allocation")
"""Words that torch's allocators and C++ libraries use in RuntimeErrors."""


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that the machine or a GPU ran out of memory."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = words_of(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY)
    )


def words_of(error: BaseException) -> str:
    """Return str(error), or a substitute if a plugin's exception class fails in __str__."""
    try:
        return str(error)
    except Exception as broken:
        return f"(its message cannot be shown: {type(broken).__name__} in __str__)"


class RetroflowError(Exception):
    """A failure that the user can act on."""

    exit_code = 1


class UsageError(RetroflowError):
    """An option, an argument or a path that cannot be used."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe that cannot be read or is wrong; the message lists every problem with file, line and key."""


class CorpusError(UsageError):
    """A corpus that holds no usable text: nothing matched, empty, or smaller than the recipe needs."""


class UnknownComponentError(UsageError):
    """A name that no registry entry has; the message offers the nearest names."""


class GenerationError(UsageError, ValueError):
    """A prompt, an option of generation or a database that the model cannot generate with."""


class DamagedDataError(RetroflowError):
    """A document, artifact or checkpoint that is broken, or differs from what was written."""

    exit_code = 3


class MissingExtraError(RetroflowError):
    """A component whose library or plugin is not installed; the message has the pip command that installs it."""

    exit_code = 4


class BrokenPluginError(RetroflowError):
    """A component that is installed and cannot be loaded, or whose options cannot be read; names its owner."""

    exit_code = 4


class ComponentConflictError(RetroflowError):
    """A name that several installed distributions claim; the message names all of them."""

    exit_code = 4


class ComponentError(RetroflowError):
    """A component that failed while it was created or used; names its kind, its name and its owner."""


class InvalidVectorsError(RetroflowError, ValueError):
    """Vectors or queries of a wrong shape, dtype or with non-finite values, refused before native code runs."""


class InvalidTextsError(RetroflowError, ValueError):
    """Texts of keys or queries that are missing, too few or not str, refused before a retriever reads them."""


class OutOfMemory(RetroflowError, MemoryError):
    """Another process ran out of memory; the command line adds the remedy."""


class RetrieverError(RetroflowError):
    """A retriever used before it was built, in a forked child, or breaking its contract; names its owner."""


class InvalidShapeError(RetroflowError, ValueError):
    """Model inputs whose shapes or values do not fit the configuration."""


class Preempted(RetroflowError):
    """Stopped on request after writing a checkpoint; the same command with --resume continues."""

    exit_code = 75


class Unfinished(RetroflowError):
    """One shard is done and others are not; the message says what to run before the same command."""

    exit_code = 75


class StepDone(Unfinished):
    """With `--step`: a shard has made its blocks of one stage, as it was asked to, and a merge comes next."""

    exit_code = 0


class Interrupted(RetroflowError):
    """Stopped from the keyboard after writing a checkpoint; the same command with --resume continues."""

    exit_code = 130


class RankEnded(SystemExit):
    """Ends a rank silently, with the exit code of the error that rank 0 reports.

    This is the only intended SystemExit. Any other one is a bug.
    """
