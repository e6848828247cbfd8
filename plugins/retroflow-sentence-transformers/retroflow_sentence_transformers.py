"""Any model of sentence-transformers as an embedder for retroflow.

The model's own folder says how it tokenises, pools and projects; the library does it. This file finds the folder, names
what determines a vector, and answers as retroflow expects.
"""

import hashlib
import json
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, MinLen

from retroflow.console import say
from retroflow.devices import choose_device
from retroflow.errors import DamagedDataError, UsageError
from retroflow.hub import from_cache_or_hub
from retroflow.protocols import Float32Array

ARITHMETIC = 1  # raise it when the same model and options give other vectors
# Pickled weights (pytorch_model.bin) can run code, so they are never downloaded and never loaded.
FILE_PATTERNS = ["*.json", "*.txt", "*.model", "*.safetensors"]
OTHER_BACKENDS = ["onnx/*", "openvino/*"]
# Characters of a text that are used per token: tokenising 100 MB for some hundred tokens would take a minute.
CHARACTERS_PER_TOKEN = 64
LONGEST = 2**17  # tokens, of a model that states no length


class SentenceTransformersEmbedder:
    """A model of sentence-transformers.

    Args:
        model: a folder that `SentenceTransformer.save` wrote, or a name on the Hugging Face hub.
        revision: of a name: a branch, a tag or a commit; None for the newest in the cache, else on the hub.
        max_length: tokens used of a text, special tokens included; None for the model's own limit.
        normalise: scale every vector to length 1, so that L2 and inner product give the same order.
        prompt: put before every text, such as "passage: "; None for the model's own default, mostly none.
        truncate: keep the first so many columns, for models that were trained for it (Matryoshka).
        device: "auto" is CUDA if there is one.
        precision: of the weights and activations.
        batch_size: texts that are computed together; affects only speed and memory.

    Attributes:
        source: where the model was found.

    Raises:
        UsageError: the model is nowhere, or is none, or needs code of its own.
    """

    def __init__(  # noqa: PLR0913 - options of a recipe, one a key
        self,
        *,
        model: Annotated[str, MinLen(1)] = "sentence-transformers/all-MiniLM-L6-v2",
        revision: Annotated[str, MinLen(1)] | None = None,
        max_length: Annotated[int, Ge(3)] | None = None,
        normalise: bool = True,
        prompt: str | None = None,
        truncate: Annotated[int, Ge(1)] | None = None,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        precision: Literal["float32", "bfloat16"] = "float32",
        batch_size: Annotated[int, Ge(1)] = 64,
    ) -> None:
        choose_device(device, "embedder.device")
        self._max_length, self._normalise, self._prompt, self._truncate = max_length, normalise, prompt, truncate
        self._device, self._precision, self._batch_size = device, precision, batch_size
        self._folder, self.source = _find(model, revision)
        self._hashes = _hashes(self._folder, model)
        self._lock = threading.RLock()  # a tokenizer of Rust refuses a second thread
        self._model: Any = None
        self._dimension: int | None = None

    @property
    def dimension(self) -> int:
        """Width of the vectors, from the configuration; a model that does not state it there is loaded."""
        if self._dimension is None:
            width = _stated_width(self._folder) or self._loaded().get_embedding_dimension()
            if self._truncate is not None and self._truncate > width:
                raise UsageError(f"embedder.truncate is {self._truncate}; the model's vectors have {width} columns.")
            self._dimension = self._truncate or int(width)
        return self._dimension

    def fit(self, texts: Iterable[str]) -> None:
        """Learn nothing; say where the model was found."""
        say(f"embedder: the model of the {self.source}")

    def embed(self, texts: list[str]) -> Float32Array:
        """Embed texts; return float32 [len(texts), dimension], rows in the order of the texts.

        Raises:
            UsageError: a text is not a string, or `max_length` is more than the model reads.
            DamagedDataError: the files do not hold a model, or a vector is not finite.
        """
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise UsageError(f"embed: texts[{row}] is of type {type(text).__name__}; give str.")
        if not texts:
            return np.zeros((0, self.dimension), np.float32)
        with self._lock:
            model = self._loaded()
            most = CHARACTERS_PER_TOKEN * int(min(model.max_seq_length or LONGEST, LONGEST))
            # Lone surrogates have no UTF-8, which the tokenizer needs.
            clean = [text[:most].encode("utf-8", "replace").decode("utf-8") for text in texts]
            vectors = model.encode(
                clean,
                prompt=self._prompt,
                batch_size=self._batch_size,
                show_progress_bar=False,
                normalize_embeddings=self._normalise,
                truncate_dim=self._truncate,
            )
        answer: Float32Array = np.asarray(vectors, dtype=np.float32)
        if answer.shape != (len(texts), self.dimension) or not np.isfinite(answer).all():
            raise DamagedDataError(
                f"{self._folder}: the model gave vectors {list(answer.shape)} that are not finite or not "
                f"{self.dimension} wide, so its files are damaged. Download or save it again."
            )
        return answer

    def save(self, folder: Path) -> None:
        """Write nothing: the model is frozen, and its fingerprint identifies it."""

    def load(self, folder: Path) -> None:
        """Read nothing; see `save`."""

    def fingerprint(self) -> dict[str, object]:
        """Everything that changes a vector: the bytes of every file of the revision, and the options."""
        return {
            "embedder": "sentence-transformers",
            "arithmetic": ARITHMETIC,
            "files": self._hashes,
            "max_length": self._max_length,
            "normalise": self._normalise,
            "prompt": self._prompt,
            "truncate": self._truncate,
            "precision": self._precision,
        }

    def _loaded(self) -> Any:
        """Return the model, loaded once."""
        with self._lock:
            if self._model is None:
                model = _load(self._folder, choose_device(self._device, "embedder.device"), self._precision)
                own = model.max_seq_length
                if self._max_length is not None:
                    if own is not None and self._max_length > own:
                        raise UsageError(
                            f"embedder.max_length is {self._max_length}; the model reads 3 to {own} tokens."
                        )
                    try:
                        model.max_seq_length = self._max_length
                    except AttributeError as error:
                        raise UsageError(
                            f"embedder.max_length is {self._max_length}; {self._folder.name} reads a text of any "
                            "length as a whole. Leave max_length out."
                        ) from error
                self._model = model
            return self._model


def _find(model: str, revision: str | None) -> tuple[Path, str]:
    """Return the folder of a model's files, and where it was found."""
    local = Path(model).expanduser()
    if local.is_dir():
        if revision is not None:
            raise UsageError(f'embedder.revision is "{revision}", and embedder.model is a folder, which has none.')
        return local.resolve(), f"folder {local.resolve()}"
    if local.is_absolute() or model.startswith((".", "~")):
        raise UsageError(
            f'embedder.model: there is no folder "{model}". Give one that SentenceTransformer.save wrote, or a name on '
            'the Hugging Face hub such as "sentence-transformers/all-MiniLM-L6-v2".'
        )
    from huggingface_hub import snapshot_download

    name = model if "/" in model else f"sentence-transformers/{model}"  # as the library does

    def load(local_files_only: bool) -> Path:
        options: dict[str, Any] = {"allow_patterns": FILE_PATTERNS, "ignore_patterns": OTHER_BACKENDS}
        folder = snapshot_download(name, revision=revision, local_files_only=local_files_only, **options)
        if not any(Path(folder).rglob("*.safetensors")):
            raise FileNotFoundError("incomplete there (no *.safetensors)")
        return Path(folder)

    try:
        folder, place = from_cache_or_hub(load)
    except LookupError as error:
        at = f' at revision "{revision}"' if revision is not None else ""
        raise UsageError(
            f'embedder.model: "{model}"{at} was not found. Tried: folder: "{model}" is not one; {error}. Check the '
            "name and the network, or give a folder that holds the model."
        ) from error
    return folder, f"{place} {name} at {folder.name}"


def _hashes(folder: Path, model: str) -> dict[str, str]:
    """Return the SHA-256 of every file that can change a vector, by its path within the folder.

    Raises:
        UsageError: the folder holds no model, or weights that are pickled.
    """
    paths = {path for pattern in FILE_PATTERNS for path in folder.rglob(pattern) if path.is_file()}
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    names = {name: path for name, path in names.items() if not name.startswith((".", "onnx/", "openvino/"))}
    loaded = [path for path in folder.rglob("*.bin") if path.relative_to(folder).parts[0] not in ("onnx", "openvino")]
    pickled = [path for path in loaded if not any(path.parent.glob("*.safetensors"))]
    lacks = [] if "modules.json" in names or "config.json" in names else ["modules.json"]
    lacks += [] if any(name.endswith(".safetensors") for name in names) else ["model.safetensors"]
    if pickled or lacks:
        fault = (
            f"has pickled weights ({pickled[0].name}), which can run code"
            if pickled
            else f"lacks {' and '.join(lacks)}"
        )
        raise UsageError(
            f'embedder.model: the folder {folder} (given as "{model}") {fault}. Give a folder written by '
            "SentenceTransformer.save, with weights as safetensors."
        )
    return {name: _sha256(names[name]) for name in sorted(names)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stated_width(folder: Path) -> int | None:
    """Return the width of the vectors where the files state it plainly, so that nothing need be loaded."""
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        kinds = [module["type"].rpartition(".")[2] for module in modules]
        last = max(place for place, kind in enumerate(kinds) if kind != "Normalize")
        config = json.loads((folder / modules[last]["path"] / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if kinds[last] == "Dense":
        width = config.get("out_features")
    elif kinds[last] == "Pooling" and sum(value is True for key, value in config.items() if "_mode_" in key) <= 1:
        one = isinstance(config.get("pooling_mode", "mean"), str)  # several are put beside each other
        width = config.get("embedding_dimension", config.get("word_embedding_dimension")) if one else None
    else:
        width = None
    return width if isinstance(width, int) else None


def _load(folder: Path, device: str, precision: str) -> Any:
    """Load a model of a folder, from its files alone."""
    # Imported here: it takes seconds, and a prepared recipe never embeds.
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        weights = {"dtype": getattr(torch, precision), "use_safetensors": True}
        model = SentenceTransformer(
            str(folder), device=device, local_files_only=True, trust_remote_code=False, model_kwargs=weights
        )
    # For a damaged file transformers, safetensors and tokenizers raise many classes (SafetensorError, RuntimeError,
    # KeyError, a bare Exception from Rust). The folder exists, so its content is the cause.
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise UsageError(
                f"embedder.model: {folder} needs code of its own (trust_remote_code), which is never run. Choose "
                "another model."
            ) from error
        raise DamagedDataError(
            f"{folder}: cannot be loaded as a model ({type(error).__name__}: {error}). Download or save it again."
        ) from error
    finally:
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    return model.eval().requires_grad_(False)
