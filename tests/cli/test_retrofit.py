"""A RETRO-fit from its recipe to its export, end to end: the base's tokenizer, fit, evaluate, resume, generate."""

import json
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from retroflow.cli.main import run
from retroflow.corpus.tokenizer import load_tokenizer, train_tokenizer
from retroflow.generation.exported import load_exported
from retroflow.pretrained.base_models import fingerprint, load_base
from retroflow.testing.tiny_corpus import write_tiny_corpus

RECIPE = """recipe_version: 1
corpus: {{name: jsonl, path: {corpus}, valid_share: 0.3}}
embedder: {{name: lexical, dimension: 32}}
retriever: {{name: exact}}
neighbours: {{k: 2}}
data: {{chunk_length: 8, sequence_chunks: 4, artifacts_folder: {folder}/artifacts}}
model: {{name: retrofit, base: {base}, encoder_width: 8, encoder_layers: 1, encoder_heads: 1}}
optimizer: {{learning_rate: 0.01, warmup_steps: 2}}
trainer: {{max_steps: 6, batch_size: 2, device: cpu, precision: fp32, checkpoint_every: 3, validation_batches: 1,
  runs_folder: {folder}/runs}}
"""

pytestmark = pytest.mark.filterwarnings("ignore")


def write_base(folder: Path, text: str, *, num_positions: int = 64) -> Path:
    folder.mkdir()
    tokenizer = train_tokenizer([text], 300)
    tokenizer.save(folder)
    ends = {"bos_token_id": tokenizer.end_of_text, "eos_token_id": tokenizer.end_of_text}
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=tokenizer.vocabulary_size + 4, n_embd=16, n_layer=3, n_head=2, n_positions=num_positions, **ends
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, a recipe and a finished run."""
    folder = tmp_path_factory.mktemp("retrofit")
    corpus = write_tiny_corpus(folder, 12)
    base = write_base(folder / "base", corpus.read_text(encoding="utf-8"))
    (folder / "tiny.yaml").write_text(RECIPE.format(corpus=corpus, base=base, folder=folder))
    assert run(["fit", "--recipe", str(folder / "tiny.yaml")]) == 0
    return folder


def report_of(folder: Path) -> dict:
    return json.loads((folder / "runs" / "tiny" / "0001" / "report.json").read_text())


def test_the_report_has_off_equal_to_the_base_and_the_share_of_weights_trained(folder: Path) -> None:
    report = report_of(folder)
    assert set(report["validation"]) == {"on", "off", "shuffled", "random"}
    assert 0 < report["training"]["num_trained_parameters"] < report["training"]["num_parameters"]
    assert report["validation"]["on"]["bits_per_byte"] != report["validation"]["off"]["bits_per_byte"]


def test_a_second_fit_prepares_nothing_and_the_run_can_be_judged_again(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = report_of(folder)["validation"]
    assert run(["evaluate", str(folder / "runs" / "tiny" / "0001")]) == 0
    again = report_of(folder)["validation"]
    assert {mode: again[mode]["bits_per_byte"] for mode in again} == {
        mode: before[mode]["bits_per_byte"] for mode in before
    }
    assert run(["prepare", "--recipe", str(folder / "tiny.yaml")]) == 0
    assert "built" not in capfd.readouterr().out.split("chunks:", 1)[1]


def test_generation_from_run_and_export_is_the_same_and_uses_the_base_tokenizer(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_folder, exported = folder / "runs" / "tiny" / "0001", folder / "exported"
    assert run(["export", str(run_folder), str(exported)]) == 0
    assert "base/model.safetensors" in (exported / "SHA256SUMS").read_text()
    assert len({path.stat().st_mode for path in exported.rglob("*") if path.is_file()}) == 1
    index = next((folder / "artifacts").glob("index-*"))
    answers = []
    for place in (run_folder, exported):
        capfd.readouterr()
        words = ["--prompt", "Notes, part 7.", "--max-new-tokens", "20", "--temperature", "1", "--database", str(index)]
        assert run(["generate", str(place), *words]) == 0
        answers.append(capfd.readouterr().out)
    assert answers[0] == answers[1] and len(answers[0]) > 5
    opened = load_exported(exported)
    assert opened.tokenizer.fingerprint() == load_tokenizer(str(folder / "base")).fingerprint()
    assert torch.equal(fingerprint(opened.model.base), fingerprint(load_base(str(folder / "base"))))


def test_an_export_can_leave_out_the_base(folder: Path) -> None:
    run_folder, exported = folder / "runs" / "tiny" / "0001", folder / "without base"
    assert run(["export", str(run_folder), str(exported), "--without-base"]) == 0
    assert not (exported / "base").exists()
    opened = load_exported(exported)
    assert torch.equal(fingerprint(opened.model.base), fingerprint(load_base(str(folder / "base"))))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.tokenizer=train", "Leave data.tokenizer out"),
        ("model.base=nowhere/at/all/", "model.base"),
        ("model.cca_layers=[4]", "layers 1 to 3"),
        ("trainer.retrieval=false", "model.unfreeze: true"),
        ("model.with=128", "model.with"),
    ],
)
def test_a_mistake_is_one_message(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, override: str, message: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    capfd.readouterr()
    assert run(["fit", "--recipe", str(folder / "tiny.yaml"), override]) == 2
    complaint = capfd.readouterr().err
    assert message in complaint and "Traceback" not in complaint
