"""Settings of every test run, made before torch is imported."""

import os
from collections.abc import Iterator

import pytest

# Tests compute on tiny tensors, where a second thread costs more than it brings: tests/model, tests/training and
# tests/data took 22 s with one thread and 29 s with two on 2 shared cores, 38 s and 72 s when those were busy (2026-11-21).
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Divide the whole suite over processes; files that are named run in this one, which starts at once.

    On 2 cores the suite takes 400 s instead of 630 s (2026-11-27).
    """
    return min(os.cpu_count() or 1, 8) if config.args_source is pytest.Config.ArgsSource.TESTPATHS else 0


@pytest.fixture(scope="session", autouse=True)
def small_pieces_and_blocks() -> Iterator[None]:
    """Make every test's artifacts of many pieces and blocks: it is at the joins that rows can be misplaced."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retroflow.pipeline.chunks.BLOCK_TEXT_BYTES", 3_000)
        patch.setattr("retroflow.pipeline.embeddings.ROWS_PER_BLOCK", 70)
        patch.setattr("retroflow.pipeline.neighbours.ROWS_PER_BLOCK", 50)
        yield
