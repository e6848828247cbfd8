"""Errors of retrievers, with the name of the one that raised them."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from retroflow.errors import MissingExtraError, RetrieverError, RetroflowError, UsageError, is_out_of_memory, words_of

_STATE_OF_THE_DISK = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE)
)
"""Errors that are not a bug; they remain OSErrors, so that a caller who knows the folder adds the remedy."""


@contextmanager
def blaming(owner: str, call: str, doing: str = "") -> Iterator[None]:
    """Name the owner in any error of a backend.

    Args:
        owner: the retriever with its distribution.
        call: the called method, such as "build()".
        doing: the same in words, for errors because of memory.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise
    except RetroflowError as error:
        known = type(error) in (UsageError, RetrieverError, MissingExtraError, RetroflowError)
        if not known or owner.partition(" ")[0] in str(error):
            raise
        raise type(error)(f"{owner}: {error}") from error
    except BaseException as error:
        if is_out_of_memory(error):
            raise RetrieverError(
                f"{owner}: out of memory while {doing or f'calling {call}'} ({described(error)}). Use a machine with "
                "more, or a retriever or options that need less: docs/retrievers.md."
            ) from error
        if isinstance(error, OSError) and error.errno is None:  # of a library's writer
            raise OSError(f"{owner}: {call} failed: {error}") from error
        if isinstance(error, OSError) and is_state_of_the_disk(error):
            raise OSError(error.errno, f"{error.strerror}, in {call} of {owner}", error.filename) from error
        ended = "" if isinstance(error, Exception) else "it tried to end the process, "
        raise RetrieverError(f"{owner}: {call} failed: {ended}{described(error)}") from error


def is_state_of_the_disk(error: BaseException) -> bool:
    """Return whether an error tells the state of the disk, such as a full one."""
    return isinstance(error, OSError) and error.errno in _STATE_OF_THE_DISK


def described(error: BaseException) -> str:
    """Return an error's class and words."""
    return f"{type(error).__name__}: {words_of(error)}".removesuffix(": ")
