"""Recipes whose retriever searches texts, or texts and embeddings, are trained, evaluated and generated with."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from retroflow.cli.main import run
from retroflow.testing.tiny_corpus import write_tiny_corpus

pytest.importorskip("bm25s")

RECIPE = """recipe_version: 1
corpus: {name: jsonl, path: tiny.jsonl, valid_share: 0.3}
retriever: {name: bm25}
neighbours: {k: 2}
data: {vocabulary_size: 280, chunk_length: 16, sequence_chunks: 4, artifacts_folder: artifacts}
model: {name: retro, width: 16, num_layers: 2, num_heads: 2, head_width: 8, cca_layers: [2], encoder_width: 8,
  encoder_layers: 1, encoder_heads: 1}
optimizer: {learning_rate: 0.01, warmup_steps: 2}
trainer: {max_steps: 2, batch_size: 2, device: cpu, precision: fp32, checkpoint_every: 2, validation_batches: 1,
  num_threads: 1, eval_batch_size: 64, runs_folder: runs}
"""


Retroflow = Callable[..., tuple[str, str]]


@pytest.fixture
def retroflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Retroflow:
    """Run a command in a folder with tiny.yaml; returns stdout and stderr."""
    write_tiny_corpus(tmp_path, 8, seed=0)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)

    def run_command(*words: str) -> tuple[str, str]:
        capfd.readouterr()
        assert run(list(words)) == 0, capfd.readouterr()
        return capfd.readouterr()

    return run_command


def test_from_the_recipe_to_generated_text(tmp_path: Path, retroflow: Retroflow) -> None:
    assert "embedder none, retriever bm25" in retroflow("recipe", "check", "--recipe", "tiny.yaml")[0]
    planned = json.loads(retroflow("fit", "--recipe", "tiny.yaml", "--dry-run", "--json")[0])
    assert planned["missing"] == ["chunks", "index", "neighbours"]
    assert any("no embeddings: bm25" in note for note in planned["notes"])
    assert "no embeddings: bm25" in retroflow("fit", "--recipe", "tiny.yaml")[1]
    kinds = sorted(path.name.partition("-")[0] for path in (tmp_path / "artifacts").iterdir() if path.is_dir())
    assert [kind for kind in kinds if not kind.startswith(".")] == ["chunks", "index", "neighbours"]
    report = json.loads(Path("runs/tiny/0001/report.json").read_text())
    evaluated = json.loads(retroflow("evaluate", "runs/tiny/0001", "--json")[0])
    assert evaluated["validation"]["on"]["loss"] == report["validation"]["on"]["loss"]
    words = ("--prompt", "in the", "--max-new-tokens", "4", "--ignore-end-of-text")
    _, shown = retroflow("generate", "runs/tiny/0001", *words, "--show-sources")
    assert "score: the retriever's own, higher is better" in shown
    retroflow("export", "runs/tiny/0001", "exported")
    database = next((tmp_path / "artifacts").glob("index-*"))
    out, _ = retroflow("generate", "exported", "--database", str(database), *words, "--json")
    assert json.loads(out)["retrievals"]


def test_two_retrievers_together_from_the_recipe_to_generated_text(retroflow: Retroflow) -> None:
    words = ["--recipe", "tiny.yaml", "embedder={name: lexical, dimension: 16}", "retriever.dense.name=exact"]
    losses = []
    for number, name in (("0001", "hybrid"), ("0002", "rerank")):
        run_folder = f"runs/tiny/{number}"
        retroflow("prepare", *words, f"retriever.name={name}")
        retroflow("fit", *words, f"retriever.name={name}")
        report = json.loads(Path(run_folder, "report.json").read_text())
        evaluated = json.loads(retroflow("evaluate", run_folder, "--json")[0])
        assert evaluated["validation"]["on"]["loss"] == report["validation"]["on"]["loss"]
        out, _ = retroflow("generate", run_folder, "--prompt", "in the", "--max-new-tokens", "4", "--json")
        assert json.loads(out)["retrievals"]
        losses.append((report["validation"]["on"]["loss"], report["validation"]["off"]["loss"]))
    assert losses[0][0] != losses[1][0]
