"""Everything a user can cause, as exceptions that say where, what was given, what is allowed and what to do.

The command line prints the message as it is and exits with the class's `exit_code`; it never shows a traceback
for one of these. docs/exit-codes.md lists the codes.
"""

import errno

_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc", "bad allocation")
"""How torch's allocators and C++ libraries say it, in RuntimeErrors."""


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory, of the machine or of a GPU, was not enough."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = words_of(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY)
    )


def words_of(error: BaseException) -> str:
    """Return str(error), or a substitute where a plugin's exception class cannot make it."""
    try:
        return str(error)
    except Exception as broken:
        return f"(its message cannot be shown: {type(broken).__name__} in __str__)"


class RetroflowError(Exception):
    """A failure the user can act on. The message carries place, value, allowed values and remedy."""

    exit_code = 1


class UsageError(RetroflowError):
    """An option, an argument or a path that cannot be used as given."""

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
    """Bytes that are not what they were or ought to be: a broken document, artifact or checkpoint."""

    exit_code = 3


class MissingExtraError(RetroflowError):
    """A component whose library or plugin is not installed; the message is the pip line that installs it."""

    exit_code = 4


class BrokenPluginError(RetroflowError):
    """A component that is installed and cannot be loaded, or whose options cannot be read; names its owner."""

    exit_code = 4


class ComponentConflictError(RetroflowError):
    """A name that several installed distributions claim; the message names all of them."""

    exit_code = 4


class ComponentError(RetroflowError):
    """A component that failed while it was made or used; names its kind, its name and its owner."""


class InvalidVectorsError(RetroflowError, ValueError):
    """Vectors or queries of a wrong shape, dtype or with non-finite values, refused before native code runs."""


class InvalidTextsError(RetroflowError, ValueError):
    """Texts of keys or queries that are missing, too few or not str, refused before a retriever reads them."""


class OutOfMemory(RetroflowError, MemoryError):
    """Memory was not enough in another process; the command line adds the remedy."""


class RetrieverError(RetroflowError):
    """A retriever used before it was built, in a forked child, or breaking its contract; names its owner."""


class InvalidShapeError(RetroflowError, ValueError):
    """Model inputs whose shapes or values do not fit the configuration."""


class Preempted(RetroflowError):
    """Stopped on request with a checkpoint written; the same command with --resume goes on."""

    exit_code = 75


class Unfinished(RetroflowError):
    """One share of a work is done and others are not; the message says what to run, then the same command goes on."""

    exit_code = 75


class Interrupted(RetroflowError):
    """Stopped from the keyboard with a checkpoint written; the same command with --resume goes on."""

    exit_code = 130


class RankEnded(SystemExit):
    """Ends a rank without a word, with the exit code of the error that rank 0 raises and reports.

    The only SystemExit that stands for anything: whatever else ends the process from inside is a bug.
    """
