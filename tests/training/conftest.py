"""Runs of tiny jobs, and ways to break into them."""

import lightning.pytorch as pl
import pytest

from retroflow.training import fit as fit_module
from retroflow.training.fit import fit
from tests.training.jobs import tiny_job, tiny_recipe


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Fit tiny jobs into a folder of their own: run(folder name, resume=..., **trainer options)."""

    def go(name="runs", *, resume=None, **options):
        monkeypatch.setattr(fit_module, "make_job", lambda recipe: tiny_job(tmp_path / name, **options))
        return fit(tiny_recipe(), resume=resume)

    return go


class StopAfter(pl.Callback):
    """Does something at the end of a step, before the other callbacks see it."""

    def __init__(self, step, act):
        self.step, self.act = step, act

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            self.act()


@pytest.fixture
def interfere(monkeypatch):
    """Run `act` when training is at `step`."""

    def install(step, act):
        original = fit_module.make_trainer

        def make(job, start, callbacks, ranks):
            return original(job, start, [StopAfter(step, act), *callbacks], ranks)

        monkeypatch.setattr(fit_module, "make_trainer", make)
        return lambda: monkeypatch.setattr(fit_module, "make_trainer", original)

    return install
