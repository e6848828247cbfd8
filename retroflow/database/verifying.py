"""`db verify`: hash every byte of every version, and check that what belongs together fits together."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from retroflow.console import progress
from retroflow.corpus.tokenizer import load_tokenizer
from retroflow.database.commit import sum_of
from retroflow.database.erasure import ERASED_FOLDER
from retroflow.database.lock import LOCK_FILE, OWNER_FILE
from retroflow.database.snapshot import Snapshot, current_of
from retroflow.errors import DamagedDataError, RetroflowError
from retroflow.store.artifact import VERIFIED_FOLDER, open_artifact
from retroflow.store.manifest import MANIFEST_NAME, PARTS_FOLDER, read_manifest
from retroflow.store.versions import (
    CURRENT_FILE,
    STATES_FOLDER,
    VERSIONS_FOLDER,
    Version,
    read_version,
    version_numbers,
)


@dataclass
class Findings:
    """What a verification has found.

    Attributes:
        damage: one message for each fault.
        leftovers: files that no version has, as killed writers leave them; the next change removes them.
        versions, num_files, num_bytes: that were checked.
    """

    damage: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    versions: int = 0
    num_files: int = 0
    num_bytes: int = 0

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note damage instead of raising it."""
        try:
            yield
        except FileNotFoundError as error:
            self.damage.append(f'"{error.filename}" is missing.')
        except (RetroflowError, ValueError, IndexError) as error:
            if str(error) not in self.damage:
                self.damage.append(str(error))


def verify(folder: Path) -> Findings:
    """Check a whole database.

    Raises:
        UsageError: the folder is no database.
        DamagedDataError: current.json is damaged, so that nothing else can be found.
    """
    current, findings = current_of(folder), Findings()
    versions = list[Version]()
    numbers = [number for number in version_numbers(folder) if number <= current.version]
    for number in sorted({*numbers, current.version, *current.tags.values()}):
        with findings.noting():
            digest = current.digest if number == current.version else None
            versions.append(read_version(folder, number, digest))
    parts = sorted({name for version in versions for name in version.parts})
    with progress("verify", len(parts), "parts") as advance:
        for name in parts:
            with findings.noting():
                open_artifact(folder / PARTS_FOLDER / name, anew=True)
            advance(1)
    for version in versions:
        with findings.noting():
            _check_version(Snapshot(folder, version))
    for path in (folder / ERASED_FOLDER).glob("*.npz"):
        if hashlib.sha256(path.read_bytes()).hexdigest() != path.stem.partition("-")[2]:
            findings.damage.append(f'"{path}" is damaged: its bytes do not match its name. Delete the file.')
    findings.versions = len(versions)
    _look_at_files(folder, versions, findings)
    return findings


def _check_version(snapshot: Snapshot) -> None:
    version, view = snapshot.version, snapshot.view
    where = snapshot.folder / VERSIONS_FOLDER / version.file_name
    for segment, dead in zip(snapshot.segments, snapshot.dead, strict=True):
        segment.check_rows()
        if len(dead) and not (0 <= dead[0] and dead[-1] < segment.num_documents and (np.diff(dead) > 0).all()):
            raise DamagedDataError(f'"{where}": its removed documents are not those of "{segment.folder.name}".')
    if len(set(view.ids)) != len(view.ids):
        raise DamagedDataError(f'"{where}": a document id is in it twice.')
    documents = (view.document(number) for number in range(view.num_documents))
    if f"{sum_of(documents) % (1 << 256):064x}" != version.fingerprint:
        raise DamagedDataError(f'"{where}": its fingerprint is not that of its documents.')
    identity = snapshot.identity
    if load_tokenizer(str(identity.folder / "tokenizer")).fingerprint() != identity.tokenizer_fingerprint:
        raise DamagedDataError(f'"{identity.folder}": its tokenizer is not the one that it names.')
    if not identity.searches_segments and len(snapshot.search) != version.chunks:
        raise DamagedDataError(f'"{where}": its index has not as many chunks.')


def _look_at_files(folder: Path, versions: list[Version], findings: Findings) -> None:
    """Count the files, and find those that no version has."""
    known = {CURRENT_FILE, LOCK_FILE, OWNER_FILE}
    known |= {f"{VERSIONS_FOLDER}/{version.file_name}" for version in versions}
    known |= {f"{STATES_FOLDER}/{name}" for version in versions for name in version.states}
    for name in {name for version in versions for name in version.parts}:
        part = f"{PARTS_FOLDER}/{name}"
        known.add(f"{part}/{MANIFEST_NAME}")
        with findings.noting():
            known |= {f"{part}/{file}" for file in read_manifest(folder / part).files}
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        findings.num_files += 1
        findings.num_bytes += path.stat().st_size
        name = path.relative_to(folder).as_posix()
        is_own = name in known or name.startswith((f"{PARTS_FOLDER}/{VERIFIED_FOLDER}/", f"{ERASED_FOLDER}/"))
        if not is_own:
            findings.leftovers.append(name)
