"""Which retrieved chunks a text was written with: spans, scores, and what reading them was worth.

A source was read, which does not mean that the text agrees with it. It is reported in three forms: our own, which has
everything, and those of OpenAI and Perplexity, which their clients show.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from retroflow.generation import Source
from retroflow.serving.running import Result

SNIPPET_CHARACTERS = 300

_ADDRESS = re.compile(r"(https?|file)://[^\s\x00-\x1f\x7f]+", re.IGNORECASE)


@dataclass(frozen=True)
class ReadSource:
    """A chunk that some of a text was written with.

    Attributes:
        start, end: characters [start, end) of the answer whose tokens read it.
        source: the chunk and its document.
        influence: nats that these tokens gained over retrieval off, by everything that they read; None if it was not
            measured.
    """

    start: int
    end: int
    source: Source
    influence: float | None


def read_sources(result: Result, prompt_length: int, *, lookups_read: int, before: int = 0) -> list[ReadSource]:
    """Say what the new tokens of a result have read.

    Args:
        result: of a job.
        prompt_length: tokens of its prompt.
        lookups_read: retrievals that a token reads, the newest ones.
        before: characters of an echoed prompt.
    """
    generation = result.generation
    if generation is None or not generation.tokens:
        return []
    # what was read -> first token, one after the last, source; numbers of chunks differ between versions of a database
    spans: dict[tuple[str, str], tuple[int, int, Source]] = {}
    closed: list[tuple[int, int, Source]] = []
    ends = [retrieval.end - prompt_length for retrieval in generation.retrievals]
    num_tokens = len(generation.tokens)
    for place, retrieval in enumerate(generation.retrievals):
        start = max(0, ends[place])
        stop = num_tokens if place + lookups_read >= len(ends) else min(num_tokens, max(0, ends[place + lookups_read]))
        for source in retrieval.sources if start < stop else ():
            key = (source.document, source.text)
            known = spans.pop(key, None)
            if known is not None and known[1] >= start:
                best = max(known[2], source, key=lambda each: each.score)
                spans[key] = (known[0], max(known[1], stop), best)
                continue
            closed += [known] if known is not None else []
            spans[key] = (start, stop, source)
    found = sorted([*closed, *spans.values()], key=lambda each: (each[0], -each[2].score))
    return [_read(result, *each, before=before) for each in found]


def _read(result: Result, first: int, stop: int, source: Source, *, before: int) -> ReadSource:
    assert result.generation is not None
    length = len(result.generation.text)
    start, end = (min(length, result.offsets[place - 1]) if place else 0 for place in (first, stop))
    influence = None
    if result.nats_off is not None:
        influence = sum(result.nats_off[first:stop]) - sum(result.nats[first:stop])
    return ReadSource(before + start, before + end, source, influence)


def as_own(found: Sequence[ReadSource], choice: int) -> list[dict[str, Any]]:
    """Return the entries of `retroflow.sources` for one of the answers."""
    return [
        {
            "choice": choice,
            "start": each.start,
            "end": each.end,
            "score": each.source.score,
            "document": each.source.document,
            "title": each.source.title,
            "source": each.source.source,
            "chunk": each.source.chunk,
            "text": each.source.text,
            "influence": each.influence,
        }
        for each in found
    ]


def as_annotations(found: Sequence[ReadSource]) -> list[dict[str, Any]]:
    """Return OpenAI's `annotations`, whose only type for a source on the web is named by OpenAI."""
    return [
        {
            "type": "url_citation",
            "url_citation": {
                "start_index": each.start,
                "end_index": each.end,
                "url": link_to(each.source),
                "title": each.source.title or each.source.document,
            },
        }
        for each in found
    ]


def link_to(source: Source) -> str:
    """Return where a document is, as a client may put it into a link.

    What is no address of the web or of a file becomes a path: a document cannot name an address that runs a script.
    """
    where = source.source or source.document
    return where if _ADDRESS.fullmatch(where) else quote(where, safe="/?#&=+,;@~!$'()*%")


def as_search_results(found: Sequence[ReadSource]) -> list[dict[str, Any]]:
    """Return Perplexity's `search_results`: every document once."""
    by_document = {each.source.document: each.source for each in reversed(found)}
    return [
        {
            "title": source.title or source.document,
            "url": link_to(source),
            "snippet": source.text[:SNIPPET_CHARACTERS],
            "date": None,
        }
        for source in reversed(by_document.values())
    ]
