"""Runs that several tests compare with are made once."""

import os

import pytest

from tests.distributed.runs import TWO, fit, prepared_folder

EXACT = ("trainer.accumulate=2", "data.num_workers=1")
"""What must not keep a resumed run from being the same: accumulated pieces, data workers, dropout (in the recipe)."""


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return prepared_folder(tmp_path_factory.mktemp("distributed") / "exact")


@pytest.fixture(scope="session")
def unbroken(folder):
    """unbroken("ddp") is the runs folder of a run on two processes that nothing has happened to."""

    def run(strategy):
        name = f"unbroken-{strategy}"
        if not os.path.exists(folder / name):
            ended = fit(folder, *TWO[strategy], *EXACT, f"trainer.runs_folder={name}")
            assert ended.code == 0, ended.errors
        return name

    return run
