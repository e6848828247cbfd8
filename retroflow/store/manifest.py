"""The description of an artifact: its kind, its inputs, and the size and hashes of every file.

A manifest holds no time, no host, and no path except in options of a component (decision 0040): the same recipe gives
the same bytes.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retroflow.errors import DamagedDataError
from retroflow.store.atomic import canonical_json, write_file

KINDS = ("chunks", "embeddings", "index", "neighbours")
"""Kinds of artifacts, in the order in which they are made from each other."""

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
PARTS_FOLDER = "parts"
"""Folder of a database with its artifacts, which no recipe can make again."""
FINGERPRINT_DIGITS = 16
NAME = rf"(?:{'|'.join(KINDS)})-[0-9a-f]{{{FINGERPRINT_DIGITS}}}"
"""Regular expression of the name of an artifact's folder."""


@dataclass(frozen=True)
class FileEntry:
    """One file of an artifact, in blocks that are hashed one by one.

    Block 0 is the header and the first `block_bytes` after it, every other block the next `block_bytes`.

    Attributes:
        num_bytes: size of the file.
        header_bytes: bytes before the first row of an array file, 0 for other files.
        block_bytes: bytes of a block, header not counted.
        sha256: hexadecimal digest of each block, in order.
        dtype, shape: of an array file; otherwise None and ().
    """

    num_bytes: int
    header_bytes: int
    block_bytes: int
    sha256: tuple[str, ...]
    dtype: str | None = None
    shape: tuple[int, ...] = ()

    def block_range(self, block: int) -> tuple[int, int]:
        """Return the first byte of a block and the byte after its last."""
        start = 0 if block == 0 else self.header_bytes + block * self.block_bytes
        return start, min(self.header_bytes + (block + 1) * self.block_bytes, self.num_bytes)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        values: dict[str, Any] = {
            "num_bytes": self.num_bytes,
            "header_bytes": self.header_bytes,
            "block_bytes": self.block_bytes,
            "sha256": list(self.sha256),
        }
        if self.dtype is not None:
            values |= {"dtype": self.dtype, "shape": list(self.shape)}
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "FileEntry":
        """Return the entry from the result of `to_json`; KeyError or TypeError for anything else."""
        return cls(
            num_bytes=int(values["num_bytes"]),
            header_bytes=int(values["header_bytes"]),
            block_bytes=int(values["block_bytes"]),
            sha256=tuple(values["sha256"]),
            dtype=values.get("dtype"),
            shape=tuple(values.get("shape", ())),
        )


def fingerprint_of(inputs: Mapping[str, Any]) -> str:
    """Return the fingerprint of these inputs: the first 16 digits of their SHA-256."""
    return hashlib.sha256(canonical_json(inputs)).hexdigest()[:FINGERPRINT_DIGITS]


@dataclass(frozen=True)
class Manifest:
    """Description of an artifact, stored in it as manifest.json.

    Attributes:
        kind: chunks, embeddings, index or neighbours.
        inputs: everything the content depends on, as JSON values; their hash is the fingerprint.
        parents: for every artifact it was made from, kind -> {"fingerprint": ..., "content": ...}; "content" is
            the parent's own `content`, left out if two builds of the parent may differ in bytes.
        info: facts for readers (lengths, counts) and measurements, as JSON values.
        files: path inside the artifact, with "/" -> its entry.
        component: the recipe's section that made it, to open it without the recipe (embeddings and index). It
            includes options that change no byte, so it is not part of `content`.
    """

    kind: str
    inputs: Mapping[str, Any]
    parents: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    component: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Hash of the inputs: the artifact's identity."""
        return fingerprint_of(self.inputs)

    @property
    def name(self) -> str:
        """Name of the artifact's folder."""
        return f"{self.kind}-{self.fingerprint}"

    @property
    def content(self) -> str:
        """Hash of everything in the artifact except `component`, from the hashes of its files."""
        return hashlib.sha256(canonical_json(self._body())).hexdigest()

    def _body(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "fingerprint": self.fingerprint,
            "inputs": dict(self.inputs),
            "parents": {kind: dict(parent) for kind, parent in self.parents.items()},
            "info": dict(self.info),
            "files": {path: entry.to_json() for path, entry in self.files.items()},
        }

    def render(self) -> bytes:
        """Return the bytes of manifest.json; there is only one rendering, so every byte is checked."""
        body = self._body()
        if self.component:
            body["component"] = dict(self.component)
        body["sha256"] = hashlib.sha256(canonical_json(body)).hexdigest()
        return (json.dumps(body, indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n").encode()

    def write(self, folder: Path) -> None:
        """Write manifest.json into the artifact's folder, atomically."""
        write_file(folder / MANIFEST_NAME, self.render())


def read_manifest(folder: Path) -> Manifest:
    """Read and check folder/manifest.json.

    Raises:
        FileNotFoundError: there is none.
        DamagedDataError: it differs from what was written, has another format, or is in a folder of another name.
    """
    path = folder / MANIFEST_NAME
    raw = path.read_bytes()
    try:
        values = json.loads(raw)
        version = values["format_version"]
        if version != FORMAT_VERSION:
            raise damaged(path, f"its format version is {version!r}; this program reads {FORMAT_VERSION}", folder)
        manifest = Manifest(
            kind=values["kind"],
            inputs=values["inputs"],
            parents=values["parents"],
            info=values["info"],
            files={name: FileEntry.from_json(entry) for name, entry in values["files"].items()},
            component=values.get("component", {}),
        )
        same = manifest.render() == raw
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(path, f"it is not a manifest ({type(error).__name__}: {error})", folder) from error
    if not same:
        raise damaged(path, "its bytes do not match its own SHA-256", folder)
    return manifest


def damaged(path: Path, what: str, artifact: Path) -> DamagedDataError:
    """Return the error for a file that differs from what was written, with what to do."""
    remedy = f'Delete the folder "{artifact}"; the next prepare (or fit) builds it again.'
    if artifact.parent.name == PARTS_FOLDER:
        remedy = "Restore it from a copy, or open a version without it (`retroflow db versions` lists them)."
    return DamagedDataError(f'"{path}" is damaged: {what}. {remedy}')
