"""A run of six steps, made once, and a way to type commands."""

from pathlib import Path

import pytest

from retroflow.cli.main import run
from retroflow.testing.tiny_corpus import write_tiny_corpus

RECIPE = """recipe_version: 1
corpus: {{name: jsonl, path: {corpus}, valid_share: 0.3}}
embedder: {{name: lexical, dimension: 32}}
retriever: {{name: exact}}
neighbours: {{k: 2}}
data: {{vocabulary_size: 300, chunk_length: 8, sequence_chunks: 4, artifacts_folder: {artifacts}}}
model: {{name: retro, width: 16, num_layers: 2, num_heads: 2, head_width: 8, cca_layers: [2], encoder_width: 8,
  encoder_layers: 1, encoder_heads: 1}}
optimizer: {{learning_rate: 0.01, warmup_steps: 2}}
trainer: {{max_steps: 6, batch_size: 2, device: cpu, precision: fp32, checkpoint_every: 3, validation_batches: 1,
  runs_folder: {runs}}}
"""


def write_recipe(folder: Path, name: str, *, seed: int = 0) -> Path:
    (folder / name).mkdir(parents=True)
    corpus = write_tiny_corpus(folder / name, 12, seed=seed)
    recipe = folder / f"{name}.yaml"
    recipe.write_text(RECIPE.format(corpus=corpus, artifacts=folder / name / "artifacts", runs=folder / "runs"))
    return recipe


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder; to be copied by who changes it."""
    folder = tmp_path_factory.mktemp("generate")
    assert run(["fit", "--recipe", str(write_recipe(folder, "tiny"))]) == 0
    return folder / "runs" / "tiny" / "0001"


@pytest.fixture
def retroflow(capfd: pytest.CaptureFixture[str]):
    """Run a command line; returns exit code, stdout and stderr."""

    def go(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run([str(word) for word in words])
        return code, *capfd.readouterr()

    return go
