"""The living database: documents are added, removed and replaced, and every change is a version (docs/database.md).

db = rf.Database.build("kb", "docs/*.md", embedder="lexical", retriever="exact")
db.sync("docs/*.md"); db.search("how do I ...?")
"""

import builtins
import dataclasses
import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from retroflow.database.building import Plan, build
from retroflow.database.changes import Changes, compare
from retroflow.database.commit import Writer, changing, prune
from retroflow.database.documents import Source, corpus_section, holding_nothing_out, read_source
from retroflow.database.erasure import Remains, find_remains
from retroflow.database.reading import Hit, Listed, describe, list_documents, number_of, queries_of, search
from retroflow.database.snapshot import Snapshot, current_of, named_version
from retroflow.database.verifying import Findings, verify
from retroflow.errors import RetroflowError, UsageError
from retroflow.pipeline.given_tokenizer import given_tokenizer
from retroflow.pipeline.options import TRAINED, DataOptions
from retroflow.protocols import Document, Neighbours
from retroflow.recipe import Recipe
from retroflow.recipe.loading import COMMAND_LINE_PATH
from retroflow.store.versions import Version, read_version, version_numbers

MASS_REMOVAL = 0.5


@dataclass(frozen=True)
class Change:
    """What a verb has done, or would do.

    Attributes:
        version: the newest version afterwards.
        added, changed, removed, same: documents.
    """

    version: int
    added: int = 0
    changed: int = 0
    removed: int = 0
    same: int = 0


class Database:
    """A database on disk; reading verbs see one version until `refresh` or a change by this object.

    Attributes:
        folder: of the database.
        snapshot: the version that is open.
        is_newest: whether it was opened without a version, so that it can be changed.
    """

    def __init__(self, folder: Path, snapshot: Snapshot, *, is_newest: bool) -> None:
        self.folder, self.snapshot, self.is_newest = folder, snapshot, is_newest

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Open a database.

        Args:
            folder: its folder, for the newest version; `folder@7` or `folder@tag` for an older one, which is read-only.

        Raises:
            UsageError: no database, or no such version.
            DamagedDataError: a file differs from what was written.
        """
        path, at = named_version(folder)
        return cls(path, Snapshot.open(path, at), is_newest=at is None)

    @classmethod
    def build(
        cls,
        folder: str | Path,
        documents: Source | None = None,
        *,
        embedder: str | Mapping[str, Any] = "none",
        retriever: str | Mapping[str, Any] = "exact",
        tokenizer: str = "train",
        chunk_length: int = 64,
        vocabulary_size: int = 8192,
        like: "Database | str | Path | None" = None,
    ) -> Self:
        """Make a new database.

        Args:
            folder: new or empty.
            documents: a path, or documents; a mapping has "text", "id", and perhaps "title" and "source".
            embedder: a name, or a mapping of it and options, as in a recipe; `retriever` likewise.
            tokenizer: "train" for one that is learned from the documents; a folder or a name for another.
            chunk_length: tokens of a chunk.
            vocabulary_size: of a tokenizer that is learned.
            like: a database whose tokenizer, embedder and retriever are used instead, with what they have learned.

        Raises:
            UsageError: the folder is not empty, or an argument does not fit.
            RetroflowError: a component cannot be used here, or the disk cannot be written.
        """
        sections = {
            "embedder": {"name": embedder} if isinstance(embedder, str) else dict(embedder),
            "retriever": {"name": retriever} if isinstance(retriever, str) else dict(retriever),
        }
        plan = Plan(sections, tokenizer, chunk_length, vocabulary_size)
        if like is not None:
            other = like if isinstance(like, Database) else cls.open(like)
            plan = Plan.like(other.snapshot.identity)
        path = str(documents) if isinstance(documents, str | Path) else None
        corpus = None if path is None else corpus_section(path, None)
        plan = dataclasses.replace(plan, sections={**plan.sections, "corpus": corpus})
        build(Path(folder), plan, documents if path is None else None)
        return cls.open(folder)

    @classmethod
    def from_recipe(cls, folder: str | Path, recipe: Recipe) -> Self:
        """Make a new database of the training documents of a recipe.

        Raises:
            RetroflowError: as `build`.
        """
        corpus, origins = recipe.values.get("corpus"), recipe.origins.items()
        is_divided = any(key.startswith("corpus.valid_") and origin != "default" for key, origin in origins)
        if corpus is not None and recipe.path == COMMAND_LINE_PATH and not is_divided:
            corpus = holding_nothing_out(corpus)
        data = DataOptions(**recipe.section("data"))
        tokenizer = given_tokenizer(recipe, data)
        sections = {"corpus": corpus, **{key: recipe.section(key) for key in ("embedder", "retriever")}}
        plan = Plan(sections, TRAINED if tokenizer is None else tokenizer, data.chunk_length, data.vocabulary_size)
        build(Path(folder), plan, None)
        return cls.open(folder)

    @property
    def version(self) -> Version:
        """The version that is open."""
        return self.snapshot.version

    @property
    def fingerprint(self) -> str:
        """Of the ids, titles and texts of its documents: the same for every history that leads to them."""
        return self.version.fingerprint

    def __len__(self) -> int:
        """Return the number of chunks."""
        return self.version.chunks

    def refresh(self) -> None:
        """Open the newest version, if a named one is not what was opened."""
        if self.is_newest:
            self.snapshot.close()
            self.snapshot = Snapshot.open(self.folder)

    def add(self, documents: Source | None, *, options: Sequence[str] = ()) -> Change:
        """Add documents.

        Args:
            documents: a path, or documents; a mapping has "text", "id", and perhaps "title" and "source". None for the
                corpus that the database was built from.
            options: of the corpus that reads a path, such as "corpus.include=**/*.md".

        Raises:
            UsageError: an id is in the database.
            RetroflowError: the documents cannot be read, or the database cannot be written.
        """

        def check(document: Document, is_known: bool) -> None:
            if is_known:
                raise UsageError(f'the database has a document "{document.id}"; `replace` and `sync` change it.')

        return self._change("add", documents, options, check)

    def replace(self, documents: Source | None, *, options: Sequence[str] = ()) -> Change:
        """Replace documents by others with the same ids; the arguments are those of `add`.

        Raises:
            UsageError: an id is not in the database.
            RetroflowError: as `add`.
        """

        def check(document: Document, is_known: bool) -> None:
            if not is_known:
                raise UsageError(f'the database has no document "{document.id}" to replace; `add` adds it.')

        return self._change("replace", documents, options, check)

    def sync(
        self,
        documents: Source | None = None,
        *,
        options: Sequence[str] = (),
        allow_mass_removal: bool = False,
        dry_run: bool = False,
    ) -> Change:
        """Make the database hold exactly these documents; those whose text is the same are not embedded again.

        Args:
            documents: as of `add`, and so are `options`.
            allow_mass_removal: go on if more than half of the documents would be removed.
            dry_run: only count.

        Raises:
            UsageError: more than half would be removed.
            RetroflowError: as `add`.
        """
        given = documents if documents is None or isinstance(documents, str | Path) else list(documents)
        if dry_run:
            compared = compare(self.snapshot, self._read(given, options), lambda document, is_known: None)
            return _counts(compared, self.version.number, compared.unseen)
        with self._changing("sync") as writer:
            compared = compare(writer.before, self._read(given, options), lambda document, is_known: None)
            unseen = compared.unseen
            if len(unseen) > MASS_REMOVAL * len(compared.seen) and not allow_mass_removal:
                raise UsageError(
                    f"sync would remove {len(unseen):,} of {len(compared.seen):,} documents, more than half. If they "
                    "are really gone, call it with allow_mass_removal=True; dry_run=True counts only."
                )
            return self._apply(writer, compared, given, options, unseen)

    def remove(self, ids: Iterable[str] = (), *, sources: Iterable[str] = ()) -> Change:
        """Remove documents; from then on no search finds them.

        Args:
            ids: of documents.
            sources: patterns such as "docs/old/*"; every document whose source is like one is removed.

        Raises:
            UsageError: there is no such document; nothing is removed then.
            RetroflowError: the database cannot be written.
        """
        with self._changing("remove") as writer:
            view = writer.before.view
            numbers = {number_of(writer.before, id) for id in ([ids] if isinstance(ids, str) else ids)}
            records = [view.document(number).source for number in range(view.num_documents)] if sources else []
            for pattern in sources:
                like = [number for number, source in enumerate(records) if fnmatch.fnmatchcase(source, pattern)]
                if not like:
                    raise UsageError(f'the database has no document from "{pattern}"; `list` shows the sources.')
                numbers.update(like)
            if numbers:
                writer.commit(sorted(numbers), (), {"removed": len(numbers)})
                writer.settle()
            return Change(writer.before.version.number, removed=len(numbers))

    def info(self) -> dict[str, Any]:
        """Return what the version holds and what it was made with, as JSON values."""
        return describe(self.snapshot)

    def list(self) -> builtins.list[Listed]:
        """Return the documents, ordered by id."""
        return list_documents(self.snapshot)

    def text(self, id: str) -> str:
        """Return the text of a document, as its tokens spell it.

        Raises:
            UsageError: there is no such document.
        """
        return self.snapshot.text(number_of(self.snapshot, id))

    def search(self, text: str, *, num_neighbours: int = 5) -> builtins.list[Hit]:
        """Find the chunks that are nearest to a text, best first.

        Raises:
            UsageError: the text is blank.
            RetroflowError: the embedder or retriever cannot be used here.
        """
        return search(self.snapshot, text, num_neighbours)

    def nearest(self, texts: Sequence[str], num_neighbours: int) -> Neighbours:
        """Find chunks of this version by their numbers in `snapshot.view`."""
        return self.snapshot.search.search(queries_of(self.snapshot, texts), num_neighbours)

    def versions(self) -> builtins.list[Version]:
        """Return all versions, the newest last."""
        newest = current_of(self.folder).version
        return [read_version(self.folder, number) for number in version_numbers(self.folder) if number <= newest]

    @property
    def tags(self) -> dict[str, int]:
        """Names of versions."""
        return dict(current_of(self.folder).tags)

    def tag(self, name: str, version: int | None = None) -> None:
        """Name a version, the open one by default; a tagged version is never pruned.

        Raises:
            UsageError: an impossible name, or no such version.
        """
        if not name or name.isdigit() or any(character in name for character in "@/ "):
            raise UsageError(f'tag: "{name}" is no name; allowed: text without @, / and spaces that is no number.')
        number = self.version.number if version is None else version
        if number not in version_numbers(self.folder):
            raise UsageError(f"tag: there is no version {number}; `versions` shows them.")
        self._set_tags(lambda tags: {**tags, name: number})

    def untag(self, name: str) -> None:
        """Remove a tag; its version is pruned as any other.

        Raises:
            UsageError: there is no such tag.
        """
        if name not in self.tags:
            raise UsageError(f'tag: there is no tag "{name}"; there are {", ".join(self.tags) or "none"}.')
        self._set_tags(lambda tags: {key: number for key, number in tags.items() if key != name})

    def _set_tags(self, change: Callable[[dict[str, int]], dict[str, int]]) -> None:
        with changing(self.folder, "tag"):
            current = current_of(self.folder)
            dataclasses.replace(current, tags=change(dict(current.tags))).write(self.folder)

    def compact(self) -> Change:
        """Join all segments into one without the removed documents; older versions keep their files."""
        with self._changing("compact") as writer:
            version = writer.before.version
            if len(version.segments) > 1 or version.dead_share:
                writer.compact(range(len(version.segments)))
            writer.settle()
            return Change(writer.before.version.number)

    def purge(self) -> Change:
        """Erase removed documents from the disk: compact if need be, then delete all older versions.

        Raises:
            RetroflowError: a version was kept, because it is tagged or because somebody reads it; the rest is erased.
        """
        with self._changing("purge") as writer:
            version = writer.before.version
            if version.dead_share:
                writer.compact(range(len(version.segments)))
            writer.before.close()
            read = prune(self.folder, float("inf"))
            newest = writer.before.version.number
        tagged = {name: number for name, number in self.tags.items() if number != newest}
        if read or tagged:
            kept = [f'version {number} is tagged "{name}" (`tag` deletes tags)' for name, number in tagged.items()]
            kept += [f"version {number} is being read by a process" for number in read]
            raise RetroflowError(
                f'"{self.folder}": {"; ".join(kept)}. What only they have is not erased; end that, and purge again.'
            )
        return Change(newest)

    def verify(self) -> Findings:
        """Hash every byte of every version, and check that all fits together."""
        return verify(self.folder)

    def find_remains(self, id: str) -> builtins.list[Remains]:
        """Search every byte below the folder for the text, the tokens and the vectors of a removed document.

        Returns:
            What was found of each text that it had; nothing is left if no `files` are in any.

        Raises:
            UsageError: the database has the document, or never had it.
        """
        snapshots = [Snapshot(self.folder, version) for version in self.versions()]
        return builtins.list(find_remains(self.folder, id, snapshots))

    def _change(
        self, verb: str, documents: Source | None, options: Sequence[str], check: Callable[[Document, bool], None]
    ) -> Change:
        given = documents if documents is None or isinstance(documents, str | Path) else list(documents)
        with self._changing(verb) as writer:
            compared = compare(writer.before, self._read(given, options), check)
            return self._apply(writer, compared, given, options, [])

    def _read(self, given: Source | None, options: Sequence[str]) -> Iterator[Document]:
        return read_source(given, self.snapshot.identity.sections["corpus"], options)

    def _apply(
        self, writer: Writer, compared: Changes, given: Source | None, options: Sequence[str], unseen: Sequence[int]
    ) -> Change:
        counts = _counts(compared, writer.before.version.number, unseen)
        removed = sorted([*compared.replaced, *unseen])
        if removed or compared.added or compared.moved:
            changed = {"added": counts.added, "changed": counts.changed, "removed": counts.removed}
            writer.commit(removed, compared.blocks(self._read(given, options)), changed, moved=compared.moved)
            writer.settle()
        return dataclasses.replace(counts, version=writer.before.version.number)

    @contextmanager
    def _changing(self, verb: str) -> Iterator[Writer]:
        if not self.is_newest:
            raise UsageError(
                f'"{self.folder}" is open at version {self.version.number}, and only the newest can be changed; open '
                "it without @."
            )
        self.snapshot.close()  # or its version could not be deleted
        try:
            with changing(self.folder, verb) as writer:
                yield writer
        finally:
            self.refresh()


def _counts(compared: Changes, version: int, unseen: Sequence[int]) -> Change:
    return Change(version, len(compared.added), len(compared.changed), len(unseen), compared.same)
