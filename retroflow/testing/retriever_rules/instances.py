"""One instance used again, two side by side, many threads, a forked child: state that must not be shared."""

import os
import signal
import unittest
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from retroflow.errors import RetrieverError
from retroflow.protocols import Neighbours
from retroflow.testing.effects import (
    changed_since,
    draw_from_global_generators,
    standard_output,
    state_of_process,
    unusual_settings,
)
from retroflow.testing.retriever_rules.case import RetrieverCase, read_answer, write_answer
from retroflow.testing.retriever_rules.expected import check_equal, check_identical
from retroflow.testing.threads import run_at_once

NUM_THREADS = 6
SEARCHES = 10  # of each thread
FORK_SECONDS = 20
DIFFERS = "fix a seed and one thread, or declare deterministic=False"


def building_again_replaces_the_index(case: RetrieverCase) -> None:
    retriever = case.build(case.keys[:400])
    retriever.search(case.queries, 60)
    other = _others(case)
    retriever.build(other)
    ids, _ = answer = retriever.search(case.queries, 60)
    assert ids.max() < len(other), "build() must replace what was there, not add to it"
    if retriever.capabilities.deterministic:
        check_equal(answer, case.build(other).search(case.queries, 60), "built again, and built by a new instance")
    more = case.make_keys(1_000, seed=3, dimension=case.suite.dimension + 3)
    retriever.build(more)
    ids, _ = retriever.search(more, 1)
    found = float(np.mean(ids[:, 0] == np.arange(len(more))))
    assert found >= case.suite.recall_floor, f"built again over more and other keys, only {found:.2f} find themselves"


def loading_replaces_what_was_built(case: RetrieverCase) -> None:
    folder = case.scratch() / "index"
    case.built.save(folder)
    used = case.build(_others(case))
    used.search(case.queries, 5)
    wider = case.build(case.make_keys(300, dimension=case.suite.dimension + 3))
    for retriever in (used, wider):
        retriever.load(folder)
        check_equal(retriever.search(case.queries, 5), case.built.search(case.queries, 5), "loaded by a used instance")
    other = case.scratch() / "index"
    case.build(_others(case)).save(other)
    twice = case.opened(other)
    twice.load(folder)
    check_equal(twice.search(case.queries, 5), case.built.search(case.queries, 5), "loaded after another was loaded")
    used.build(case.keys[:200])
    assert used.search(case.queries, 5).ids.max() < 200, "built again after load(), it answers from what it had loaded"


def an_answer_depends_on_every_query_and_on_k(case: RetrieverCase) -> None:
    """Searches that have a query, a shape or a sum in common share nothing else."""
    expected = case.built.search(case.queries, 5)
    like_the_first = {
        "the same first row": [0, *range(30, 49)],
        "the same last row": [*range(30, 49), 19],
        "the same rows in another order": list(range(19, -1, -1)),
    }
    for what, rows in like_the_first.items():
        case.built.search(case.queries[:20], 5)
        answer = case.built.search(case.queries[rows], 5)
        check_equal(answer, Neighbours(expected.ids[rows], expected.scores[rows]), f"after a search with {what}")
    deeper = case.built.search(case.queries, 7)
    check_equal(Neighbours(deeper.ids[:, :5], deeper.scores[:, :5]), expected, "asked for 7 after 5")


def an_answer_stays_as_it_is(case: RetrieverCase) -> None:
    answer = case.built.search(case.queries, 5)
    kept = Neighbours(answer.ids.copy(), answer.scores.copy())
    case.built.search(case.queries[::-1], 5)
    check_identical(answer, kept, "the next search changed arrays that an earlier one had returned")
    for array in answer:
        if array.flags.writeable:
            array.fill(0)
    check_equal(case.built.search(case.queries, 5), kept, "after whoever asked had changed the answer it was given")


def two_instances_share_nothing(case: RetrieverCase) -> None:
    expected = case.built.search(case.queries, 5)
    case.build(_others(case)).search(case.queries, 5)
    check_equal(case.built.search(case.queries, 5), expected, "after another instance was built over other keys")


def the_same_search_has_the_same_answer(case: RetrieverCase) -> None:
    first, again = (case.built.search(case.queries, 10) for _ in range(2))
    check_equal(first, again, "the same search of the same index, twice")


def two_builds_are_equal_if_declared_deterministic(case: RetrieverCase) -> None:
    _skip_unless_deterministic(case)
    first, second = case.built.search(case.queries, 10), case.build(case.keys).search(case.queries, 10)
    check_identical(first, second, f"two builds of the same keys answer differently: {DIFFERS}")


def a_build_in_another_process_is_equal_if_declared_deterministic(case: RetrieverCase) -> None:
    _skip_unless_deterministic(case)
    folder = case.scratch()
    case.elsewhere(_build_and_search, {"folder": str(folder)})
    check_identical(
        case.built.search(case.queries, 10),
        read_answer(folder / "answer.npz"),
        f"a build in another process, with another PYTHONHASHSEED, answers differently: {DIFFERS}",
    )


def _build_and_search(case: RetrieverCase, folder: str) -> None:
    """For another process: build over the keys and write what the queries find."""
    write_answer(case.build(case.keys).search(case.queries, 10), Path(folder) / "answer.npz")


def threads_can_search_at_once(case: RetrieverCase) -> None:
    """Each thread with queries, a number of them and a k of its own; the first searches of a loaded index, too."""
    folder = case.scratch() / "index"
    case.built.save(folder)
    loaded = case.opened(folder)
    rows = np.arange(len(case.queries))
    rotated = [case.queries[np.roll(rows, 7 * thread)] for thread in range(NUM_THREADS)]
    few_and_many = (8, 7, len(case.queries), 6, len(case.queries), 1)
    jobs = [(rotated[thread][: few_and_many[thread]], 1 + thread % 5) for thread in range(NUM_THREADS)]
    expected = [case.built.search(queries, k) for queries, k in jobs]

    def search(number: int) -> None:
        check_equal(loaded.search(*jobs[number]), expected[number], "alone and beside other threads")

    searches = [partial(search, number) for number in range(NUM_THREADS)]
    fault = run_at_once(searches, type(case.suite.make_retriever()), times=SEARCHES)
    assert fault is None, f"several threads search at once; keep no query or option of a search on self: {fault!r}"


def a_forked_child_searches_or_is_told_not_to(case: RetrieverCase) -> None:
    if not hasattr(os, "fork"):
        raise unittest.SkipTest("no fork on this system")
    retriever = case.build(case.keys)
    expected = retriever.search(case.queries, 5)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            # Whatever hangs there, the child ends: not by a handler of Python's, which native code would not let run.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(FORK_SECONDS)
            os.write(writing, _answer_of_child(retriever, case.queries, expected).encode()[:4096])
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        said = file.read().decode()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
        said = f"still searching after {FORK_SECONDS} s"
    elif os.WIFSIGNALED(status):
        said = f"ended by signal {os.WTERMSIG(status)}"
    wanted = "ok" if retriever.capabilities.fork_safe else RetrieverError.__name__
    assert said == wanted, (
        f"in a forked child: {said or 'no answer'}; a library that does not survive it: fork_safe=False"
    )


def leaves_the_process_as_it_was(case: RetrieverCase) -> None:
    """Nothing on stdout, which belongs to `--json`; no global generator used or seeded, no setting changed."""
    folder = case.scratch() / "index"
    case.built.search(case.queries, 2)  # what is imported at the first search may
    draw_from_global_generators()
    with unusual_settings(case.scratch()), standard_output() as written:
        before = state_of_process()
        retriever = case.build(case.keys[:500])
        retriever.search(case.queries, 5)
        retriever.save(folder)
        case.opened(folder).search(case.queries, 5)
        retriever.fingerprint()
        said = written()
        changed = changed_since(before)
    assert not said, f"it prints to stdout: {said[:200]!r}; log to stderr, or nothing"
    assert not changed, (
        f"it changed {' and '.join(changed)}; use a generator of your own (numpy.random.default_rng(seed)) and put "
        "settings back"
    )


def _others(case: RetrieverCase) -> Any:
    return case.make_keys(300, seed=7)


def _skip_unless_deterministic(case: RetrieverCase) -> None:
    if not case.new().capabilities.deterministic:
        raise unittest.SkipTest("capabilities.deterministic is False")


def _answer_of_child(retriever: Any, queries: Any, expected: Neighbours) -> str:
    try:
        equal = np.allclose(retriever.search(queries, 5).scores, expected.scores, atol=1e-4)
    except BaseException as error:
        return type(error).__name__
    return "ok" if equal else "another answer than its parent's"
