"""What a retriever owes whose keys can be added or removed: after any history it answers as one that is built anew.

Beside the retriever a list of keys goes through the same history, from which brute force knows the answer.
"""

import unittest
from pathlib import Path
from typing import Any

import numpy as np

from retroflow.protocols import Neighbours
from retroflow.testing.case import doing
from retroflow.testing.retriever_rules.case import RetrieverCase, read_answer, write_answer
from retroflow.testing.retriever_rules.expected import check_equal, check_scores, recall

HISTORIES, STEPS = 2, 12
BUILT, MOST_CHANGED = 800, 120
K = 10


class _History:
    """A retriever, and the keys that should be in it.

    Attributes:
        retriever: under test.
        live: int64, the ids of the keys that are in it, ascending.
        next_id: of the key that is added next.
    """

    def __init__(self, case: RetrieverCase, seed: int = 0) -> None:
        self.generator = np.random.default_rng(seed)
        self._case, self._keys = case, case.make_keys(BUILT + STEPS * MOST_CHANGED, seed=seed + 10)
        self.live, self.next_id = np.arange(BUILT), BUILT
        self.retriever = case.build(self._keys[:BUILT])

    def add(self, count: int) -> None:
        """Add the next keys; they must find themselves."""
        added = np.arange(self.next_id, self.next_id + count)
        self.retriever.add(self._keys[self.next_id : self.next_id + count])
        self.live, self.next_id = np.append(self.live, added), self.next_id + count
        found = (self.retriever.search(self._keys[added], K).ids == added[:, None]).any(axis=1).mean()
        assert found >= self._case.suite.recall_floor, f"only {found:.2f} of {count} added keys find themselves"

    def remove(self, ids: Any) -> None:
        """Remove keys, which must not be found by themselves, nor others be lost."""
        self.retriever.remove(ids)
        self.live = np.setdiff1d(self.live, ids)
        self.retriever.search(self._keys[np.asarray(ids)], K)  # an id that was removed is an error

    def open_again(self) -> None:
        """Save, and go on with an instance that has loaded it."""
        folder = self._case.scratch() / "index"
        self.retriever.save(folder)
        self.retriever = self._case.opened(folder)

    def check(self) -> None:
        """Compare with an index that is built over the live keys."""
        case, live, kept = self._case, self.live, self._keys[self.live]
        queries = case.queries
        assert len(self.retriever) == len(live)
        answer, anew = self.retriever.search(queries, K), case.build(kept).search(queries, K)
        outside = np.setdiff1d(answer.ids[answer.ids >= 0], live)
        assert not len(outside), f"id {outside[:1]} is none that a key in the index has"
        own = Neighbours(np.where(answer.ids < 0, -1, np.searchsorted(live, answer.ids)), answer.scores)
        if case.new().capabilities.exact:
            check_equal(own, anew, "changed, and built anew over the same keys")
            return
        if case.metric == "own":
            shares = [float(np.isin(*rows).mean()) for rows in zip(own.ids, anew.ids, strict=True)]
            found, expected = float(np.mean(shares)), 1.0
        else:
            check_scores(case, queries, kept, own)
            found, expected = (recall(case.metric, queries, kept, each) for each in (own, anew))
        floor = expected - (1.0 - case.suite.recall_floor)
        assert found >= floor, f"recall@{K} is {found:.3f} after changes, and {expected:.3f} if built anew"


def a_changed_index_answers_as_a_new_one(case: RetrieverCase) -> None:
    """Seeded histories of keys that are added, removed and replaced, one or many at a time, saved and loaded."""
    adds, removes = _abilities(case)
    for seed in range(HISTORIES):
        history = _History(case, seed)
        for step in range(STEPS):
            count = 1 if step % 4 == 0 else int(history.generator.integers(2, MOST_CHANGED))
            with doing(f"history {seed}, step {step}: {count} keys"):
                if removes and step % 3 != 1:
                    history.remove(history.generator.choice(history.live, count, replace=False))
                if adds and step % 3 != 0:
                    history.add(count)
                if step % 6 == 2:
                    history.check()
                if step % 3 == 2:
                    history.open_again()
                if step % 6 == 5:
                    history.check()


def changes_are_found_in_another_process(case: RetrieverCase) -> None:
    adds, removes = _abilities(case)
    history = _History(case)
    history.open_again()
    if adds:
        history.add(50)
    if removes:
        history.remove(history.live[::7])
    folder = case.scratch()
    history.retriever.save(folder / "index")
    case.elsewhere(_search_there, {"folder": str(folder)})
    expected = history.retriever.search(case.queries, K)
    check_equal(read_answer(folder / "answer.npz"), expected, "changed here, saved, and loaded in another process")


def _search_there(case: RetrieverCase, folder: str) -> None:
    """For another process."""
    write_answer(case.opened(Path(folder) / "index").search(case.queries, K), Path(folder) / "answer.npz")


def the_last_key_and_all_of_them_can_be_removed(case: RetrieverCase) -> None:
    """The ids of removed keys are not given to others."""
    adds, _ = _abilities(case, needs_remove=True)
    history = _History(case)
    history.remove([0, history.next_id - 1])
    history.check()
    with doing("all keys removed"):
        history.remove(history.live)
        assert (history.retriever.search(case.queries, K).ids == -1).all()
        history.open_again()
        assert (history.retriever.search(case.queries, K).ids == -1).all()
    if adds:
        with doing("keys added after all were removed"):
            history.add(50)
            history.open_again()
            history.check()


def nothing_of_a_removed_key_is_saved_if_declared(case: RetrieverCase) -> None:
    _abilities(case, needs_remove=True)
    if not case.new().capabilities.erases:
        raise unittest.SkipTest("a rule about changes; capabilities.erases does not declare it")
    history = _History(case)
    history.open_again()
    gone = history.live[:: len(history.live) // 20]
    traces = _traces(case, history._keys[gone])
    history.remove(gone)
    folder = case.scratch() / "index"
    history.retriever.save(folder)
    written = b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())
    left = sum(trace in written for trace in traces)
    assert not left, f"{left} of {len(gone)} removed keys are still in the files that save() writes"


def _traces(case: RetrieverCase, keys: Any) -> list[bytes]:
    """What would be left of keys: their vectors as float16 or float32, or their texts."""
    if case.new().capabilities.reads_texts:
        return [text.encode() for text in keys.texts]
    return [row.astype(dtype).tobytes() for row in keys for dtype in (np.float16, np.float32)]


def _abilities(case: RetrieverCase, *, needs_remove: bool = False) -> tuple[bool, bool]:
    """Return whether keys can be added and removed; skip a rule where nothing of it applies."""
    capabilities = case.new().capabilities
    if not (capabilities.remove or (capabilities.add and not needs_remove)):
        raise unittest.SkipTest("a rule about changes, which the capabilities do not declare")
    return capabilities.add, capabilities.remove
