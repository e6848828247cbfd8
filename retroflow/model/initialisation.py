"""How fresh weights are drawn: small normal values, and the copy initialisation of the reading aids.

Shapes: d decoder features, e encoder features.
"""

import torch
from torch import nn

from retroflow.model.chunked_cross_attention import ChunkedCrossAttention
from retroflow.model.config import RetroConfig
from retroflow.model.encoder import RetrievedEncoder
from retroflow.model.layers import FeedForward, Smear

# Variance times width of a fresh matrix ("SmallInit" of Nguyen and Salakhutdinov 2019, arXiv:1910.05895). At GPT-2's
# width that is GPT-2's 0.02; at width 128 it is 0.056, and 0.02 costs the small decoder far more steps (docs/log.md).
VARIANCE_TIMES_WIDTH = 0.4
# The share of the identity with which a copied value enters the residual stream (docs/log.md, 2026-11-21).
COPY_STRENGTH = 0.3


@torch.no_grad()
def initialise(model: nn.Module, config: RetroConfig) -> None:
    """Draw all weights of a Retro, or of what a RETRO-fit adds to its base, from the global generator."""
    for name, module in model.named_modules():
        width = config.encoder_width if name.startswith("encoder") else config.width
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=(VARIANCE_TIMES_WIDTH / width) ** 0.5)
    for module in model.modules():
        if isinstance(module, Smear):
            nn.init.eye_(module.previous.weight)
    # A copier has to see bare embeddings: fresh updates of decoder and encoder would drown them.
    _scale_residual_outputs(model, 0.0 if config.copy_initialisation else (2 * config.num_layers) ** -0.5)
    if config.copy_initialisation:
        _initialise_copying(model, config.width)


def _scale_residual_outputs(model: nn.Module, factor: float) -> None:
    """Scale the last matrix of each residual update; GPT-2's 1 / sqrt(2 * layers) keeps depth from adding variance."""
    for name, module in model.named_modules():
        if isinstance(module, FeedForward):
            module.contract.weight.mul_(factor)
        elif isinstance(module, nn.Linear) and name.endswith(("attention.output", "cca.output")):
            module.weight.mul_(factor)


def _initialise_copying(model: nn.Module, width: int) -> None:
    """Let chunked cross-attention start as a copier: match equal embeddings, add the matched value.

    A narrower encoder sees the embeddings through an orthonormal map P [e, d]; keys and values start as its
    transpose, so that they are the embeddings' projections onto the e directions that P keeps.
    """
    projection = torch.eye(width)
    for module in model.modules():
        if isinstance(module, RetrievedEncoder) and module.input is not None:
            projection = nn.init.orthogonal_(module.input.weight)
    for module in model.modules():
        if isinstance(module, ChunkedCrossAttention):
            nn.init.eye_(module.query.weight)  # [heads * w, d]: the first features where the heads hold fewer than d
            module.key.weight.copy_(module.query.weight @ projection.T)
            module.value.weight.copy_(module.key.weight)
            nn.init.eye_(module.output.weight)
            module.output.weight.mul_(COPY_STRENGTH)
