"""What is particular to faiss: factory strings, the choice by size, per-call options, threads."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from retroflow.errors import UsageError
from retroflow.protocols import Retriever
from retroflow.retrieval.exact import ExactBuild, ExactRetriever
from retroflow.retrieval.keys import Keys
from retroflow.testing import RetrieverContract
from retroflow.testing.clustered import clustered_vectors
from retroflow.testing.retriever_rules import changes
from retroflow.testing.retriever_rules.case import RetrieverCase

faiss = pytest.importorskip("faiss")
ours = pytest.importorskip("retroflow.retrieval.faiss")

VECTORS = clustered_vectors(3_000, 32)
QUERIES = clustered_vectors(3_100, 32)[3_000:]


def made(factory: str = "auto", metric: str = "l2", **search: object) -> "ours.FaissRetriever":
    return ours.FaissRetriever(build=ours.FaissBuild(factory=factory, metric=metric), search=ours.FaissSearch(**search))


def recall(given: np.ndarray, metric: str = "l2", k: int = 5) -> float:
    exact = ExactRetriever(build=ExactBuild(metric=metric))
    exact.build(Keys(VECTORS))
    expected = exact.search(Keys(QUERIES), k).ids
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(given, expected, strict=True)]))


@pytest.mark.parametrize("metric", ["l2", "inner_product"])
@pytest.mark.parametrize(
    "factory",
    [
        "auto",
        "IVF32,SQfp16",
        "HNSW16",
        "IVF32,PQ16x4fs,RFlat",
        "IVF32_HNSW32,PQ16x4fs,Refine(SQfp16)",
        "L2norm,IVF32,Flat",
    ],
)
def test_any_factory_string_works_and_takes_the_search_options(factory: str, metric: str, tmp_path: Path) -> None:
    retriever = made(factory, metric, nprobe=32, ef_search=100, refine_candidates=200)
    retriever.build(Keys(VECTORS))
    ids = retriever.search(Keys(QUERIES), 5).ids
    assert recall(ids, metric) >= 0.95
    retriever.save(tmp_path)
    opened = made(factory, metric, nprobe=32, ef_search=100, refine_candidates=200)
    opened.load(tmp_path)
    assert np.array_equal(opened.search(Keys(QUERIES), 5).ids, ids)


def test_search_options_are_per_call_and_not_state_of_the_index() -> None:
    narrow = made("IVF64,Flat", nprobe=1)
    narrow.build(Keys(VECTORS))
    wide = made("IVF64,Flat", nprobe=64)
    wide._use(narrow._index, None, np.empty(0, np.int64))
    before = recall(narrow.search(Keys(QUERIES), 5).ids)
    assert recall(wide.search(Keys(QUERIES), 5).ids) == 1.0 > before
    assert recall(narrow.search(Keys(QUERIES), 5).ids) == before


def test_float16_sources_are_kept_exactly_by_the_default_lists() -> None:
    half = VECTORS.astype(np.float16)
    retriever = made("IVF16,SQfp16", nprobe=16)
    retriever.build(Keys(half))
    ids, scores = retriever.search(Keys(half[:50].astype(np.float32)), 1)
    assert np.array_equal(ids[:, 0], np.arange(50)) and (scores == 0.0).all()


@pytest.mark.parametrize(
    ("count", "factory"),
    [
        (1, "Flat"),
        (9_999, "Flat"),
        (40_000, "IVF1024,SQfp16"),
        (400_000, "IVF2048,SQfp16"),
        (5_000_000, "IVF16384_HNSW32,PQ192x4fs,Refine(SQfp16)"),
        (100_000_000, "IVF65536_HNSW32,PQ192x4fs,Refine(SQfp16)"),
        (2_000_000_000, "IVF131072_HNSW32,PQ192x4fs,Refine(SQfp16)"),
    ],
)
def test_auto_chooses_by_the_number_of_vectors(count: int, factory: str) -> None:
    assert ours.auto_factory(count, 384)[0] == factory
    assert ours.auto_factory(count, 383)[0] == re.sub("PQ.*", "SQfp16", factory)


def test_the_choice_is_explained_beside_the_index_and_named_by_the_fingerprint(tmp_path: Path) -> None:
    retriever = made()
    retriever.build(Keys(VECTORS))
    retriever.save(tmp_path)
    assert json.loads((tmp_path / "faiss.json").read_text())["explanation"].startswith("Flat: 3000 vectors are few")
    assert retriever.fingerprint()["auto_rule"] == ours.AUTO_RULE_VERSION
    assert "auto_rule" not in made("Flat").fingerprint()


@pytest.mark.parametrize("factory", ["nonsense", "IVF,", "PQ7"])
def test_a_bad_factory_string_is_an_error_of_the_recipe(factory: str) -> None:
    with pytest.raises(UsageError, match=f'retriever.build.factory.*"{factory}"'):
        made(factory).build(Keys(VECTORS))


@pytest.mark.parametrize(
    ("factory", "count", "message"),
    [
        ("PQ7", None, "faiss makes no such index for vectors of width 16: .*multiple of the number of subquantizers"),
        ("Flat,XYZ", None, "faiss makes no such index for vectors of width 16: could not parse index string Flat,XYZ"),
        ("OPQ4,IVF64_HNSW8,SQ8", 63, "which has 64 lists, more than the 63 vectors"),
    ],
)
def test_what_cannot_be_built_is_refused_before_there_are_vectors(
    factory: str, count: int | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        made(factory).check_vectors(count, 16)


@pytest.mark.parametrize("factory", ["auto", "Flat", "IVF64,SQfp16", "OPQ4,IVF64_HNSW8,SQ8", "HNSW8", "PCA8,Flat"])
def test_what_can_be_built_is_not_refused(factory: str) -> None:
    made(factory).check_vectors(None, 16)
    made(factory).check_vectors(64, 16)


def test_a_word_that_no_factory_string_has_is_refused_without_faiss() -> None:
    with pytest.raises(UsageError, match=r'^retriever.build.factory is "XYZ"; allowed: "auto", or a factory string'):
        ours.FaissBuild(factory="XYZ")
    for factory in ("HNSW0", "IVF0,Flat", "PQ8x0"):  # the first ends the process within faiss
        with pytest.raises(UsageError, match="with numbers of at least 1"):
            ours.FaissBuild(factory=factory)
    ours.FaissBuild(factory="IVF100_HNSW20,PQ10x4fs,Refine(SQfp16)")


def test_too_few_vectors_to_train_on_is_an_error_of_the_recipe() -> None:
    with pytest.raises(UsageError, match='"IVF64,Flat" cannot be trained on 10 vectors'):
        made("IVF64,Flat").build(Keys(VECTORS[:10]))


def test_the_training_sample_is_spread_over_the_source_and_read_in_blocks() -> None:
    rows = np.arange(50_000, dtype=np.float32)[:, None]
    sample = ours.training_sample(rows, 1_000)[:, 0]
    assert len(sample) == len(np.unique(sample)) == 1_000
    assert sample[0] == 0 and sample[-1] >= 49_900 and np.diff(sample).max() <= 51


def test_threads_are_set_for_the_call_and_put_back() -> None:
    before = faiss.omp_get_max_threads()
    with ours.threads(1):
        assert faiss.omp_get_max_threads() == 1
    assert faiss.omp_get_max_threads() == before


def test_reading_sets_the_allocation_limit_and_puts_it_back(tmp_path: Path) -> None:
    before = faiss.get_deserialization_vector_byte_limit()
    with ours.allocation_limit(5_000_000):
        assert faiss.get_deserialization_vector_byte_limit() == 5_000_000
    assert faiss.get_deserialization_vector_byte_limit() == before


@pytest.mark.skipif(hasattr(faiss, "StandardGpuResources"), reason="has faiss-gpu")
def test_cuda_without_faiss_gpu_is_an_error_of_the_recipe() -> None:
    with pytest.raises(UsageError, match=r'retriever\.search\.device is "cuda", but this faiss has no GPU'):
        made(device="cuda")
    trained_there = ours.FaissRetriever(build=ours.FaissBuild(factory="IVF16,Flat", device="cuda"))
    with pytest.raises(UsageError, match=r'retriever\.build\.device is "cuda"'):
        trained_there.build(Keys(VECTORS))


@pytest.mark.parametrize(
    ("factory", "adds", "removes"),
    [
        ("auto", True, True),
        ("Flat", True, True),
        ("SQ8", True, True),
        ("IVF16,PQ8x4", True, True),
        ("IVF16_HNSW8,PQ16x4fs,Refine(SQfp16)", True, True),
        ("PCA16,IVF16,Flat", True, True),
        ("HNSW16", True, True),
        ("PQ8x4", True, False),
        ("LSH", True, False),
        ("IVF4,RQ1x4", True, False),
        ("NSG16", False, False),
    ],
)
def test_an_index_declares_whether_it_can_be_changed(factory: str, adds: bool, removes: bool, tmp_path: Path) -> None:
    retriever = made(factory)
    assert (retriever.capabilities.add, retriever.capabilities.remove) == (adds, removes)
    retriever.build(Keys(VECTORS[:600]))
    if removes:
        retriever.remove(np.arange(300))
    retriever.save(tmp_path)
    retriever = made(factory)
    retriever.load(tmp_path)
    if adds:
        retriever.add(Keys(VECTORS[600:800]))
        ids = retriever.search(Keys(VECTORS[:800]), 5).ids
        assert ids.max() >= 700 and (not removes or not np.isin(ids, np.arange(300)).any())


def test_lists_are_still_on_disk_after_a_removal_and_in_memory_after_an_addition(tmp_path: Path) -> None:
    retriever = made("IVF16,SQfp16")
    retriever.build(Keys(VECTORS[:2_000]))
    retriever.remove(np.arange(10))
    assert retriever._unwritten is not None
    (tmp_path / "first").mkdir()
    retriever.save(tmp_path / "first")
    retriever.load(tmp_path / "first")
    retriever.remove(np.arange(10, 20))
    (tmp_path / "second").mkdir()
    retriever.save(tmp_path / "second")
    assert (tmp_path / "first" / "index.faiss").read_bytes() == (tmp_path / "second" / "index.faiss").read_bytes()
    retriever.load(tmp_path / "second")
    assert retriever._mapped is not None
    assert retriever.search(Keys(VECTORS[:100]), 3).ids.min() == 20
    retriever.add(Keys(VECTORS[2_000:]))
    assert retriever._mapped is None and np.isin(retriever.search(Keys(QUERIES), 5).ids, np.arange(20, 3_000)).all()


@pytest.mark.parametrize(
    ("factory", "metric"),
    [
        ("IVF32,SQfp16", "l2"),
        ("IVF32,Flat", "inner_product"),
        ("HNSW16", "l2"),
        ("IVF16,PQ16x4fs,Refine(SQfp16)", "l2"),
    ],
)
def test_an_approximate_index_that_was_changed_answers_as_a_new_one(factory: str, metric: str, tmp_path: Path) -> None:
    class Suite(RetrieverContract):
        score_tolerance = 5e-3  # the narrow fast codes of what was not refined

        def make_retriever(self) -> Retriever:
            return made(factory, metric, nprobe=12)

    case = RetrieverCase(Suite(), tmp_path)
    changes.a_changed_index_answers_as_a_new_one(case)
    changes.the_last_key_and_all_of_them_can_be_removed(case)
