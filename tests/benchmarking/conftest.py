"""Benchmarks in this process: another one takes seconds to start, and one test starts one."""

import pytest

from retroflow.benchmarking import worker


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> list[str]:
    """Replace the processes of a benchmark; gives what was done."""
    done: list[str] = []

    def run(job, *, threads: int, doing: str):
        done.append(doing)
        return worker.do(job)

    monkeypatch.setattr(worker, "run", run)
    return done
