"""Memory of prepare does not follow the corpus: peaks of fresh processes over corpora of one and of ten sizes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline.recipes import write_corpus

STATUS = Path("/proc/self/status")

# Few chunks make a small index, trained on a fixed sample; many the one that a recipe gets by default.
PREPARE = f"""
import sys
from pathlib import Path
from retroflow.pipeline import chunks, embeddings
from retroflow.pipeline.prepare import prepare
from tests.pipeline.recipes import small_recipe
retriever = {{"name": "faiss"}}
if sys.argv[2] == "small blocks":  # so that one of the smaller corpus is full
    chunks.BLOCK_TEXT_BYTES, embeddings.ROWS_PER_BLOCK = 100_000, 512
    retriever |= {{"build": {{"factory": "IVF16,SQ8", "train_sample": 1024}}, "search": {{"nprobe": 8}}}}
prepare(small_recipe(Path(sys.argv[1]), retriever=retriever, embedder={{"name": "lexical", "dimension": 256}},
                     data={{"vocabulary_size": 500, "chunk_length": 64}}))
print(next(line.split()[1] for line in open("{STATUS}") if line.startswith("VmHWM")))
"""


def peak(folder: Path, num_documents: int, blocks: str) -> int:
    """Peak resident kB of preparing so many documents in a fresh process."""
    folder.mkdir()
    write_corpus(folder / "corpus.jsonl", num_documents, words=1500)
    run = subprocess.run(
        [sys.executable, "-c", PREPARE, str(folder), blocks],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
    )
    assert run.returncode == 0, run.stderr
    return int(run.stdout.split()[-1])


@pytest.mark.skipif(not STATUS.exists(), reason="the peak of a process is read from /proc")
@pytest.mark.parametrize(
    ("documents", "blocks"),
    [(40, "small blocks"), pytest.param(500, "real blocks", marks=[pytest.mark.slow, pytest.mark.timeout(1200)])],
)
def test_ten_times_the_corpus_costs_less_than_a_third_more_memory(tmp_path: Path, documents: int, blocks: str) -> None:
    small, large = peak(tmp_path / "small", documents, blocks), peak(tmp_path / "large", 10 * documents, blocks)
    print(f"peak {small / 1024:.0f} MB and {large / 1024:.0f} MB")
    assert large < 1.3 * small
