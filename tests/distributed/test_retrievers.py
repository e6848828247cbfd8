"""Any retriever with any strategy: the neighbour table is all that a rank needs."""

import pytest

from tests.distributed.runs import TWO, fit, metrics, prepared_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("retriever", ["exact", "faiss", "scann", "hnsw", "bm25"])
def test_each_retriever_under_ddp_and_fsdp(retriever, tmp_path):
    pytest.importorskip({"exact": "torch", "hnsw": "hnswlib", "bm25": "bm25s"}.get(retriever, retriever))
    folder = prepared_folder(tmp_path / "run", retriever)
    losses = []
    for strategy, words in TWO.items():
        ended = fit(folder, *words, "trainer.max_steps=4", "trainer.log_every=1", f"trainer.runs_folder={strategy}")
        assert ended.code == 0 and not ended.leftovers(), ended.errors
        assert "neighbours: re-used" in ended.errors and ended.output.count("report: ") == 1
        losses.append([line["train/loss"] for line in metrics(folder, strategy)])
    assert len(losses[0]) == 4 and losses[0] == pytest.approx(losses[1], abs=1e-6)
