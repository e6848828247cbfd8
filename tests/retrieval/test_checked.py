"""CheckedRetriever: what it refuses, what it says, and whom it blames."""

import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from retroflow.errors import DamagedDataError, InvalidVectorsError, RetrieverError, RetroflowError, UsageError
from retroflow.protocols import Capabilities, Float32Array, Int64Array, KeySource, Neighbours, Queries
from retroflow.retrieval.checked import CheckedRetriever

INF = float("inf")


class Scripted:
    """A retriever that answers what it was told to, whatever it is asked."""

    def __init__(self, answer: object = None, *, fork_safe: bool = True) -> None:
        self.answer = answer
        self.capabilities = Capabilities(fork_safe=fork_safe)
        self.asked: list[tuple[int, ...]] = []

    def build(self, keys: KeySource) -> None:
        for start in range(0, len(keys), 4):
            keys.vectors[start : start + 4]

    def search(self, queries: Queries, k: int) -> Neighbours:
        vectors = queries.vectors
        assert type(k) is int and vectors.dtype == np.float32 and vectors.flags.c_contiguous
        self.asked.append(vectors.shape)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer  # type: ignore[return-value]

    def save(self, folder: Path) -> None:
        (folder / "data").write_bytes(b"1234")

    def load(self, folder: Path) -> None:
        if (folder / "data").read_bytes() == b"":
            raise RuntimeError("native")

    def fingerprint(self) -> dict[str, object]:
        return {"backend": "scripted"}


class Changing(Scripted):
    """One that can be changed, and notes how."""

    def __init__(self, answer: object = None, fault: Exception | None = None) -> None:
        super().__init__(answer)
        self.capabilities = Capabilities(add=True, remove=True)
        self.fault, self.changes = fault, []

    def add(self, keys: KeySource) -> None:
        keys.vectors[0 : len(keys)]
        self.changes.append(f"add {len(keys)}")

    def remove(self, ids: Int64Array) -> None:
        if self.fault is not None:
            raise self.fault
        assert ids.dtype == np.int64
        self.changes.append(f"remove {ids.tolist()}")


def answer(ids: object, scores: object) -> Neighbours:
    return Neighbours(np.array(ids, dtype=np.int64), np.array(scores, dtype=np.float32))


def built(retriever: Scripted, count: int = 10) -> CheckedRetriever:
    checked = CheckedRetriever(retriever, owner="scripted (acme 1.0)")
    checked.build(np.zeros((count, 3), np.float32))
    return checked


GOOD = answer([[4, 2, -1]], [[-0.5, -1.0, -INF]])
BROKEN = {
    "not float16": "not a pair",
    "must return Neighbours": [GOOD.ids, GOOD.scores],
    "ids must be a plain numpy array, not list": ([[1, 2, 3]], GOOD.scores),
    "scores must be a plain numpy array, not MaskedArray": (GOOD.ids, np.ma.array(GOOD.scores)),
    "ids must be int64, not int32": (GOOD.ids.astype(np.int32), GOOD.scores),
    "scores must be float32, not float64": (GOOD.ids, GOOD.scores.astype(np.float64)),
    r"ids must have shape \[1, 3\], not \[1, 2\]": (GOOD.ids[:, :2], GOOD.scores),
    r"scores must have shape \[1, 3\]": (GOOD.ids, GOOD.scores[:, :2]),
    r"id 10 is outside 0\.\.9": answer([[10, 2, -1]], [[-0.5, -1.0, -INF]]),
    r"id -2 is outside 0\.\.9": answer([[4, -2, -1]], [[-0.5, -1.0, -INF]]),
    "-inf exactly where": answer([[4, 2, -1]], [[-0.5, -1.0, -9.0]]),
    "-inf exactly where the id": answer([[4, 2, 1]], [[-0.5, -1.0, -INF]]),
    "NaN or infinite": answer([[4, 2, -1]], [[-0.5, float("nan"), -INF]]),
    "NaN or infinite beside": answer([[4, 2, -1]], [[INF, -1.0, -INF]]),
    "padding belongs at the end": answer([[4, -1, 2]], [[-0.5, -INF, -1.0]]),
    "scores increase": answer([[4, 2, -1]], [[-1.0, -0.5, -INF]]),
    "id 4 occurs twice": answer([[4, 4, -1]], [[-0.5, -0.5, -INF]]),
    "NaN or infinite beside a": answer([[4, 2, 1]], [[-0.5, float("nan"), -1.0]]),
    "scores increase along": answer([[4, 2, 1]], [[-0.5, -1.0, -0.9]]),
    "id 4 occurs twice in": answer([[4, 2, 4]], [[-0.5, -0.6, -0.7]]),
    "id 10 is outside": answer([[4, 2, 10]], [[-0.5, -0.6, -0.7]]),
}
del BROKEN["not float16"]


def test_a_retriever_may_refuse_a_width_or_a_count_before_it_builds() -> None:
    class Choosy(Scripted):
        def check_vectors(self, count: int | None, dimension: int) -> None:
            if dimension > 3:
                raise UsageError("retriever.build.part is 2; allowed: a divisor of the width.")
            if count == 7:
                raise ValueError("seven")

    checked = CheckedRetriever(Choosy(), owner="choosy (acme 1.0)")
    checked.check_vectors(None, 3)
    with pytest.raises(UsageError, match=r"^choosy \(acme 1\.0\): retriever\.build\.part is 2"):
        checked.build(np.zeros((1, 4), np.float32))
    with pytest.raises(RetrieverError, match=r"choosy \(acme 1.0\): check_vectors\(\) failed: ValueError: seven"):
        checked.check_vectors(7, 3)
    CheckedRetriever(Scripted(), owner="scripted").check_vectors(7, 4)  # has nothing to say


def test_a_good_answer_passes_untouched() -> None:
    given = built(Scripted(GOOD)).search(np.zeros((1, 3)), 3)
    assert given.ids is GOOD.ids and given.scores is GOOD.scores


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_answer_names_its_owner_and_the_rule(fault: str) -> None:
    with pytest.raises(RetrieverError, match=rf"scripted \(acme 1\.0\): search\(\) broke the .*{fault}"):
        built(Scripted(BROKEN[fault])).search(np.zeros((1, 3)), 3)


def calls_of(search: Callable[[], object]) -> int:
    """Count calls of Python functions and of C functions."""
    search()
    counts = {"call": 0, "c_call": 0}

    def count(frame: object, event: str, argument: object) -> None:
        if event in counts:
            counts[event] += 1

    sys.setprofile(count)
    try:
        search()
    finally:
        sys.setprofile(None)
    return sum(counts.values())


def test_the_checks_of_a_search_are_few_calls_however_many_queries() -> None:
    """60 calls are about 5 microseconds: tests/benchmarks/bench_wrapper.py measures them."""
    counts = {}
    for rows in (1, 64, 512):
        found = answer([range(10)] * rows, [-np.arange(10.0)] * rows)
        checked, queries = built(Scripted(found), count=20), np.zeros((rows, 3), np.float32)
        counts[rows] = calls_of(lambda checked=checked, queries=queries: checked.search(queries, 10))
    assert counts[1] <= 60 and counts[64] == counts[512] <= 90, counts


def test_keys_are_counted_when_they_change_and_not_in_each_search() -> None:
    class Counted(np.ndarray):
        def sum(self, *_: object) -> int:  # type: ignore[override]
            raise AssertionError("it takes longer the more keys there are")

    checked = built(Changing(answer([[4, 2, -1]], [[-0.5, -1.0, -INF]])))
    checked.remove([3, 5])
    assert len(checked) == 8
    checked._live = checked._live.view(Counted)  # type: ignore[union-attr]
    assert checked.search(np.zeros((1, 3), np.float32), 3).ids.tolist() == [[4, 2, -1]] and len(checked) == 8


def test_an_exception_of_a_backend_names_its_owner() -> None:
    with pytest.raises(RetrieverError, match=r"scripted \(acme 1\.0\): search\(\) failed: ValueError: native"):
        built(Scripted(ValueError("native"))).search(np.zeros((1, 3)), 3)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.zeros(3, np.float32), r"2 dimensions \[rows, width\], not 1 .*v\[None, :\]"),
        (np.zeros((3, 0), np.float32), "0 columns"),
        (np.zeros((3, 2), np.int64), "float16, bfloat16, float32 or float64, not int64"),
        ([[1.0, 2.0]], r"not list; convert it with numpy\.asarray"),
        (np.array([[0.0, 1.0]] * 6 + [[0.0, np.nan]]), r"vectors\[6, 1\] is nan; every value must be finite"),
        (np.array([[0.0, 1e300]]), r"vectors\[0, 1\] is inf"),
        (np.array([[0.0, -1e16]]), r"at most 1e\+15 in magnitude"),
    ],
)
def test_build_says_what_is_wrong_and_where(vectors: object, message: str) -> None:
    with pytest.raises(InvalidVectorsError, match=message):
        CheckedRetriever(Scripted(), owner="x").build(vectors)  # type: ignore[arg-type]


def test_a_failed_build_leaves_no_index_behind() -> None:
    checked = built(Scripted(GOOD))
    with pytest.raises(InvalidVectorsError):
        checked.build(np.full((4, 3), np.nan))
    with pytest.raises(RetrieverError, match=r"search\(\) before build\(\) or load\(\)"):
        checked.search(np.zeros((1, 3)), 3)


def test_a_source_shorter_than_it_says_is_refused() -> None:
    class Short:
        shape = (10, 3)

        def __len__(self) -> int:
            return 10

        def __getitem__(self, rows: slice, /) -> Float32Array:
            return np.zeros((4, 3), np.float32)[rows]

    with pytest.raises(InvalidVectorsError, match=r"vectors\[4:8\] has shape \[0, 3\]"):
        CheckedRetriever(Scripted(), owner="x").build(Short())


def test_queries_of_another_width_are_told_the_width_of_the_index() -> None:
    with pytest.raises(InvalidVectorsError, match="queries have 5 columns, .* vectors of 3"):
        built(Scripted(GOOD)).search(np.zeros((1, 5)), 3)


def test_an_empty_index_and_no_queries_never_reach_the_backend() -> None:
    retriever = Scripted(ValueError("asked"))
    assert (built(retriever, count=0).search(np.zeros((2, 3)), 4).ids == -1).all()
    assert built(retriever).search(np.zeros((0, 3)), 4).ids.shape == (0, 4)
    assert retriever.asked == []


def test_bfloat16_tensors_are_read_exactly() -> None:
    torch = pytest.importorskip("torch")
    retriever = Scripted(GOOD)
    built(retriever).search(torch.ones((1, 3), dtype=torch.bfloat16, requires_grad=True), 3)
    assert retriever.asked == [(1, 3)]
    with pytest.raises(InvalidVectorsError, match=r"not torch\.int64"):
        built(retriever).search(torch.ones((1, 3), dtype=torch.int64), 3)


def test_a_changed_process_is_refused_unless_fork_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    unsafe, safe = built(Scripted(GOOD, fork_safe=False)), built(Scripted(GOOD))
    monkeypatch.setattr("os.getpid", lambda: 1)
    safe.search(np.zeros((1, 3)), 3)
    with pytest.raises(RetrieverError, match=r"used in its forked child 1.*call load\(\) in the child"):
        unsafe.search(np.zeros((1, 3)), 3)


def test_save_needs_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RetrieverError, match="needs an empty folder"):
        built(Scripted()).save(tmp_path)


def test_load_refuses_another_metric(tmp_path: Path) -> None:
    built(Scripted()).save(tmp_path / "index")
    retriever = Scripted()
    retriever.capabilities = Capabilities(metric="inner_product")
    with pytest.raises(RetrieverError, match='built with metric "l2", .* set to "inner_product"'):
        CheckedRetriever(retriever, owner="x").load(tmp_path / "index")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 9}, "format version 9"),
        ({"dimension": 0}, "impossible values"),
        ({"next_id": "many"}, "impossible values"),
        ({"removed": [[2, 11]]}, "impossible values"),
        ({"removed": [[4, 2]]}, "impossible values"),
        ({"removed": [3]}, "not the description of an index"),
        ({"crc32": {"data": 1}}, "not, byte by byte, those that scripted"),
    ],
)
def test_load_refuses_a_description_that_is_not_true(tmp_path: Path, change: dict[str, object], message: str) -> None:
    built(Scripted()).save(tmp_path / "index")
    file = tmp_path / "index" / "retriever.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(DamagedDataError, match=message):
        CheckedRetriever(Scripted(), owner="x").load(tmp_path / "index")


def test_an_unreadable_index_of_a_plugin_is_damaged_data(tmp_path: Path) -> None:
    class Leaking(Scripted):
        def load(self, folder: Path) -> None:
            raise RuntimeError("native")

    built(Scripted()).save(tmp_path / "index")
    with pytest.raises(
        DamagedDataError, match=r"acme cannot read the index .*written by scripted.*RuntimeError: native"
    ):
        CheckedRetriever(Leaking(), owner="acme").load(tmp_path / "index")


def test_a_fingerprint_that_is_no_json_is_refused() -> None:
    class Pathy(Scripted):
        def fingerprint(self) -> dict[str, object]:
            return {"path": Path("x")}

    with pytest.raises(RetrieverError, match="must hold JSON values"):
        CheckedRetriever(Pathy(), owner="x").fingerprint()


def test_what_is_no_retriever_is_told_what_it_lacks() -> None:
    with pytest.raises(RetrieverError, match="object is not a Retriever, it lacks capabilities, build, search"):
        CheckedRetriever(object(), owner="x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"queried_by": "words"}, "capabilities.queried_by is 'words'; allowed: vectors and texts and both"),
        ({"queried_by": "texts"}, 'capabilities.metric is "l2", which compares vectors.*declare metric="own"'),
        ({"queried_by": "both", "metric": "inner_product"}, 'declare metric="own"'),
    ],
)
def test_what_a_retriever_reads_must_fit_what_its_scores_mean(declared: dict[str, str], message: str) -> None:
    retriever = Scripted()
    retriever.capabilities = Capabilities(**declared)  # type: ignore[arg-type]
    with pytest.raises(RetrieverError, match=message):
        CheckedRetriever(retriever, owner="x")


@pytest.mark.parametrize("metric", ["cosine", "L2", None])
def test_a_metric_that_no_score_has_is_refused(metric: object) -> None:
    retriever = Scripted()
    retriever.capabilities = Capabilities(metric=metric)  # type: ignore[arg-type]
    with pytest.raises(RetrieverError, match=f'x: capabilities.metric is "{metric}"; allowed: l2 and inner_product'):
        CheckedRetriever(retriever, owner="x")


@pytest.mark.parametrize("field", ["exact", "deterministic", "fork_safe", "add", "remove"])
def test_a_capability_that_is_neither_true_nor_false_is_refused(field: str) -> None:
    retriever = Scripted()
    retriever.capabilities = Capabilities(**{field: "no"})  # type: ignore[arg-type]
    with pytest.raises(RetrieverError, match=f"x: capabilities.{field} is 'no'; allowed: True and False"):
        CheckedRetriever(retriever, owner="x")


class Wordless(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


def test_an_error_that_cannot_be_shown_names_the_retriever_all_the_same() -> None:
    retriever = CheckedRetriever(Failing("fingerprint", Wordless()), owner="x")  # type: ignore[arg-type]
    with pytest.raises(RetrieverError, match=r"x: fingerprint\(\) failed: Wordless: \(its message cannot be shown"):
        retriever.fingerprint()


class Failing:
    """A retriever of which one member raises."""

    def __init__(self, member: str, error: BaseException) -> None:
        self._member, self._error = member, error

    def _touch(self, member: str) -> None:
        if member == self._member:
            raise self._error

    @property
    def capabilities(self) -> Capabilities:
        self._touch("capabilities")
        return Capabilities()

    def build(self, keys: KeySource) -> None:
        self._touch("build")

    def search(self, queries: Queries, k: int) -> Neighbours:
        self._touch("search")
        return Neighbours(np.zeros((len(queries), k), np.int64), np.zeros((len(queries), k), np.float32))

    def save(self, folder: Path) -> None:
        self._touch("save")

    def load(self, folder: Path) -> None:
        self._touch("load")

    def fingerprint(self) -> dict[str, object]:
        self._touch("fingerprint")
        return {}


MEMBERS = ("capabilities", "build", "search", "save", "load", "fingerprint")


def use(member: str, error: BaseException, folder: Path) -> None:
    """Call everything of a retriever once, one member of which raises."""
    checked = CheckedRetriever(Failing(member, error), owner="annoy (retroflow-annoy 0.1)")
    checked.build(np.zeros((10, 3), np.float32))
    checked.search(np.zeros((1, 3)), 1)
    checked.save(folder / "index")
    CheckedRetriever(Failing(member, error), owner="annoy (retroflow-annoy 0.1)").load(folder / "index")


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize(
    "error",
    [
        SystemExit(0),
        SystemExit("bye"),
        GeneratorExit(),
        type("Odd", (BaseException,), {})("odd"),
        MemoryError(),
        RuntimeError("std::bad_alloc"),
        OSError(errno.EACCES, "Permission denied", "/index"),
        OSError("the library could not write"),
        ImportError("no module x"),
    ],
    ids=repr,
)
def test_whatever_a_retriever_raises_names_it_and_its_distribution(
    member: str, error: BaseException, tmp_path: Path
) -> None:
    with pytest.raises((RetroflowError, OSError), match=r"annoy \(retroflow-annoy 0\.1\)") as caught:
        use(member, error, tmp_path)
    assert not isinstance(caught.value, DamagedDataError) or str(error) == "the library could not write"


@pytest.mark.parametrize("member", ["build", "search", "save", "fingerprint"])
def test_a_missing_file_of_a_retriever_is_its_failure(member: str, tmp_path: Path) -> None:
    error = FileNotFoundError(errno.ENOENT, "No such file or directory", "/nonexistent/x")
    with pytest.raises(RetrieverError, match=rf"{member}\(\) failed: FileNotFoundError: .*/nonexistent/x"):
        use(member, error, tmp_path)


@pytest.mark.parametrize("member", ["build", "search", "save", "load"])
def test_a_full_disk_stays_one_and_names_the_retriever(member: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=rf"No space left on device, in {member}\(\) of annoy") as caught:
        use(member, OSError(errno.ENOSPC, "No space left on device", "/index"), tmp_path)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "/index")


def test_running_out_of_memory_says_what_was_done_and_what_helps(tmp_path: Path) -> None:
    with pytest.raises(RetrieverError, match="out of memory while building the index of 10 vectors of width 3 .*need"):
        use("build", MemoryError("7 GiB"), tmp_path)
    with pytest.raises(RetrieverError, match="out of memory while searching 10 vectors with 1 queries for 1 each"):
        use("search", RuntimeError("DefaultCPUAllocator: can't allocate memory"), tmp_path)


@pytest.mark.parametrize("member", MEMBERS)
def test_an_interrupt_passes_a_retriever(member: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        use(member, KeyboardInterrupt(), tmp_path)


def test_an_error_in_retroflows_own_words_keeps_its_kind_and_gets_a_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^annoy \(retroflow-annoy 0.1\): num_trees must be positive$"):
        use("build", UsageError("num_trees must be positive"), tmp_path)
    with pytest.raises(UsageError, match="^annoy: num_trees must be positive$"):
        use("build", UsageError("annoy: num_trees must be positive"), tmp_path)
    with pytest.raises(InvalidVectorsError, match=r"^vectors\[6, 1\]"):
        use("build", InvalidVectorsError("vectors[6, 1] is nan"), tmp_path)


@pytest.mark.parametrize(("values", "kind"), [(None, "NoneType"), ("1.0", "str"), ([("version", 1)], "list")])
def test_a_fingerprint_that_is_no_dict_is_refused(values: object, kind: str) -> None:
    class Odd(Scripted):
        def fingerprint(self) -> dict[str, object]:
            return values  # type: ignore[return-value]

    with pytest.raises(RetrieverError, match=rf"x: fingerprint\(\) must return a dict of JSON values, not {kind}"):
        CheckedRetriever(Odd(), owner="x").fingerprint()


def outside(folder: Path) -> None:
    (folder.parent / "more").write_text("")


def linked(folder: Path) -> None:
    (folder / "data").symlink_to("/etc/hostname")


def linked_folder(folder: Path) -> None:
    (folder / "below").mkdir()
    (folder / "below" / "all").symlink_to(folder.parent)


@pytest.mark.parametrize(
    ("leave", "fault"),
    [
        (outside, 'it wrote "more" beside the folder'),
        (linked, '"data" is a link'),
        (linked_folder, '"all" is a link'),
    ],
)
def test_an_index_is_files_in_its_own_folder(leave: Callable[[Path], None], fault: str, tmp_path: Path) -> None:
    class Straying(Scripted):
        def save(self, folder: Path) -> None:
            leave(folder)

    with pytest.raises(RetrieverError, match=rf"scripted \(acme 1.0\): save\(\) left .*{fault}"):
        built(Straying()).save(tmp_path / "index")


def test_changes_are_counted_and_survive_saving(tmp_path: Path) -> None:
    retriever = Changing(GOOD)
    checked = built(retriever, 6)
    checked.add(np.zeros((2, 3), np.float16))
    checked.remove([6, 1, 6])
    checked.remove(np.array([], np.float64))
    checked.add(np.zeros((0, 3), np.float32))
    checked.add(np.zeros((1, 3), np.float32))
    assert retriever.changes == ["add 2", "remove [1, 6]", "add 1"]
    checked.save(tmp_path / "index")
    opened = CheckedRetriever(Changing(GOOD), owner="scripted (acme 1.0)")
    opened.load(tmp_path / "index")
    for each in (checked, opened):
        assert (len(each), each.next_id) == (7, 9)
        assert each.search(np.zeros((1, 3)), 3).ids is GOOD.ids
        for ids, message in (
            ([6], "^ids: 6 is not in the index, it was removed before; nothing was removed"),
            ([2, 9], "^ids: 9 is not in the index, which was given 9 keys so far"),
            ([-1], "^ids: -1 is not"),
            ([1.5], "whole numbers, not float64"),
            ([[2]], r"whole numbers, not int64 \[1, 1\]"),
            ([True], "whole numbers, not bool"),
        ):
            with pytest.raises(UsageError, match=message):
                each.remove(ids)
        each.remove([4])
        with pytest.raises(RetrieverError, match=r"scripted \(acme 1\.0\): search\(\) broke .*: id 4 was removed"):
            each.search(np.zeros((1, 3)), 3)


def test_an_index_that_is_emptied_is_not_searched_and_gets_further_ids(tmp_path: Path) -> None:
    checked = built(retriever := Changing(), 2)
    checked.remove(range(2))
    assert (checked.search(np.zeros((1, 3)), 4).ids == -1).all() and len(checked) == 0 and not retriever.asked
    checked.save(tmp_path / "index")
    checked.load(tmp_path / "index")
    checked.add(np.zeros((1, 3), np.float32))
    assert (len(checked), checked.next_id) == (1, 3)
    nothing = built(Changing(), 0)
    nothing.add(np.zeros((2, 3), np.float32))
    assert nothing.next_id == 2


def test_a_change_that_is_not_possible_says_so() -> None:
    checked = built(Scripted())
    for change in (lambda: checked.add(np.zeros((1, 3), np.float32)), lambda: checked.remove([1])):
        with pytest.raises(RetrieverError, match=r"scripted \(acme 1\.0\) cannot (add|remove) keys .*; build it again"):
            change()
    with pytest.raises(InvalidVectorsError, match="4 columns, but the index was built over vectors of 3"):
        built(Changing()).add(np.zeros((1, 4), np.float32))
    with pytest.raises(RetrieverError, match=r"add\(\) before build\(\) or load\(\)"):
        CheckedRetriever(Changing(), owner="scripted").add(np.zeros((1, 3), np.float32))

    class Promising(Scripted):
        def __init__(self) -> None:
            super().__init__()
            self.capabilities = Capabilities(remove=True)

    with pytest.raises(RetrieverError, match=r"promise what Promising does not have: remove\(\)"):
        CheckedRetriever(Promising(), owner="scripted")


def test_an_index_is_not_usable_after_a_change_that_failed() -> None:
    checked = built(Changing(fault=ValueError("native")))
    with pytest.raises(InvalidVectorsError, match=r"\[0, 0\] is nan"):
        checked.add(np.full((1, 3), np.nan, np.float32))
    with pytest.raises(RetrieverError, match="before build"):
        checked.search(np.zeros((1, 3)), 1)
    checked = built(Changing(fault=ValueError("native")))
    with pytest.raises(RetrieverError, match=r"acme 1\.0\): remove\(\) failed: ValueError: native"):
        checked.remove([1])
    with pytest.raises(RetrieverError, match="before build"):
        checked.save(Path("unused"))
