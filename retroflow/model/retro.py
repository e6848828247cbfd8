"""Retro: the decoder, the neighbour encoder and what joins them (Borgeaud et al. 2022, Algorithm 1).

Shapes: b batch, n tokens of a sequence, t new tokens, m tokens of a chunk, W windows (whole chunks, W = n // m, unless
neighbours are looked up more often), k neighbours, r = 2m tokens of a neighbour with its continuation, d decoder
features, e encoder features, v vocabulary.
"""

from functools import partial
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retroflow.errors import UsageError
from retroflow.model.acceleration import accelerate
from retroflow.model.cache import RetroCache, extend_with_cache
from retroflow.model.config import RetroConfig
from retroflow.model.decoder import DecoderBlock
from retroflow.model.encoder import RetrievedEncoder
from retroflow.model.initialisation import initialise
from retroflow.model.inputs import check_extension, check_padding, check_sequence, check_targets, check_tokens
from retroflow.model.layers import RMSNorm, Smear
from retroflow.model.loss import token_losses
from retroflow.model.neighbours import Encode, Encoded, Retrieved
from retroflow.model.pretrained import (
    CONFIG_FILE,
    load_weights,
    make_config,
    read_config,
    same_random_state,
    save_pretrained,
)
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
        self.encoder = RetrievedEncoder(config) if config.cca_layers else None
        initialise(self, config)
        accelerate(self)

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
        if self.encoder is None:
            return list(self.blocks)
        first = min(self.config.cca_layers) - 1
        return [*self.blocks[:first], *self.blocks[first + 1 :], *self.encoder.blocks]

    @property
    def blocks_to_shard(self) -> list[nn.Module]:
        """Each block of decoder and encoder."""
        return [*self.blocks, *(() if self.encoder is None else self.encoder.blocks)]

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
        hidden = self.hidden(tokens, retrieved, retrieved_mask, padding=padding, retrieval_step=retrieval_step)
        return F.linear(hidden, self.output_weights())

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        retrieved: Tensor | None = None,
        retrieved_mask: Tensor | None = None,
        padding: Tensor | None = None,
    ) -> Tensor:
        """Sum the loss of each sequence.

        Args:
            tokens: as in `forward`.
            targets: int64 [b, n], the token to predict at each position, -100 where none is.
            retrieved: as in `forward`.
            retrieved_mask: as in `forward`.
            padding: as in `forward`; nothing is predicted there.

        Returns:
            float32 [b] (float64 of a float64 model), nats summed over the positions with a target.

        Raises:
            InvalidShapeError: as in `forward`; targets of another shape, or outside the vocabulary.
        """
        check_tokens(self.config, tokens)
        check_targets(self.config, targets, tokens)
        hidden = self.hidden(tokens, retrieved, retrieved_mask, padding=padding)
        losses = token_losses(hidden.flatten(0, 1), self.output_weights(), targets.flatten())
        return losses.view(targets.shape).sum(-1)

    def hidden(
        self,
        tokens: Tensor,
        retrieved: Tensor | None = None,
        retrieved_mask: Tensor | None = None,
        *,
        padding: Tensor | None = None,
        retrieval_step: int | None = None,
    ) -> Tensor:
        """Return the normalised last states, float [b, n, d]; arguments and errors as in `forward`."""
        step = checked_step(retrieval_step, self.config.chunk_length)
        check_tokens(self.config, tokens)
        check_padding(padding, num_rows=tokens.shape[0], length=tokens.shape[1])
        found = check_sequence(self.config, tokens, retrieved, retrieved_mask, step)
        is_token = mask = None
        if padding is not None:
            state = self._empty_cache(step, padding)
            is_token, mask = state.is_token(0, tokens.shape[1]), state.attention_mask(tokens.shape[1])
        return self._run(self._embed(tokens, is_token), self._encoding(found, step, is_token), mask)[0]

    def output_weights(self) -> Tensor:
        """Return the output matrix, float [v, d]."""
        return self.embedding.weight if self.output is None else self.output.weight

    def last_feed_forward(self) -> nn.Module:
        """Return the feed-forward layer of the last block."""
        return self.blocks[-1].get_submodule("feed_forward")

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
        encode = None if self.encoder is None else partial(self.encoder, embedding=self.embedding)
        hidden = extend_with_cache(tokens, cache, found, encode, self._run_after)
        return F.linear(hidden, self.output_weights())

    def _run_after(self, tokens: Tensor, cache: RetroCache, encode: Encode | None) -> tuple[Tensor, Encoded | None]:
        """Run tokens int64 [b, t] that follow those of a cache, as `_run`."""
        end = cache.length + tokens.shape[1]
        mask = cache.attention_mask(tokens.shape[1])
        return self._run(self._embed(tokens, cache.is_token(cache.length, end), cache), encode, mask, cache)

    def _empty_cache(self, step: int, padding: Tensor | None) -> RetroCache:
        c = self.config
        return RetroCache(c.num_layers, chunk_length=c.chunk_length, step=step, padding=padding)

    def _embed(self, tokens: Tensor, is_token: Tensor | None = None, cache: RetroCache | None = None) -> Tensor:
        """Embed tokens int64 [b, t], those where `is_token` bool [b, t] is False as zeros; returns float [b, t, d]."""
        x: Tensor = self.embedding(tokens)
        if is_token is not None:
            x = x * is_token[..., None]
        if self.smear is None:
            return x
        previous = None if cache is None else cache.previous
        if cache is not None:
            cache.previous = x[:, -1:]
        return self.smear(x, previous)

    def _run(
        self, x: Tensor, encode: Encode | None, mask: Tensor | None = None, cache: RetroCache | None = None
    ) -> tuple[Tensor, Encoded | None]:
        """Run all blocks on x float [b, t, d]; returns normalised last states float [b, t, d], and the neighbours."""
        encoded: Encoded | None = None
        for index, block in enumerate(self.blocks):
            x, encoded = block(x, encoded, encode, mask, None if cache is None else cache.layers[index])
        return self.norm(x), encoded

    def _encoding(self, found: Retrieved | None, step: int, is_token: Tensor | None = None) -> Encode | None:
        if self.encoder is None or found is None:
            return None
        return partial(self.encoder, found, embedding=self.embedding, step=step, is_token=is_token)
