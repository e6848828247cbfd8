"""Retro: the decoder, the neighbour encoder and what joins them (Borgeaud et al. 2022, Algorithm 1).

Shapes: b batch, n tokens of a sequence, t new tokens, m tokens of a chunk, W windows (whole chunks, W = n // m, unless
neighbours are looked up more often), k neighbours, r = 2m tokens of a neighbour with its continuation, d decoder
features, e encoder features, v vocabulary.
"""

from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retroflow.errors import UsageError
from retroflow.model.cache import RetroCache, extend_with_cache
from retroflow.model.config import RetroConfig
from retroflow.model.decoder import DecoderBlock
from retroflow.model.encoder import NeighbourEncoder
from retroflow.model.initialisation import initialise
from retroflow.model.inputs import check_extension, check_padding, check_sequence, check_targets, check_tokens
from retroflow.model.layers import RMSNorm, Smear
from retroflow.model.loss import token_losses
from retroflow.model.pretrained import (
    CONFIG_FILE,
    load_weights,
    make_config,
    read_config,
    same_random_state,
    save_pretrained,
)
from retroflow.model.reading import Reading, Retrieved, SequenceReading
from retroflow.model.windows import checked_step
from retroflow.protocols.model import RetrievalModel

NAME = "retro"
"""Of the model, in the registry and in config.json."""


class Retro(nn.Module, RetrievalModel):
    """A causal language model that reads the neighbours of every chunk through chunked cross-attention."""

    def __init__(self, config: RetroConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary_size, config.width)
        self.smear = Smear(config.width) if config.smear else None
        self.blocks = nn.ModuleList(DecoderBlock(config, layer=layer) for layer in range(1, config.num_layers + 1))
        self.norm = RMSNorm(config.width)
        self.output: nn.Linear | None = None
        if not config.tie_embeddings:
            self.output = nn.Linear(config.width, config.vocabulary_size, bias=False)
        self.encoder: NeighbourEncoder | None = None
        self.encoder_embedding: nn.Embedding | None = None
        self.encoder_input: nn.Linear | None = None
        self.encoder_smear: Smear | None = None
        if config.cca_layers:
            self.encoder = NeighbourEncoder(config)
            if not config.share_encoder_embeddings:
                self.encoder_embedding = nn.Embedding(config.vocabulary_size, config.encoder_width)
            elif config.width != config.encoder_width:
                self.encoder_input = nn.Linear(config.width, config.encoder_width, bias=False)
            self.encoder_smear = Smear(config.encoder_width) if config.smear else None
        initialise(self, config, encoder_input=self.encoder_input)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors and SHA256SUMS into a new or empty folder, whole or not at all.

        Raises:
            UsageError: the folder holds something.
            RetroflowError: it cannot be written.
        """
        save_pretrained(Path(folder), name=NAME, config=self.config, model=self)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Load what `save_pretrained` or `retroflow export` wrote; in evaluation mode, float32, on the CPU.

        Raises:
            UsageError: no model folder, one of another model, or a configuration that cannot be.
            DamagedDataError: a file is missing, changed, or not of this model.
        """
        name, values = read_config(Path(folder))
        if name != NAME:
            raise UsageError(
                f'"{folder}": holds a model "{name}", not "{NAME}"; open it with '
                "retroflow.load(folder, retrieval=False)."
            )
        config = make_config(RetroConfig, values, where=Path(folder) / CONFIG_FILE)
        with same_random_state():
            model = cls(config)
        return load_weights(model, Path(folder))

    @property
    def blocks_to_recompute(self) -> list[nn.Module]:
        """What activation checkpointing computes again: the blocks of decoder and encoder, each by itself.

        Not the decoder's block that encodes the neighbours: with it all of the encoder's activations would come back
        at once.
        """
        blocks: list[nn.Module] = [block for block in self.blocks if not block.encodes]
        return blocks if self.encoder is None else [*blocks, *self.encoder.blocks]

    @property
    def blocks_to_shard(self) -> list[nn.Module]:
        """Each decoder block, and the encoder."""
        return [*self.blocks, *([] if self.encoder is None else [self.encoder])]

    @property
    def blocks_to_compile(self) -> list[nn.Module]:
        """The decoder blocks."""
        return list(self.blocks)

    def forward(
        self,
        tokens: Tensor,
        retrieved: Tensor | None = None,
        retrieved_mask: Tensor | None = None,
        *,
        padding: Tensor | None = None,
        retrieval_step: int | None = None,
    ) -> Tensor:
        """Predict every next token.

        Args:
            tokens: int64 [b, n], values in [0, v), n >= 1; n need not be a multiple of m.
            retrieved: int64 [b, W, k, r] with W = n // m: for each whole chunk its neighbours, each followed by its
                continuation; None switches retrieval off.
            retrieved_mask: bool [b, W, k, r], or [b, W, k] for whole neighbours, True where a token was
                retrieved; what stands elsewhere does not matter. None means all were.
            padding: int64 [b], tokens at the left of each row that are padding: no other position sees them, and
                a chunk that is padding alone has no neighbours. None for no padding.
            retrieval_step: s, tokens between two lookups, 1 to m; None means m, the paper's. With s < m there are
                W = (n - m) // s + 1 windows instead of chunks (`retroflow.model.windows`).

        Returns:
            float [b, n, v] logits; position t is independent of tokens after t, and of the neighbours of chunk u
            (from 0) unless t >= (u + 1) * m - 1. Those of padding mean nothing.

        Raises:
            InvalidShapeError: shapes, dtypes or values that do not fit the configuration.
        """
        step = checked_step(retrieval_step, self.config.chunk_length)
        check_tokens(self.config, tokens)
        check_padding(padding, num_rows=tokens.shape[0], length=tokens.shape[1])
        found = check_sequence(self.config, tokens, retrieved, retrieved_mask, step)
        given = mask = None
        if padding is not None:
            state = self._empty_cache(step, padding)
            given, mask = state.given(0, tokens.shape[1]), state.attention_mask(tokens.shape[1])
        hidden = self._run(self._embed(tokens, given), self._reading(found, step, given), mask)
        return F.linear(hidden, self._output_matrix())

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        retrieved: Tensor | None = None,
        retrieved_mask: Tensor | None = None,
    ) -> Tensor:
        """Sum the loss of each sequence.

        Args:
            tokens: as in `forward`.
            targets: int64 [b, n], the token to predict at each position, -100 where none is.
            retrieved: as in `forward`.
            retrieved_mask: as in `forward`.

        Returns:
            float32 [b] (float64 of a float64 model), nats summed over the positions with a target.

        Raises:
            InvalidShapeError: as in `forward`; targets of another shape, or outside the vocabulary.
        """
        check_tokens(self.config, tokens)
        check_targets(self.config, targets, tokens)
        step = self.config.chunk_length
        found = check_sequence(self.config, tokens, retrieved, retrieved_mask, step)
        hidden = self._run(self._embed(tokens), self._reading(found, step))
        losses = token_losses(hidden.flatten(0, 1), self._output_matrix(), targets.flatten())
        return losses.view(targets.shape).sum(-1)

    def new_cache(self, *, padding: Tensor | None = None, retrieval_step: int | None = None) -> RetroCache:
        """Begin generation; the answer is given to `extend` with each call's new tokens.

        Args:
            padding: int64 [b], as in `forward`.
            retrieval_step: as in `forward`.

        Raises:
            InvalidShapeError: a retrieval step outside 1 to m.
        """
        return self._empty_cache(checked_step(retrieval_step, self.config.chunk_length), padding)

    @torch.no_grad()
    def extend(
        self,
        tokens: Tensor,
        cache: RetroCache,
        retrieved: Tensor | None = None,
        retrieved_mask: Tensor | None = None,
    ) -> Tensor:
        """Predict what follows more tokens: `forward` on all tokens so far, at the price of the new ones.

        Args:
            tokens: int64 [b, t], t >= 1, those that follow what the cache has seen.
            cache: from `new_cache`; advanced by t tokens.
            retrieved: int64 [b, W, k, r] for the W = `cache.num_new_windows(t)` windows that these tokens close; None
                where nothing was looked up.
            retrieved_mask: as in `forward`.

        Returns:
            float [b, t, v] logits.

        Raises:
            InvalidShapeError: as in `forward`; rows that are not those of the cache. The cache is as before.
        """
        found = check_extension(self.config, tokens, cache, retrieved, retrieved_mask)
        hidden = extend_with_cache(tokens, cache, found, self._encode, self._advance)
        return F.linear(hidden, self._output_matrix())

    def _advance(self, tokens: Tensor, cache: RetroCache, reading: Reading) -> Tensor:
        end = cache.length + tokens.shape[1]
        mask = cache.attention_mask(tokens.shape[1])
        x = self._embed(tokens, cache.given(cache.length, end), cache)
        hidden = self._run(x, reading, mask, cache)
        cache.advance(tokens)
        return hidden

    def _empty_cache(self, step: int, padding: Tensor | None) -> RetroCache:
        c = self.config
        return RetroCache(c.num_layers, chunk_length=c.chunk_length, step=step, padding=padding)

    def _embed(self, tokens: Tensor, given: Tensor | None = None, cache: RetroCache | None = None) -> Tensor:
        """Embed tokens int64 [b, t], those where `given` bool [b, t] is False as zeros; returns float [b, t, d]."""
        x: Tensor = self.embedding(tokens)
        if given is not None:
            x = x * given[..., None]
        if self.smear is None:
            return x
        previous = None if cache is None else cache.previous
        if cache is not None:
            cache.previous = x[:, -1:]
        return self.smear(x, previous)

    def _run(
        self, x: Tensor, reading: Reading | None, mask: Tensor | None = None, cache: RetroCache | None = None
    ) -> Tensor:
        """Run all blocks on x float [b, t, d]; returns the normalised last states float [b, t, d]."""
        for index, block in enumerate(self.blocks):
            x = block(x, reading, mask, None if cache is None else cache.layers[index])
        hidden: Tensor = self.norm(x)
        return hidden

    def _reading(self, found: Retrieved | None, step: int, given: Tensor | None = None) -> Reading | None:
        if found is None:
            return None
        return SequenceReading(found, self._encode, chunk_length=self.config.chunk_length, step=step, given=given)

    def _encode(self, retrieved: Retrieved, chunks: Tensor, chunk_mask: Tensor | None) -> Tensor:
        """Encode retrieved text given chunks float [b, W, m, d]; returns float [b, W, k, r, e]."""
        assert self.encoder is not None
        encoded: Tensor = self.encoder(self._embed_retrieved(retrieved), chunks, retrieved.mask, chunk_mask)
        return encoded

    def _embed_retrieved(self, retrieved: Retrieved) -> Tensor:
        """Embed retrieved text; returns float [b, W, k, r, e]."""
        x: Tensor
        if self.encoder_embedding is not None:
            x = self.encoder_embedding(retrieved.tokens)
        else:
            x = self.embedding(retrieved.tokens)
            if self.encoder_input is not None:
                x = self.encoder_input(x)
        if self.encoder_smear is not None:
            if retrieved.mask is not None:  # a missing token is not before any other
                x = x * retrieved.mask[..., None]
            x = self.encoder_smear(x.flatten(0, 2)).view_as(x)
        return x

    def _output_matrix(self) -> Tensor:
        return self.embedding.weight if self.output is None else self.output.weight
