"""Wait for a server that indexes a collection."""

import time
from collections.abc import Callable

from qdrant_client import models

from retroflow.console import say
from retroflow.errors import RetrieverError

POLL_SECONDS, SAY_SECONDS = 0.5, 30.0
STALLED = 10.0  # times the timeout, without any progress; a large segment shows none for minutes


def wait_until_indexed(
    look: Callable[[], models.CollectionInfo], *, collection: str, points: int, timeout: int
) -> None:
    """Wait as long as the server indexes and goes on with it, and say how far it is.

    Args:
        look: asks the server.
        collection: for messages, with its server.
        points: vectors in it.
        timeout: seconds; STALLED times as long may pass without any progress.

    Raises:
        RetrieverError: the server cannot index, or does not go on.
    """
    since = said = time.monotonic()
    before: tuple[int | None, ...] = ()
    while True:
        info = look()
        if info.status == models.CollectionStatus.RED:
            raise RetrieverError(f"qdrant: the server cannot index {collection}: {info.optimizer_status}.")
        if info.status != models.CollectionStatus.YELLOW:
            return
        now, state = time.monotonic(), (info.indexed_vectors_count, info.segments_count)
        if state != before:
            since, before = now, state
        done = f"{info.indexed_vectors_count or 0:,} of {points:,} vectors indexed"
        if now - since > STALLED * timeout:
            raise RetrieverError(
                f"qdrant: for {STALLED * timeout:g} s the server has not gone on with indexing {collection} ({done}). "
                f"Look at its log, or raise retriever.search.timeout ({timeout}): it waits {STALLED:g} times as long."
            )
        if now - said > SAY_SECONDS:
            said = now
            say(f"qdrant: waiting for the server to index {collection}: {done}")
        time.sleep(POLL_SECONDS)
