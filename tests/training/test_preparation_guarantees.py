"""What training is given, from text on: no text of a document beside itself, whatever the run's other options are."""

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest

from retroflow.components import recipe_schema
from retroflow.corpus.tokenizer import load_tokenizer
from retroflow.errors import CorpusError
from retroflow.pipeline.prepare import prepare
from retroflow.pipeline.splits import open_splits
from retroflow.recipe import load
from retroflow.training.job import make_job

NUM_DOCUMENTS = 30
RECIPE = """
recipe_version: 1
seed: 1
corpus: {{name: jsonl, path: {corpus}, valid_share: 0.2}}
embedder: {{name: lexical, dimension: 32}}
retriever: {{name: exact}}
neighbours: {{k: 3}}
model: {{name: retro, width: 16, num_layers: 1, num_heads: 1, cca_layers: [1], encoder_width: 16, encoder_heads: 1}}
data: {{vocabulary_size: 700, chunk_length: 8, sequence_chunks: 5, artifacts_folder: {artifacts}}}
"""


def marked_corpus(path):
    """Documents that say their number after every other word: text of any document can be told from all others'."""
    draw = random.Random(0)
    words = [f"{a}{b}" for a in "bdfg" for b in ("an", "el", "im", "or", "ut")]
    with path.open("w", encoding="utf-8") as stream:
        for number in range(NUM_DOCUMENTS):
            text = " ".join(f"{draw.choice(words)} q{number:02d}z" for _ in range(draw.randint(3, 60)))
            stream.write(json.dumps({"id": str(number), "text": text}) + "\n")


def documents_in(text):
    return set(re.findall(r"q\d\dz", text))


def prepared_with(folder: Path, artifacts: str, overrides=()):
    corpus, recipe = folder / "corpus.jsonl", folder / "recipe.yaml"
    if not corpus.exists():
        marked_corpus(corpus)
    recipe.write_text(RECIPE.format(corpus=corpus, artifacts=folder / artifacts), encoding="utf-8")
    return prepare(load(recipe, list(overrides), schema=recipe_schema()), report=lambda stage: None)


def test_chunks_too_few_for_a_sequence_are_refused_before_they_are_embedded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    marked_corpus(tmp_path / "corpus.jsonl")
    (tmp_path / "r.yaml").write_text(RECIPE.format(corpus="corpus.jsonl", artifacts="artifacts"), encoding="utf-8")
    with pytest.raises(CorpusError, match=r"data.sequence_chunks is 1000, but the training split has \d+ chunks"):
        make_job(load(Path("r.yaml"), ["data.sequence_chunks=1000", "trainer.device=cpu"], schema=recipe_schema()))
    assert [path.name.partition("-")[0] for path in (tmp_path / "artifacts").glob("[!.]*")] == ["chunks"]
    assert not (tmp_path / "runs").exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("marked")


def test_no_retrieved_token_is_of_a_document_in_the_sequence_and_each_neighbour_is_of_one_document(folder):
    prepared = prepared_with(folder, "artifacts")
    tokenizer = load_tokenizer(str(prepared.tokenizer))
    dataset, num_found = open_splits(prepared, sequence_chunks=5).training(retrieval=True), 0
    last = len(dataset.chunks) - 5
    for start in range(0, last, 7):
        batch = dataset.assemble([start], 5)
        own = documents_in(
            tokenizer.decode([*batch.tokens[0].tolist(), *batch.targets[0][batch.targets[0] >= 0].tolist()])
        )
        for retrieved, mask in zip(
            batch.retrieved[0].flatten(0, 1), batch.retrieved_mask[0].flatten(0, 1), strict=True
        ):
            found = documents_in(tokenizer.decode(retrieved[mask].tolist()))
            assert not found & own
            assert len(found) <= 1
            num_found += len(found)
    assert num_found > last  # of some two for each: most are there and say whose they are


@pytest.mark.parametrize(
    "overrides",
    [
        ["seed=2"],
        ["trainer.batch_size=7", "trainer.max_steps=3", "trainer.accumulate=7"],
        ["optimizer.learning_rate=1.0", "optimizer.warmup_steps=9"],
        ["trainer.strategy=ddp", "trainer.devices=4"],
        ["data.sequence_chunks=2", "data.num_workers=3"],
        ["model.width=32", "model.num_layers=2"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_what_is_prepared_does_not_depend_on_how_it_is_trained_with(folder, overrides):
    first = prepared_with(folder, "artifacts")
    again = prepared_with(folder, "artifacts", overrides)
    assert again.built == ()
    assert again.fingerprints == first.fingerprints


def test_prepared_anew_for_another_seed_and_other_ranks_it_has_the_same_bytes(folder, monkeypatch):
    first = prepared_with(folder, "artifacts")
    for name, value in {"WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    random.seed(5)
    np.random.seed(5)
    again = prepared_with(
        folder,
        "others",
        ["seed=5", "trainer.batch_size=3", "trainer.accumulate=3", "trainer.devices=4", "trainer.strategy=ddp"],
    )
    assert again.built == ("chunks", "embeddings", "index", "neighbours")
    assert [stage.manifest.content for stage in again.stages] == [stage.manifest.content for stage in first.stages]
