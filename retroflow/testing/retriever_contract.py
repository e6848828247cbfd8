"""RetrieverContract: what every retriever owes, as a pytest class to subclass.

    class TestMyRetriever(RetrieverContract):
        def make_retriever(self):
            return MyRetriever()

runs all of it. Tests of what `capabilities` do not promise skip themselves; every failure says which rule was broken.
Nothing here looks inside a retriever: it goes through CheckedRetriever, as retroflow does.
"""

import inspect
import json
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from retroflow.errors import InvalidVectorsError, RecipeError, RetrieverError
from retroflow.protocols import Float32Array, Neighbours, Retriever
from retroflow.retrieval.checked import CheckedRetriever
from retroflow.testing.clustered import clustered_vectors
from retroflow.testing.retriever_answers import all_true_scores, check_equal, joined, true_scores
from retroflow.testing.retriever_inputs import BAD_K, BAD_QUERIES, LAYOUTS, REFUSALS, SliceOnly
from retroflow.testing.retriever_process import Job, run


class RetrieverContract:
    """Subclass it in a test module, name the class Test..., and override `make_retriever`.

    Attributes:
        recall_floor: least recall@10 against exact search on clustered vectors (and recall@2 on `embeddings`).
        score_tolerance: largest difference between a score and the true one, for unit vectors.
        dimension: width D of the vectors of the tests.
        num_vectors: N; enough for an approximate index to be one.
    """

    recall_floor: ClassVar[float] = 0.95
    score_tolerance: ClassVar[float] = 1e-3
    dimension: ClassVar[int] = 32
    num_vectors: ClassVar[int] = 2_000

    def make_retriever(self) -> Retriever:
        """Return a new retriever, always with the same options. Called in other processes too: use no fixture."""
        raise NotImplementedError("override make_retriever() in your subclass of RetrieverContract")

    def make_retriever_searching_differently(self) -> Retriever | None:
        """Return one with the same build options and other search options, or None if there are no search options."""
        return None

    def embeddings(self) -> Float32Array | None:
        """Return real embeddings float32 [N, D] to measure recall on, or None."""
        return None

    @pytest.fixture(scope="class")
    @classmethod
    def vectors(cls) -> Float32Array:
        return clustered_vectors(cls.num_vectors, cls.dimension)

    @pytest.fixture(scope="class")
    @classmethod
    def queries(cls) -> Float32Array:
        return clustered_vectors(cls.num_vectors + 50, cls.dimension)[cls.num_vectors :]

    @pytest.fixture(scope="class")
    @classmethod
    def built(cls, vectors: Float32Array) -> CheckedRetriever:
        return cls()._built(vectors)

    def test_implements_the_protocol_and_declares_its_capabilities(self) -> None:
        retriever = self.make_retriever()
        assert isinstance(retriever, Retriever), "it lacks a member of retroflow.protocols.Retriever"
        CheckedRetriever(retriever, owner=type(retriever).__name__)
        assert retriever.capabilities.metric in ("l2", "inner_product"), "metric is 'l2' or 'inner_product'"

    def test_options_are_keyword_only_so_that_a_recipe_can_name_them(self) -> None:
        parameters = inspect.signature(type(self.make_retriever())).parameters.values()
        wrong = [each.name for each in parameters if each.kind is not inspect.Parameter.KEYWORD_ONLY]
        assert not wrong, f"__init__ must take keyword-only options (put a * before {wrong})"

    def test_fingerprint_is_json_the_same_for_equal_options_and_not_changed_by_building(
        self, vectors: Float32Array
    ) -> None:
        retriever = self.make_retriever()
        before = json.dumps(retriever.fingerprint(), sort_keys=True, allow_nan=False)
        again = json.dumps(self.make_retriever().fingerprint(), sort_keys=True)
        assert before == again, "two retrievers with equal options must have equal fingerprints"
        retriever.build(vectors)
        after = json.dumps(retriever.fingerprint(), sort_keys=True)
        assert before == after, "fingerprint() is asked before build(), and must not change by it"

    def test_fingerprint_ignores_search_options(self) -> None:
        other = self.make_retriever_searching_differently()
        if other is None:
            pytest.skip("make_retriever_searching_differently() returns None")
        assert other.fingerprint() == self.make_retriever().fingerprint(), (
            "search options do not change the index: leave them out of fingerprint(), or every change rebuilds it"
        )

    def test_recall_on_clustered_vectors(self, vectors: Float32Array, queries: Float32Array) -> None:
        self._check_recall(vectors, queries, 10)

    def test_recall_on_real_embeddings(self) -> None:
        embeddings = self.embeddings()
        if embeddings is None:
            pytest.skip("embeddings() returns None")
        self._check_recall(embeddings, embeddings[:: max(1, len(embeddings) // 500)], 2)

    def test_scores_are_what_the_metric_says(
        self, built: CheckedRetriever, vectors: Float32Array, queries: Float32Array
    ) -> None:
        ids, scores = built.search(queries, 5)
        valid = ids >= 0
        rows = np.nonzero(valid)[0]
        expected = true_scores(built.capabilities.metric, queries[rows], vectors[ids[valid]])
        worst = float(np.abs(scores[valid] - expected).max())
        assert worst <= self.score_tolerance, (
            f"a score is {worst:.2g} away from the true one; l2 is minus the SQUARED distance, inner_product the dot "
            "product itself (raise score_tolerance if the index stores vectors lossily)"
        )
        if built.capabilities.metric == "l2":
            assert scores[valid].max() <= 0.0, "minus a squared distance is never positive: clip rounding at 0"

    def test_a_stored_vector_finds_itself_first(self, built: CheckedRetriever, vectors: Float32Array) -> None:
        rows = np.arange(0, self.num_vectors, 20)
        first = built.search(vectors[rows], 1).ids[:, 0]
        share = float(np.mean(first == rows))
        assert share >= self.recall_floor, f"only {share:.2f} find themselves; is row i given id i?"

    def test_a_batch_answers_as_its_rows_do_one_by_one(self, built: CheckedRetriever, queries: Float32Array) -> None:
        together = built.search(queries, 5)
        alone = [built.search(queries[row : row + 1], 5) for row in range(len(queries))]
        check_equal(together, joined(alone), "the same query alone and in a batch")

    def test_fewer_results_of_a_search_are_the_beginning_of_more(
        self, built: CheckedRetriever, queries: Float32Array
    ) -> None:
        few, many = (
            built.search(queries, 1).scores,
            built.search(queries, 10).scores[:, :1],
        )
        assert np.mean(few <= many + 1e-5) == 1.0, "asking for more neighbours must not lose the best"

    def test_duplicate_vectors_are_different_neighbours(self) -> None:
        vectors = np.repeat(clustered_vectors(300, self.dimension), 4, axis=0)
        ids, _ = self._built(vectors).search(vectors[::40], 4)
        found = np.mean(np.sort(ids, axis=1) == (np.arange(0, len(vectors), 40)[:, None] // 4 * 4 + np.arange(4)))
        assert found >= self.recall_floor, f"only {found:.2f} of four equal vectors are found by their twin"

    # Too few, none, and too many.

    @pytest.mark.parametrize("count", [1, 2, 5])
    def test_pads_with_minus_one_when_fewer_than_k_exist(self, count: int) -> None:
        vectors = clustered_vectors(count, self.dimension)
        ids, _ = self._built_or_skip(vectors).search(vectors, 9)
        # CheckedRetriever has checked order, -inf and range; a padding id of 0 would be a duplicate or a false hit.
        assert (ids[:, count:] == -1).all(), f"only {count} vectors exist, so at most {count} ids per row"
        assert (ids[:, 0] == np.arange(count)).all(), "each of so few vectors must find itself"

    def test_k_above_the_number_of_vectors(self, built: CheckedRetriever, queries: Float32Array) -> None:
        ids, _ = built.search(queries[:3], self.num_vectors + 100)
        assert ids.shape == (3, self.num_vectors + 100) and (ids[:, self.num_vectors :] == -1).all()

    def test_an_empty_index_answers_with_padding_and_can_be_saved(self, tmp_path: Path) -> None:
        empty = self._built(np.empty((0, self.dimension), np.float32))
        empty.save(tmp_path / "index")
        opened = self._checked()
        opened.load(tmp_path / "index")
        ids, scores = opened.search(np.ones((2, self.dimension), np.float32), 3)
        assert (ids == -1).all() and (scores == -np.inf).all() and ids.shape == (2, 3)

    def test_no_queries_give_no_rows(self, built: CheckedRetriever) -> None:
        ids, scores = built.search(np.empty((0, self.dimension), np.float32), 4)
        assert ids.shape == scores.shape == (0, 4)

    # What it is given.

    @pytest.mark.parametrize("case", BAD_QUERIES)
    def test_refuses_bad_queries_and_goes_on(self, built: CheckedRetriever, queries: Float32Array, case: str) -> None:
        with pytest.raises(InvalidVectorsError):
            built.search(BAD_QUERIES[case](self.dimension), 3)
        assert built.search(queries[:1], 3).ids.shape == (1, 3)

    @pytest.mark.parametrize("k", BAD_K, ids=repr)
    def test_refuses_a_k_that_is_no_positive_integer(
        self, built: CheckedRetriever, queries: Float32Array, k: Any
    ) -> None:
        with pytest.raises(InvalidVectorsError, match="k must be"):
            built.search(queries, k)

    def test_takes_a_numpy_integer_as_k(self, built: CheckedRetriever, queries: Float32Array) -> None:
        check_equal(
            built.search(queries, np.int64(3)),
            built.search(queries, 3),
            "k as int64 and as int",
        )

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_takes_any_float_dtype_and_memory_layout(
        self, built: CheckedRetriever, queries: Float32Array, layout: str
    ) -> None:
        queries = queries.astype(np.float16).astype(np.float32)
        check_equal(
            built.search(LAYOUTS[layout](queries), 3),
            built.search(queries, 3),
            f"queries as {layout}",
        )

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
    def test_takes_torch_tensors(self, vectors: Float32Array, dtype: str) -> None:
        torch = pytest.importorskip("torch")
        tensor = torch.from_numpy(vectors).to(getattr(torch, dtype))
        same = tensor.float().numpy()
        given, expected = (
            self._built(tensor).search(tensor[:20], 3),
            self._built(same).search(same[:20], 3),
        )
        if not self.make_retriever().capabilities.deterministic:
            assert given.ids.shape == expected.ids.shape
            return
        check_equal(given, expected, f"torch {dtype} and the same as numpy float32")

    def test_builds_from_a_source_that_can_only_be_sliced(
        self, built: CheckedRetriever, vectors: Float32Array, queries: Float32Array
    ) -> None:
        sliced = self._built(SliceOnly(vectors)).search(queries, 3)
        assert (sliced.ids[:, 0] >= 0).all(), "build() must read source[start:stop] over the whole source"
        if built.capabilities.deterministic:
            check_equal(
                sliced,
                built.search(queries, 3),
                "built from a sliced source and from an array",
            )

    def test_leaves_vectors_and_queries_as_they_were(self, vectors: Float32Array, queries: Float32Array) -> None:
        vectors_before, queries_before = vectors.copy(), queries.copy()
        self._built(vectors).search(queries, 3)
        assert np.array_equal(vectors, vectors_before), "build() changed the vectors it was given"
        assert np.array_equal(queries, queries_before), "search() changed the queries it was given"

    def test_building_again_replaces_the_index(self, vectors: Float32Array) -> None:
        retriever = self._built(vectors[:100])
        retriever.build(vectors[:40])
        ids, _ = retriever.search(vectors[:40], 60)
        assert len(retriever) == 40 and ids.max() < 40, "build() must replace what was there, not add to it"

    # Where it is kept.

    def test_save_move_load_in_a_new_process(
        self,
        built: CheckedRetriever,
        vectors: Float32Array,
        queries: Float32Array,
        tmp_path: Path,
    ) -> None:
        built.save(tmp_path / "elsewhere" / "index")
        shutil.move(tmp_path / "elsewhere" / "index", tmp_path / "index")
        outcome = self._run("open", tmp_path, vectors, queries)
        assert outcome.get("open") == "ok", f"loading in a new process: {outcome}"
        answer = np.load(tmp_path / "answer.npz")
        check_equal(
            Neighbours(answer["ids"], answer["scores"]),
            built.search(queries, 5),
            "saved and loaded",
        )

    def test_saved_files_name_no_absolute_path(self, built: CheckedRetriever, tmp_path: Path) -> None:
        built.save(tmp_path / "index")
        names = [
            file.name
            for file in (tmp_path / "index").rglob("*")
            if file.is_file() and os.fsencode(tmp_path) in file.read_bytes()
        ]
        assert not names, f"{names} hold the absolute path they were saved to; a moved index could not be opened"

    def test_a_loaded_index_can_be_saved_again(
        self, built: CheckedRetriever, queries: Float32Array, tmp_path: Path
    ) -> None:
        built.save(tmp_path / "first")
        second, third = self._checked(), self._checked()
        second.load(tmp_path / "first")
        second.save(tmp_path / "second")
        third.load(tmp_path / "second")
        check_equal(
            third.search(queries, 5),
            built.search(queries, 5),
            "saved, loaded, saved and loaded",
        )

    def test_damaged_files_are_an_error_and_never_the_end_of_the_process(
        self,
        built: CheckedRetriever,
        vectors: Float32Array,
        queries: Float32Array,
        tmp_path: Path,
    ) -> None:
        built.save(tmp_path / "index")
        outcomes = self._run("damage", tmp_path, vectors, queries)
        assert outcomes, "no file was saved"
        for case, outcome in outcomes.items():
            assert outcome == "DamagedDataError", f"file {case}: {outcome}; load() must raise DamagedDataError"

    # Where it runs.

    def test_bad_vectors_are_refused_before_native_code_can_die_of_them(
        self, vectors: Float32Array, queries: Float32Array, tmp_path: Path
    ) -> None:
        outcomes = self._run("bad_vectors", tmp_path, vectors, queries)
        assert outcomes == REFUSALS, "each in a process of its own class of damage"

    def test_two_builds_are_equal_if_declared_deterministic(
        self, built: CheckedRetriever, vectors: Float32Array, queries: Float32Array
    ) -> None:
        if not built.capabilities.deterministic:
            pytest.skip("capabilities.deterministic is False")
        first, second = (
            built.search(queries, 10),
            self._built(vectors).search(queries, 10),
        )
        assert np.array_equal(first.ids, second.ids) and np.array_equal(first.scores, second.scores), (
            "two builds of the same vectors answer differently: fix a seed and one thread, or declare "
            "deterministic=False"
        )

    def test_threads_can_search_at_once(self, built: CheckedRetriever, queries: Float32Array) -> None:
        depths = [1 + number % 5 for number in range(8)]
        expected = [built.search(queries, depth) for depth in depths]
        answers: list[list[Neighbours]] = [[] for _ in depths]

        def search(number: int) -> None:
            for _ in range(5):
                answers[number].append(built.search(queries, depths[number]))

        threads = [threading.Thread(target=search, args=(number,)) for number in range(len(depths))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number, repeated in enumerate(answers):
            assert len(repeated) == 5, "a search in a thread raised"
            for answer in repeated:
                check_equal(
                    answer,
                    expected[number],
                    "alone and beside other threads (no option may be shared state)",
                )

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
    def test_a_forked_child_searches_or_is_told_not_to(
        self, vectors: Float32Array, queries: Float32Array, tmp_path: Path
    ) -> None:
        expected = "ok" if self.make_retriever().capabilities.fork_safe else RetrieverError.__name__
        outcome = self._run("fork", tmp_path, vectors, queries)
        assert outcome.get("child") == expected, (
            f"in a forked child: {outcome or 'no answer'}; a library that does not survive it: fork_safe=False"
        )

    def _checked(self) -> CheckedRetriever:
        return CheckedRetriever(self.make_retriever(), owner="the retriever under test")

    def _built(self, vectors: Any) -> CheckedRetriever:
        retriever = self._checked()
        retriever.build(vectors)
        return retriever

    def _built_or_skip(self, vectors: Any) -> CheckedRetriever:
        try:
            return self._built(vectors)
        except RecipeError as error:
            pytest.skip(f"refuses to build over {len(vectors)} vectors: {error}")

    def _check_recall(self, vectors: Float32Array, queries: Float32Array, k: int) -> None:
        retriever = self._built(vectors)
        ids, _ = retriever.search(queries, k)
        scores = all_true_scores(retriever.capabilities.metric, queries, vectors)
        worst_of_best = np.sort(scores, axis=1)[:, -k]
        found = np.take_along_axis(scores, np.maximum(ids, 0), axis=1) >= worst_of_best[:, None] - 1e-5
        recall = float(np.mean(found & (ids >= 0)))
        floor = 1.0 if retriever.capabilities.exact else self.recall_floor
        assert recall >= floor, f"recall@{k} is {recall:.3f}, below {floor}" + (
            " (capabilities.exact promises all)" if floor == 1.0 else "; raise the search effort of the defaults"
        )

    def _run(self, action: str, folder: Path, vectors: Float32Array, queries: Float32Array) -> dict[str, str]:
        np.save(folder / "vectors.npy", vectors)
        np.save(folder / "queries.npy", queries)
        test = type(self)
        job = Job(
            action=action,
            module=test.__module__,
            file=inspect.getfile(test),
            class_name=test.__qualname__,
            path=[os.path.abspath(entry) for entry in sys.path],
            folder=str(folder),
        )
        return run(job)
