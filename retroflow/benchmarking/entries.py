"""What is measured: retrievers with their options, the index of each, and the search settings.

A word is a name, or a name with options: "hnsw", "faiss:build.factory=HNSW32", "hnsw:build.links=32:search.ef=64".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retroflow.components import create_retriever, retriever_section
from retroflow.console import say
from retroflow.errors import MissingExtraError, UsageError
from retroflow.planning.memory_estimate import size_text
from retroflow.protocols import IndexOutline
from retroflow.retrieval.checked import CheckedRetriever

DEFAULT = ("exact", "faiss", "scann", "hnsw")


@dataclass(frozen=True)
class Entry:
    """A retriever to measure.

    Attributes:
        label: the word, without the options of `search` that are varied.
        section: name and all options, as in a recipe.
        settings: options of `search` to measure, the fastest first.
        outline: of its index; None if the retriever does not know it.
        fingerprint: of the retriever, JSON values.
    """

    label: str
    section: Mapping[str, Any]
    settings: Sequence[Mapping[str, Any]]
    outline: IndexOutline | None
    fingerprint: Mapping[str, Any]

    @property
    def index(self) -> list[Any]:
        """What decides on the index, JSON values."""
        return [{key: value for key, value in self.section.items() if key != "search"}, self.fingerprint]

    def with_search(self, search: Mapping[str, Any]) -> dict[str, Any]:
        """Return the section with other options of `search`."""
        return {**self.section, "search": {**self.section.get("search", {}), **search}}


def entries_of(words: Sequence[str], count: int, dimension: int) -> list[Entry]:
    """Return what to measure.

    Args:
        words: of retrievers; those of `DEFAULT` that are installed if there are none.
        count, dimension: N and D.

    Raises:
        UsageError: an unknown retriever or option, one that does not search vectors by l2, or one twice.
        RetroflowError: a library is not installed, or the options do not fit the vectors.
    """
    found: list[Entry] = []
    for word in dict.fromkeys(words or DEFAULT):
        section, given = retriever_section(word, "retriever"), word.split(":")[1:]
        try:
            retriever = create_retriever(section)
        except MissingExtraError as error:
            if words:
                raise
            say(f"{word} is left out: {error}")
            continue
        found.append(_entry(word, section, given, retriever, (count, dimension)))
    if not found:
        raise UsageError("retriever: none given.")
    return found


def _entry(
    word: str, section: dict[str, Any], given: list[str], retriever: CheckedRetriever, shape: tuple[int, int]
) -> Entry:
    can = retriever.capabilities
    if can.queried_by != "vectors":
        raise UsageError(
            f"retriever='{word}': it reads texts, and recall here is of vectors; `retroflow curve --over retriever` "
            "compares it by the loss of a model."
        )
    if can.metric != "l2":
        raise UsageError(f"retriever='{word}': its metric is {can.metric}; distances are measured by l2 here.")
    retriever.check_vectors(*shape)
    outline = retriever.outline(*shape)
    settings: Sequence[Mapping[str, Any]] = [{}] if outline is None else outline.settings
    fixed = {option.partition("=")[0].removeprefix("search.") for option in given if option.startswith("search.")}
    chosen = [name for name in settings[0] if name in fixed]
    if chosen:
        settings = [{name: section["search"][name] for name in settings[0]}]
    return Entry(word, section, settings, outline, retriever.fingerprint())


def check_memory(entries: Sequence[Entry], limit: int, *, count: int, dimension: int) -> None:
    """Refuse retrievers whose index would not fit into memory while it is built.

    Raises:
        UsageError: with the bytes that are needed and allowed.
    """
    for entry in entries:
        if entry.outline is None:
            say(f"{entry.label}: it does not know how much memory it needs; that is not checked")
        elif entry.outline.building > limit:
            raise UsageError(
                f"retriever='{entry.label}': building its index of {count:,} vectors of width {dimension} takes about "
                f"{size_text(entry.outline.building)} of memory, and {size_text(limit)} are allowed. Leave it out, "
                "give a higher memory_limit='8GiB', or see `retroflow bench --explain`."
            )
