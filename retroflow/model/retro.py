"""Retro: the decoder, the neighbour encoder and what joins them (Borgeaud et al. 2022, Algorithm 1).

Shapes: b batch, n tokens of a sequence, m tokens of a chunk, l = n // m whole chunks, k neighbours,
r = 2m tokens of a neighbour with its continuation, d decoder features, e encoder features, v vocabulary.
"""

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from retroflow.model.config import RetroConfig
from retroflow.model.decoder import DecoderBlock
from retroflow.model.encoder import NeighbourEncoder
from retroflow.model.initialisation import initialise
from retroflow.model.inputs import check_inputs
from retroflow.model.layers import RMSNorm, Smear
from retroflow.model.loss import token_losses


class Retro(nn.Module):
    """A causal language model that reads the neighbours of every chunk through chunked cross-attention."""

    def __init__(self, config: RetroConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary_size, config.width)
        self.smear = Smear(config.width) if config.smear else None
        self.blocks = nn.ModuleList(
            DecoderBlock(config, has_cca=layer in config.cca_layers) for layer in range(1, config.num_layers + 1)
        )
        self.norm = RMSNorm(config.width)
        self.output: nn.Linear | None = None
        if not config.tie_embeddings:
            self.output = nn.Linear(config.width, config.vocabulary_size, bias=False)
        self.first_cca_layer = min(config.cca_layers, default=0)
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

    def forward(self, tokens: Tensor, retrieved: Tensor | None = None, retrieved_mask: Tensor | None = None) -> Tensor:
        """Predict every next token.

        Args:
            tokens: int64 [b, n], values in [0, v), n >= 1; n need not be a multiple of m.
            retrieved: int64 [b, l, k, r] with l = n // m: for each whole chunk its neighbours, each followed by its
                continuation; None switches retrieval off.
            retrieved_mask: bool [b, l, k, r], or [b, l, k] for whole neighbours, True where a token was
                retrieved; None means all were.

        Returns:
            float [b, n, v] logits; position t is independent of tokens after t, and of the neighbours of chunk u
            (from 0) unless t >= (u + 1) * m - 1.

        Raises:
            InvalidShapeError: shapes, dtypes or token values that do not fit the configuration.
        """
        hidden = self._hidden(tokens, retrieved, retrieved_mask)
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
            float32 [b], nats summed over the positions with a target.

        Raises:
            InvalidShapeError: as in `forward`.
        """
        hidden = self._hidden(tokens, retrieved, retrieved_mask)
        losses = token_losses(hidden.flatten(0, 1), self._output_matrix(), targets.flatten())
        return losses.view(targets.shape).sum(-1)

    def _hidden(self, tokens: Tensor, retrieved: Tensor | None, retrieved_mask: Tensor | None) -> Tensor:
        """Run all blocks; returns the normalised last states float [b, n, d]."""
        mask = check_inputs(self.config, tokens, retrieved, retrieved_mask)
        x = self.embedding(tokens)
        if self.smear is not None:
            x = self.smear(x)
        encoded: Tensor | None = None
        for layer, module in enumerate(self.blocks, start=1):
            block = cast(DecoderBlock, module)  # torch types the items of a ModuleList as Module
            x = block.attend(x)
            if mask is not None and retrieved is not None:
                if layer == self.first_cca_layer:
                    encoded = self._encode(retrieved, mask, x)
                if encoded is not None and block.cca is not None:
                    x = block.read_neighbours(x, encoded, mask)
            x = block.feed(x)
        hidden: Tensor = self.norm(x)
        return hidden

    def _encode(self, retrieved: Tensor, mask: Tensor, x: Tensor) -> Tensor:
        """Encode retrieved int64 [b, l, k, r] given decoder states x [b, n, d]; returns [b, l, k, r, e]."""
        assert self.encoder is not None
        num_chunks, m = retrieved.shape[1], self.config.chunk_length
        chunks = x[:, : num_chunks * m].unflatten(1, (num_chunks, m))
        encoded: Tensor = self.encoder(self._embed_retrieved(retrieved), mask, chunks)
        return encoded

    def _embed_retrieved(self, retrieved: Tensor) -> Tensor:
        x: Tensor
        if self.encoder_embedding is not None:
            x = self.encoder_embedding(retrieved)
        else:
            x = self.embedding(retrieved)
            if self.encoder_input is not None:
                x = self.encoder_input(x)
        if self.encoder_smear is not None:
            x = self.encoder_smear(x.flatten(0, 2)).view_as(x)
        return x

    def _output_matrix(self) -> Tensor:
        return self.embedding.weight if self.output is None else self.output.weight
