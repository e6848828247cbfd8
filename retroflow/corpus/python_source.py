"""Documents from the source files of installed Python packages: real, related text without a download.

corpus: {name: python_source, packages: [transformers], include: "models/*/modeling_*.py", share: 0.45}

No package is imported.
"""

import io
import platform
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt, Le

from retroflow.corpus.documents import ValidShare
from retroflow.corpus.duplicates import distinct_documents
from retroflow.corpus.files import FoundFile, describe_files, matches, printable, unreadable, walk
from retroflow.corpus.split import choose_split, chosen
from retroflow.errors import CorpusError, UsageError
from retroflow.options import checked_options
from retroflow.protocols import Corpus, Counts, Document

# Not part of the standard library: installed packages, and the test suite, which some distributions lack.
NOT_STDLIB = ("site-packages", "dist-packages", "test")


@dataclass(frozen=True)
class SourceTree:
    """One package, or the standard library, on this machine.

    Attributes:
        name: the beginning of its document ids.
        folder: of its files.
        version: of its distribution.
        only_file: the name of the file, for a package that is a single module.
        group_parts: leading parts of the path below `folder` that name a group; None for the file's folder.
        without: names directly below `folder` that do not belong to it.
    """

    name: str
    folder: Path
    version: str
    only_file: str | None = None
    group_parts: int | None = None
    without: tuple[str, ...] = ()

    def group_of(self, parts: tuple[str, ...]) -> str:
        """Return the group of a file, from the parts of its path below the folder."""
        return "/".join((self.name, *(parts[:-1] if self.group_parts is None else parts[: self.group_parts])))


@checked_options("corpus")
class PythonSourceCorpus(Corpus):
    """Documents from the source files of installed Python packages, one document per file.

    Related files form a group: a group is in one split as a whole, and `share` chooses groups.

    Args:
        packages: import names of installed packages, such as ["transformers"].
        python_stdlib: read the standard library too (without its test suite).
        include: glob of the files, relative to the package's folder.
        share: share of the groups, chosen by hash; a larger share contains every smaller one.
        valid_share: share of the groups held out for validation, 0 <= share < 1; `prepare` refuses 0.
        group_by: how many leading parts of the path below the package name a group: 2 puts
            `models/bert/modeling_bert.py` and `models/bert/tokenization_bert.py` into one group. None: the file's
            folder, and for the standard library the top-level module or package.
        max_document_bytes: larger files (generated tables, mostly) are left out and counted.

    Raises:
        UsageError: an option is out of range, or neither a package nor the standard library is named.
    """

    def __init__(
        self,
        *,
        packages: list[str] | None = None,
        python_stdlib: bool = False,
        include: str = "**/*.py",
        share: Annotated[float, Gt(0), Le(1)] = 1.0,
        valid_share: ValidShare = 0.05,
        group_by: Annotated[int, Ge(1)] | None = None,
        max_document_bytes: Annotated[int, Ge(1)] = 4_194_304,
    ) -> None:
        if not packages and not python_stdlib:
            raise UsageError(
                "corpus.packages names no package; name installed ones, such as [transformers], or set "
                "corpus.python_stdlib to true."
            )
        self.packages, self.python_stdlib = tuple(packages or ()), python_stdlib
        self.include, self.share, self.valid_share, self.group_by = include, share, valid_share, group_by
        self.max_document_bytes = max_document_bytes
        self.counts = Counts()

    def documents(self) -> Iterator[Document]:
        """Stream the documents; see `Corpus.documents`.

        Raises:
            CorpusError: a package is not installed or has no source files, or no file matches.
        """
        self.counts = Counts()
        place = f'corpus.packages {list(self.packages)}, corpus.include "{self.include}", corpus.share {self.share}'
        return distinct_documents(
            self._read(), self.counts, place=place, valid_share=self.valid_share, one_split=self._one_split
        )

    def fingerprint(self) -> dict[str, object]:
        """Return options, package versions and the content of the chosen files; see `Corpus.fingerprint`."""
        return {
            "name": "python_source",
            "version": 1,
            "include": self.include,
            "share": self.share,
            "valid_share": self.valid_share,
            "group_by": self.group_by,
            "max_document_bytes": self.max_document_bytes,
            "packages": {tree.name: tree.version for tree in self._trees},
            "content": describe_files(file for _, file, _ in self._files()),
        }

    @cached_property
    def _trees(self) -> list[SourceTree]:
        trees = [_find_package(name, self.group_by) for name in dict.fromkeys(self.packages)]
        if self.python_stdlib:
            folder = Path(sysconfig.get_path("stdlib"))
            version, group_parts = platform.python_version(), self.group_by or 1
            trees.append(SourceTree("python", folder, version, group_parts=group_parts, without=NOT_STDLIB))
        return trees

    def _files(self) -> Iterator[tuple[SourceTree, FoundFile, str]]:
        """Yield (package, file with its name from the package on, group) of the chosen groups."""
        pattern = self.include.split("/")
        for tree in self._trees:
            found = False
            for file in _walk_tree(tree, self.include):
                parts = tuple(file.name.split("/"))
                if not matches(parts, pattern):
                    continue
                found = True
                group = tree.group_of(parts)
                if chosen(group, self.share):
                    yield tree, FoundFile(file.path, f"{tree.name}/{file.name}"), group
            if not found:
                raise CorpusError(
                    f'corpus.include: "{self.include}" matches no file of {tree.name} {tree.version} '
                    f'({tree.folder}). Give a glob relative to that folder, such as "**/*.py".'
                )

    def _one_split(self, document: Document) -> str:
        name, *parts = document.id.split("/")
        group = next(tree for tree in self._trees if tree.name == name).group_of(tuple(parts))
        return (
            f'are of the group "{group}", which stays together in one split. Name more packages or a wider '
            "corpus.include, or make smaller groups with corpus.group_by."
        )

    def _read(self) -> Iterator[Document]:
        for _, file, group in self._files():
            text = self._read_source(file.path)
            if text is not None:
                yield Document(file.name, file.name, text, file.name, choose_split(group, self.valid_share))

    def _read_source(self, path: Path) -> str | None:
        try:
            with path.open("rb") as stream:
                content = stream.read(self.max_document_bytes + 1)
        except OSError as error:
            raise unreadable(path, error) from error
        if len(content) > self.max_document_bytes:
            self.counts.too_large += 1
            return None
        try:
            return decode_source(content)
        except (SyntaxError, UnicodeError):
            self.counts.undecodable += 1
            return None


def decode_source(content: bytes) -> str:
    """Decode Python source as the interpreter does: by its coding cookie (PEP 263), else as UTF-8.

    Line ends become newlines, as in `tokenize.open`.

    Raises:
        SyntaxError: the cookie names an unknown encoding, or the first lines are not UTF-8.
        UnicodeDecodeError: the text is not in that encoding.
    """
    encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
    text = content.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    text.encode()  # an encoding such as utf-7 can produce a lone surrogate
    return text


def _walk_tree(tree: SourceTree, include: str) -> Iterator[FoundFile]:
    if tree.only_file is not None:
        yield FoundFile(tree.folder / tree.only_file, printable(tree.only_file))
        return
    try:
        yield from walk(tree.folder, [include], without=tree.without)
    except OSError as error:
        raise unreadable(tree.folder, error) from error


def _find_package(name: str, group_by: int | None) -> SourceTree:
    """Find a package's folder by the finders of the import system, without importing it."""
    if not name.isidentifier():
        raise CorpusError(
            f'corpus.packages: "{name}" is not the import name of a package. Give a name as in an import statement; '
            "parts of a package are chosen by corpus.include, and other folders are read by corpus.name=text."
        )
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise CorpusError(
            f'corpus.packages: "{name}" is not the import name of an installed package. '
            f"Install it (pip install {name}), or name another; parts of a package are chosen by corpus.include."
        )
    version = _version(name)
    locations = list(spec.submodule_search_locations or ())
    if spec.origin is not None and spec.origin.endswith(".py"):
        if locations:
            return SourceTree(name, Path(locations[0]), version, group_parts=group_by)
        file = Path(spec.origin)
        return SourceTree(name, file.parent, version, only_file=file.name, group_parts=group_by)
    if name in sys.stdlib_module_names:
        raise CorpusError(
            f'corpus.packages: "{name}" is built into Python and not an installed package. Read the standard library '
            f"with corpus.python_stdlib=true; corpus.include chooses files of it, such as {name}.py."
        )
    kind = "a folder without __init__.py (a namespace package)" if locations else "a compiled module without source"
    raise CorpusError(
        f'corpus.packages: "{name}" is {kind}. Name an ordinary package, or read the files as text (corpus.name=text).'
    )


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        owners = metadata.packages_distributions().get(name)
        return metadata.version(owners[0]) if owners else "unknown"
