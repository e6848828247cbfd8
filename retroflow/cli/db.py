"""`retroflow db`: build, change, search and check a database."""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retroflow.cli.streams import only_results_on_stdout, print_result
from retroflow.errors import DamagedDataError, RetroflowError, UsageError

if TYPE_CHECKING:
    from retroflow.database.database import Change, Database

app = typer.Typer(
    no_args_is_help=True,
    help="Build, change and search a database: add, remove, sync, versions, erase; docs/database.md.",
)

Folder = Annotated[Path, typer.Argument(metavar="DB", help="Folder of the database.", show_default=False)]
Reading = Annotated[
    Path, typer.Argument(metavar="DB[@VERSION]", help="Folder of the database; @7 or @TAG for an older version.")
]
Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PATH] [KEY=VALUE]...", help="What to read: a folder or file, and options such as corpus.include=*.md."
    ),
]
Id = Annotated[str | None, typer.Option("--id", help="Id of a single document, with --text.")]
Text = Annotated[str | None, typer.Option("--text", help="Text of a single document. -: standard input.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
OVERRIDES = {"ignore_unknown_options": True}


@app.command("build", context_settings=OVERRIDES)
def build(
    folder: Folder,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="corpus.name=... embedder.name=... retriever.name=..., data.tokenizer=..."),
    ] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="Recipe with these sections, instead.")] = None,
    prepared: Annotated[
        Path | None,
        typer.Option("--from", metavar="RUN|ARTIFACTS", help="What prepare made; nothing is embedded again."),
    ] = None,
    like: Annotated[
        Path | None, typer.Option("--like", metavar="DB|RUN", help="Tokenizer, embedder and retriever of this one.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a new database from any corpus source, or from what prepare made."""
    from retroflow import api

    with only_results_on_stdout():
        database = api.build_database(folder, overrides or [], recipe=recipe, prepared=prepared, like=like)
        from retroflow.database.database import Change

        _print_change(database, Change(database.version.number, added=database.version.documents), as_json=as_json)


@app.command("add", context_settings=OVERRIDES)
def add(folder: Folder, words: Words = None, id: Id = None, text: Text = None, as_json: AsJson = False) -> None:
    """Add documents; one whose id is there is an error."""
    _change(folder, lambda database: database.add(**_documents(words, id, text)), as_json=as_json)


@app.command("replace", context_settings=OVERRIDES)
def replace(folder: Folder, words: Words = None, id: Id = None, text: Text = None, as_json: AsJson = False) -> None:
    """Replace documents by others with the same ids."""
    _change(folder, lambda database: database.replace(**_documents(words, id, text)), as_json=as_json)


@app.command("sync", context_settings=OVERRIDES)
def sync(
    folder: Folder,
    words: Words = None,
    allow_mass_removal: Annotated[
        bool, typer.Option("--allow-mass-removal", help="Remove more than half of the documents if need be.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make the database hold exactly what a folder or file holds; without one, the corpus that it was built from."""

    def change(database: "Database") -> "Change":
        path, options = _split(words)
        return database.sync(path, options=options, allow_mass_removal=allow_mass_removal, dry_run=dry_run)

    _change(folder, change, as_json=as_json, dry_run=dry_run)


@app.command("remove")
def remove(
    folder: Folder,
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Ids of documents.")] = None,
    source: Annotated[
        list[str] | None, typer.Option("--source", help='Remove by source, such as "old/*"; may be repeated.')
    ] = None,
    ids_file: Annotated[
        Path | None, typer.Option("--ids-file", help="File with one id per line. -: standard input.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Remove documents; from then on no search finds them."""
    given = list(ids or [])
    if ids_file is not None:
        given += [line for line in _read(str(ids_file)).splitlines() if line.strip()]
    if not given and not source:
        raise UsageError("remove: no document is named; give ids, --source or --ids-file.")
    _change(folder, lambda database: database.remove(given, sources=source or ()), as_json=as_json)


@app.command("list")
def list_documents(folder: Reading, as_json: AsJson = False) -> None:
    """List the documents: id, chunks, title, source."""
    database = _open(folder)
    documents = database.list()
    if as_json:
        _print_json({"documents": [dataclasses.asdict(one) for one in documents]})
        return
    _print_table(
        ("id", "chunks", "title", "source"), [(one.id, f"{one.chunks:,}", one.title, one.source) for one in documents]
    )


@app.command("show")
def show(
    folder: Reading, id: Annotated[str, typer.Argument(help="Id of a document.")], as_json: AsJson = False
) -> None:
    """Print the text of a document."""
    database = _open(folder)
    text = database.text(id)
    print_result(json.dumps({"document": id, "text": text}, ensure_ascii=False) if as_json else text)


@app.command("search")
def search(
    folder: Reading,
    text: Annotated[str, typer.Argument(help="Words to search for.")],
    neighbours: Annotated[int, typer.Option("--neighbours", "-k", min=1, help="How many chunks.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Find the chunks that are nearest to a text, with what follows them in their documents."""
    with only_results_on_stdout():
        hits = _open(folder).search(text, num_neighbours=neighbours)
        if as_json:
            _print_json({"query": text, "neighbours": [dataclasses.asdict(hit) for hit in hits]})
            return
        for rank, hit in enumerate(hits, start=1):
            origin = hit.document if hit.source in ("", hit.document) else f"{hit.document} ({hit.source})"
            print_result(f"{rank}. {origin}, chunk {hit.chunk}, score {hit.score:.4f}")
            print_result(f"   {' '.join(hit.text.split())}")
            if hit.continuation:
                print_result(f"   ... {' '.join(hit.continuation.split())}")


@app.command("info")
def info(folder: Reading, as_json: AsJson = False) -> None:
    """Show what a database holds and what it was made with."""
    values = _open(folder).info()
    if as_json:
        _print_json(values)
        return
    for key, value in values.items():
        shown = json.dumps(value) if isinstance(value, dict | list) else f"{value:,}" if type(value) is int else value
        print_result(f"{key.replace('_', ' ')}: {shown}")


@app.command("versions")
def versions(folder: Folder, as_json: AsJson = False) -> None:
    """List the versions that can still be read, the newest last."""
    database = _open(folder)
    names = {number: name for name, number in database.tags.items()}
    rows = database.versions()
    if as_json:
        fields = ("number", "created", "verb", "documents", "chunks", "fingerprint")
        found = [{key: getattr(one, key) for key in fields} | {"changed": dict(one.changed)} for one in rows]
        _print_json({"versions": [{**each, "tag": names.get(each["number"])} for each in found]})
        return
    _print_table(
        ("version", "when", "verb", "documents", "chunks", "tag"),
        [
            (
                str(one.number),
                _when(one.created),
                one.verb,
                f"{one.documents:,}",
                f"{one.chunks:,}",
                names.get(one.number, ""),
            )
            for one in rows
        ],
    )


@app.command("tag")
def tag(
    folder: Folder,
    name: Annotated[str, typer.Argument(help="Name for a version, such as release-2.")],
    version: Annotated[int | None, typer.Argument(help="Number of the version. Default: the newest.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the name instead.")] = False,
) -> None:
    """Name a version, which is then kept."""
    database = _open(folder)
    if delete:
        database.untag(name)
        print_result(f'tag "{name}" deleted')
        return
    database.tag(name, version)
    print_result(f'version {database.tags[name]} is "{name}"')


@app.command("compact")
def compact(folder: Folder, as_json: AsJson = False) -> None:
    """Join all segments into one, without the documents that were removed."""
    _change(folder, lambda database: database.compact(), as_json=as_json)


@app.command("purge")
def purge(folder: Folder, as_json: AsJson = False) -> None:
    """Erase removed documents from the disk, and all older versions but tagged ones."""
    _change(folder, lambda database: database.purge(), as_json=as_json)


@app.command("verify")
def verify(
    folder: Folder,
    erased: Annotated[
        str | None, typer.Option("--erased", metavar="ID", help="Search all bytes for this removed document instead.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check every byte of every version; or that nothing is left of a document."""
    from retroflow.console import say
    from retroflow.database.verifying import verify as verify_all
    from retroflow.store.disk import disk_size

    with only_results_on_stdout():
        if erased is not None:
            _print_remains(_open(folder), erased, as_json=as_json)
            return
        found = verify_all(folder)
        if as_json:
            _print_json(dataclasses.asdict(found))
        if found.damage:
            raise DamagedDataError("\n".join(found.damage))
        for name in found.leftovers:
            say(f"{name}: left by a writer that was killed; the next change removes it")
        if not as_json:
            files = f"{found.num_files:,} files, {disk_size(found.num_bytes)}"
            print_result(f"no damage: versions {found.versions:,}, {files}")


def _open(folder: Path) -> "Database":
    from retroflow.database.database import Database

    return Database.open(folder)


def _change(folder: Path, change: "Callable[[Database], Change]", *, as_json: bool, dry_run: bool = False) -> None:
    with only_results_on_stdout():
        database = _open(folder)
        _print_change(database, change(database), as_json=as_json, dry_run=dry_run)


def _print_change(database: "Database", change: "Change", *, as_json: bool, dry_run: bool = False) -> None:
    if as_json:
        _print_json({**dataclasses.asdict(change), "documents": database.version.documents, "chunks": len(database)})
        return
    counts = f"{change.added:,} added, {change.changed:,} changed, {change.removed:,} removed, {change.same:,} the same"
    state = f"{database.version.documents:,} documents, {len(database):,} chunks"
    where = "nothing was changed (dry run)" if dry_run else f"version {change.version}: {state}"
    print_result(f"{counts}; {where}")


def _print_remains(database: "Database", id: str, *, as_json: bool) -> None:
    found = database.find_remains(id)
    if as_json:
        _print_json({"document": id, "remains": [dataclasses.asdict(one) for one in found]})
    lines = [f"{file}: {', '.join(kinds)}" for one in found for file, kinds in one.files.items()]
    if lines:
        raise RetroflowError(
            f'"{id}" is not erased; `compact`, then `purge` erases it. Found in:\n  '
            + "\n  ".join(dict.fromkeys(lines))
        )
    if not as_json:
        windows, shared = sum(one.windows for one in found), sum(one.shared for one in found)
        others = f"; {shared:,} more are in other documents, too" if shared else ""
        searched = f"{found[0].num_files:,} files, {found[0].num_bytes:,} bytes"
        print_result(f'nothing is left of "{id}": searched {searched} for {windows:,} pieces of it{others}')


def _documents(words: list[str] | None, id: str | None, text: str | None) -> dict[str, Any]:
    """Return the arguments for the documents of a command: a path with options, or a single document."""
    path, options = _split(words)
    if (id is None) != (text is None):
        raise UsageError("--id and --text belong together; give both, or neither and a path.")
    if id is None or text is None:
        if path is None and not options:
            raise UsageError("nothing to read is given; give a folder or file, corpus.name=..., or --id and --text.")
        return {"documents": path, "options": options}
    if path is not None or options:
        raise UsageError("--id and --text are one document; leave the path and corpus options out.")
    return {"documents": [{"id": id, "text": _read(text) if text == "-" else text}]}


def _split(words: list[str] | None) -> tuple[str | None, list[str]]:
    """Divide words into a path and options of the corpus."""
    options = [word for word in words or [] if word.startswith("corpus.")]
    paths = [word for word in words or [] if word not in options]
    if len(paths) > 1:
        raise UsageError(f'"{paths[1]}": a second path; give one, or a pattern in quotes such as "docs/*.md".')
    return (paths[0] if paths else None), options


def _read(file: str) -> str:
    if file == "-":
        return sys.stdin.read()
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f'"{file}": cannot be read ({error}).') from error


def _print_json(values: object) -> None:
    print_result(json.dumps(values, ensure_ascii=False, indent=2))


def _print_table(names: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    table = [names, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(names))]
    for row in table:
        print_result("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _when(created: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(created))
