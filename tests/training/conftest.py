"""Runs of tiny jobs, and ways to break into them."""

import lightning.pytorch as pl
import pytest

from retroflow.corpus.tokenizer import train_tokenizer
from retroflow.training import fit as fit_module
from retroflow.training.fit import fit
from tests.pretrained.bases import make_base
from tests.training.jobs import tiny_job, tiny_recipe

WORDS = [
    "the",
    "kernel",
    "maps",
    "a",
    "page",
    "of",
    "memory",
    "and",
    "driver",
    "reads",
    "next",
    "block",
    "from",
    "disk",
]


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


@pytest.fixture
def attached(tmp_path):
    """A small base attached to a folder of text, through the front door."""
    (tmp_path / "docs").mkdir()
    for number in range(12):
        words = [WORDS[(number * 7 + i * (1 + number) + i * i) % len(WORDS)] for i in range(120)]
        (tmp_path / "docs" / f"{number}.md").write_text(" ".join(words) + "\n")
    tokenizer = train_tokenizer([" ".join(WORDS)], 270)
    make_base("llama", vocab_size=300).save_pretrained(tmp_path / "base")
    tokenizer.save(tmp_path / "base")
    recipe = tmp_path / "attach.yaml"
    recipe.write_text(
        f"""
recipe_version: 1
corpus: {{name: text, path: {tmp_path}/docs, include: "**/*.md", valid_share: 0.3}}
data: {{chunk_length: 8, sequence_chunks: 4, artifacts_folder: {tmp_path}/artifacts}}
embedder: {{name: lexical, dimension: 16}}
retriever: {{name: exact}}
model: {{name: retrofit, base: {tmp_path}/base, reader: inherit}}
trainer: {{max_steps: 0, device: cpu, precision: fp32, runs_folder: {tmp_path}/runs}}
"""
    )
    return recipe
