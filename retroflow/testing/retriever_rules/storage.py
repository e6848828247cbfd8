"""What `save` writes and `load` reads: files in one folder, complete, that open anywhere and run no code."""

import os
import shutil
import unittest
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroflow.errors import DamagedDataError
from retroflow.retrieval.checked import CheckedRetriever
from retroflow.retrieval.index_shards import IndexShards
from retroflow.testing.case import doing
from retroflow.testing.effects import unpickled, writes_outside
from retroflow.testing.retriever_rules.case import RetrieverCase, read_answer, write_answer
from retroflow.testing.retriever_rules.expected import check_equal
from retroflow.testing.stored_files import check_saved_alone, files_in, listing, own_surroundings, pickles_in


def opens_in_another_process_and_folder(case: RetrieverCase) -> None:
    """Nothing but the folder is left: what was written beside it, or is known to this process, is missed."""
    origin, moved = case.scratch(), case.scratch()
    with own_surroundings(origin):
        case.built.save(origin / "parent" / "the ind\u00e9x")
    shutil.move(origin / "parent" / "the ind\u00e9x", moved / "index")
    shutil.rmtree(origin)
    case.elsewhere(_open_and_search, {"folder": str(moved)})
    check_equal(
        read_answer(moved / "answer.npz"),
        case.built.search(case.queries, 5),
        "saved, moved and opened by another process",
    )


def _open_and_search(case: RetrieverCase, folder: str) -> None:
    """For another process: open the index of folder and write what the queries find."""
    moved = Path(folder)
    write_answer(case.opened(moved / "index").search(case.queries, 5), moved / "answer.npz")


def writes_into_its_folder_alone(case: RetrieverCase) -> None:
    folder = case.scratch() / "parent" / "index"
    check_saved_alone(case.built.save, folder)


def building_loading_and_searching_write_nothing(case: RetrieverCase) -> None:
    """An index may be on a disk that can only be read, used by many processes; changed files count as damaged."""
    folder, origin = case.scratch() / "index", case.scratch()
    case.built.save(folder)
    with own_surroundings(origin):
        case.build(case.keys[:300])
        before = listing(folder)
        with writes_outside(origin / "temporary") as written:
            case.opened(folder).search(case.queries, 2)
        left = sorted((listing(folder) - before) | listing(origin / "current"))
    assert not written, f"load() or search() writes {written[:3]}"
    assert not left, f"build(), load() or search() leaves files: {left[:3]}"


def writes_no_absolute_path(case: RetrieverCase) -> None:
    folder = case.scratch() / "index"
    case.built.save(folder)
    given = os.fsencode(folder)
    names = [path.name for path in files_in(folder) if given in path.read_bytes()]
    assert not names, f"{names} hold the absolute path they were saved to; a moved index could not be opened"


def writes_and_reads_no_pickle(case: RetrieverCase) -> None:
    """Opening a pickle runs whatever code it names; an index may come from a stranger."""
    folder = case.scratch() / "index"
    case.built.save(folder)
    pickles = pickles_in(folder)
    assert not pickles, f"save() writes pickles: {pickles[:3]}; write arrays (numpy.save of numbers) and JSON"
    with unpickled() as names:
        case.opened(folder).search(case.queries, 1)
    assert not names, f"load() unpickles {names[:3]}; give numpy.load allow_pickle=False"


def finds_the_same_after_loading(case: RetrieverCase) -> None:
    """Every stored key is looked for, so that one that is lost, or two that are swapped, are seen."""
    folder = case.scratch() / "index"
    case.built.save(folder)
    before, after = case.built.search(case.keys, 2), case.opened(folder).search(case.keys, 2)
    changed = ~np.isclose(before.scores, after.scores, rtol=0.0, atol=1e-5)
    different = np.flatnonzero((before.ids[:, 0] != after.ids[:, 0]) | changed.any(axis=1))
    assert not len(different), (
        f"after save() and load() {len(different)} of {len(case.keys)} stored keys find something else, "
        f"key {int(different[0])} for one"
    )


def searches_after_saving_as_before(case: RetrieverCase) -> None:
    retriever = case.build(case.keys)
    before = retriever.search(case.queries, 5)
    retriever.save(case.scratch() / "index")
    check_equal(retriever.search(case.queries, 5), before, "searched before save() and after it")


def saves_before_it_has_searched(case: RetrieverCase) -> None:
    """As `prepare` does: build, save, and only a new instance searches."""
    folder = case.scratch() / "index"
    case.build(case.keys).save(folder)
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


def shards_make_the_index_of_one_build(case: RetrieverCase) -> None:
    """Each shard is filled by an instance of its own, the last first, as processes would."""
    keys, trained, folder = case.keys, case.scratch(), case.scratch()
    dimension = case.built.dimension
    if case.built.in_shards(len(keys), dimension) is None:
        raise unittest.SkipTest("its index is not built in shards")
    _shards(case).train(keys, trained)
    size = len(keys) // 3 + 1
    filled = list[Mapping[str, NDArray[Any]]]()
    for start in reversed(range(0, len(keys), size)):
        shards = _shards(case)
        shards.open_trained(trained)
        filled.insert(0, shards.fill(keys[start : start + size]))
    rows = [{len(array) for array in shard.values()} for shard in filled]
    assert rows == [{len(keys[at : at + size])} for at in range(0, len(keys), size)], (
        f"fill() returns arrays of {rows} rows, not one for each of its keys"
    )
    merged = case.new()
    shards = _shards(case, merged)
    shards.open_trained(trained)
    merged.merge(shards, lambda: iter(filled), len(keys), dimension or 0)
    merged.save(folder / "merged")
    answer = case.opened(folder / "merged").search(case.queries, 5)
    assert (answer.ids[:, 0] >= 0).all()
    if not case.built.capabilities.deterministic:
        return
    check_equal(answer, case.built.search(case.queries, 5), "merged from shards, and built at once")
    case.build(keys).save(folder / "alone")
    assert _stored(folder / "merged") == _stored(folder / "alone"), (
        "merged from shards, the files are not those of one build"
    )


def _stored(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files_in(folder)}


def _shards(case: RetrieverCase, retriever: CheckedRetriever | None = None) -> IndexShards:
    found = (case.new() if retriever is None else retriever).in_shards(len(case.keys), case.built.dimension)
    assert found is not None, "divides() is true at one time, and false at another"
    return found


def damaged_files_are_an_error_and_never_the_end_of_the_process(case: RetrieverCase) -> None:
    saved = case.scratch() / "index"
    case.built.save(saved)
    paths = files_in(saved)
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
