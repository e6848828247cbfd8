"""What `save` writes and `load` reads: files in one folder, complete, that open anywhere and run no code."""

import io
import os
import pickletools
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

import numpy as np

from retroflow.errors import DamagedDataError
from retroflow.testing.effects import unpickled, writes_outside
from retroflow.testing.retriever_answers import check_equal
from retroflow.testing.retriever_case import RetrieverCase, doing, read_answer, write_answer

NPY = b"\x93NUMPY"


def opens_in_another_process_and_folder(case: RetrieverCase) -> None:
    """Nothing but the folder is left: what was written beside it, or is known to this process, is missed."""
    origin, moved = case.scratch(), case.scratch()
    with _own_surroundings(origin):
        case.built.save(origin / "parent" / "index")
    shutil.move(origin / "parent" / "index", moved / "index")
    shutil.rmtree(origin)
    np.save(moved / "queries.npy", case.queries)
    case.elsewhere(open_and_search, folder=str(moved))
    check_equal(
        read_answer(moved / "answer.npz"),
        case.built.search(case.queries, 5),
        "saved, moved and opened by another process",
    )


def open_and_search(case: RetrieverCase, folder: str) -> None:
    """For another process: open the index of folder and write what queries.npy find."""
    moved = Path(folder)
    write_answer(case.opened(moved / "index").search(np.load(moved / "queries.npy"), 5), moved / "answer.npz")


def writes_into_its_folder_alone(case: RetrieverCase) -> None:
    origin = case.scratch()
    folder = origin / "parent" / "index"
    folder.parent.mkdir()
    with _own_surroundings(origin), writes_outside(folder) as elsewhere:
        surroundings = _listing(origin, folder)
        case.built.save(folder)
        beside = sorted(_listing(origin, folder) - surroundings)
    assert not elsewhere, f"save() writes outside its folder: {elsewhere[:3]}"
    assert not beside, f"save() leaves files outside its folder: {beside[:3]}"
    links = [path.name for path in folder.rglob("*") if path.is_symlink()]
    assert not links, f"save() makes links ({links[:3]}); a moved index could not be opened, so write files"


def writes_no_absolute_path(case: RetrieverCase) -> None:
    folder = case.scratch() / "index"
    case.built.save(folder)
    given = os.fsencode(folder)
    names = [path.name for path in _files(folder) if given in path.read_bytes()]
    assert not names, f"{names} hold the absolute path they were saved to; a moved index could not be opened"


def writes_and_reads_no_pickle(case: RetrieverCase) -> None:
    """Opening a pickle runs whatever code it names; an index may come from a stranger."""
    folder = case.scratch() / "index"
    case.built.save(folder)
    pickles = [name for path in _files(folder) for name in _pickles_in(path.name, path.read_bytes())]
    assert not pickles, f"save() writes pickles: {pickles[:3]}; write arrays (numpy.save of numbers) and JSON"
    with unpickled() as names:
        case.opened(folder).search(case.queries, 1)
    assert not names, f"load() unpickles {names[:3]}; give numpy.load allow_pickle=False"


def finds_the_same_after_loading(case: RetrieverCase) -> None:
    """Every stored vector is looked for, so that one that is lost, or two that are swapped, are seen."""
    folder = case.scratch() / "index"
    case.built.save(folder)
    before, after = case.built.search(case.vectors, 2), case.opened(folder).search(case.vectors, 2)
    different = np.flatnonzero(
        (before.ids[:, 0] != after.ids[:, 0]) | (np.abs(before.scores - after.scores) > 1e-5).any(1)
    )
    assert not len(different), (
        f"after save() and load() {len(different)} of {len(case.vectors)} stored vectors find something else, "
        f"vector {int(different[0])} for one"
    )


def searches_after_saving_as_before(case: RetrieverCase) -> None:
    retriever = case.build(case.vectors)
    before = retriever.search(case.queries, 5)
    retriever.save(case.scratch() / "index")
    check_equal(retriever.search(case.queries, 5), before, "searched before save() and after it")


def saves_before_it_has_searched(case: RetrieverCase) -> None:
    """As `prepare` does: build, save, and only a new instance searches."""
    folder = case.scratch() / "index"
    case.build(case.vectors).save(folder)
    answer = case.opened(folder).search(case.queries, 5)
    assert (answer.ids[:, 0] >= 0).all()
    if case.built.capabilities.deterministic:
        check_equal(answer, case.built.search(case.queries, 5), "saved before any search, and in memory")


def a_loaded_index_can_be_saved_again(case: RetrieverCase) -> None:
    folder = case.scratch()
    case.built.save(folder / "first")
    second = case.opened(folder / "first")
    second.save(folder / "second")
    shutil.rmtree(folder / "first")
    third = case.opened(folder / "second")
    check_equal(third.search(case.queries, 5), case.built.search(case.queries, 5), "saved, loaded, saved and loaded")


def damaged_files_are_an_error_and_never_the_end_of_the_process(case: RetrieverCase) -> None:
    saved = case.scratch() / "index"
    case.built.save(saved)
    paths = _files(saved)
    assert paths, "save() wrote no file"
    noise = np.random.default_rng(0)
    for path in paths:
        content = path.read_bytes()
        garbage = noise.integers(0, 256, len(content), dtype=np.uint8).tobytes()
        for kind, damaged in {
            "missing": None,
            "empty": b"",
            "truncated": content[: len(content) // 2],
            "garbage": garbage,
        }.items():
            copy = case.scratch() / "index"
            shutil.copytree(saved, copy)
            target = copy / path.relative_to(saved)
            target.unlink()
            if damaged is not None:
                target.write_bytes(damaged)
            with doing(f"{kind} file {path.relative_to(saved).as_posix()}"):
                _expect_damage(case, copy)
            shutil.rmtree(copy)


def _expect_damage(case: RetrieverCase, folder: Path) -> None:
    try:
        case.opened(folder).search(case.queries, 5)
    except DamagedDataError:
        return
    except Exception as error:
        raise AssertionError(f"load() must raise DamagedDataError, not {type(error).__name__}: {error}") from error
    raise AssertionError("load() must raise DamagedDataError, and it loads")


@contextmanager
def _own_surroundings(folder: Path) -> Iterator[None]:
    """Make places that are easily written to, the current folder and that of temporary files, parts of folder."""
    before = tempfile.tempdir
    for name in ("current", "temporary"):
        (folder / name).mkdir()
    tempfile.tempdir = str(folder / "temporary")
    try:
        with chdir(folder / "current"):
            yield
    finally:
        tempfile.tempdir = before


def _listing(folder: Path, without: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path != without and without not in path.parents
    }


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _pickles_in(name: str, content: bytes) -> list[str]:
    """Name what is a pickle: a file, a member of a zip (npz, torch), an array of objects."""
    if zipfile.is_zipfile(io.BytesIO(content)) and content[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(f"{name}:{member}", archive.read(member)) for member in archive.namelist()]
        return [found for member, inner in members for found in _pickles_in(member, inner)]
    if content.startswith(NPY):
        return [f"{name} (an array of objects)"] if _holds_objects(content) else []
    return [name] if _is_pickle(content) else []


def _holds_objects(content: bytes) -> bool:
    try:
        np.load(io.BytesIO(content), allow_pickle=False)
    except ValueError as error:
        return "pickle" in str(error).lower()
    return False


def _is_pickle(content: bytes) -> bool:
    """Say whether all of content is one pickle or several; short text can look like one of protocol 0."""
    if content[:1] != b"\x80" and content[:1] not in b"(]}cl":
        return False
    stream = io.BytesIO(content)
    try:
        while stream.tell() < len(content):
            for _ in pickletools.genops(stream):
                pass
    except Exception:  # whatever genops makes of bytes that are no pickle
        return False
    return len(content) > 2


__all__ = [
    "a_loaded_index_can_be_saved_again",
    "damaged_files_are_an_error_and_never_the_end_of_the_process",
    "finds_the_same_after_loading",
    "opens_in_another_process_and_folder",
    "saves_before_it_has_searched",
    "searches_after_saving_as_before",
    "writes_and_reads_no_pickle",
    "writes_into_its_folder_alone",
    "writes_no_absolute_path",
]
