"""Every choice that shapes a Retro, as one dataclass; its fields are the keys of a recipe's `model:` block.

The defaults are the smallest model of Borgeaud et al. 2022 (arXiv:2112.04426, Table 10) with rotary positions; the
paper's four, exactly, have names of their own (`retroflow.model.paper_sizes`). The options under "reading
aids" are not in the paper; they let a model trained for minutes use its neighbours and are off by default
(docs/model.md).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from retroflow.errors import UsageError
from retroflow.options import checked_options
from retroflow.protocols.model import ModelConfig

if TYPE_CHECKING:
    from retroflow.model.retro import Retro


LARGEST = 1_048_576  # of a size: far above any model, and products of three still fit into 64 bits
MOST_LAYERS = 10_000

Positive = Annotated[int, Ge(1), Le(LARGEST)]
Layers = Annotated[int, Ge(1), Le(MOST_LAYERS)]
OrDerived = Annotated[int, Ge(0), Le(LARGEST)]
"""A size; 0 means that it follows from others."""

LayerNumbers = tuple[Annotated[int, Ge(1)], ...]
"""Blocks, counted from 1."""


@checked_options("model")
@dataclass(frozen=True, kw_only=True)
class RetroConfig(ModelConfig):
    """Options of the model.

    Attributes:
        vocabulary_size: entries of the tokenizer; derived from the tokenizer, not a recipe key.
        chunk_length: tokens of a chunk (m); derived from `data.chunk_length`, not a recipe key.
        width: features of the decoder's residual stream (d).
        num_layers: decoder blocks.
        num_heads: attention heads of the decoder's self-attention.
        head_width: features of one head, even (rotary positions turn pairs); 0 means width / num_heads.
        feed_forward_width: hidden features of the decoder's feed-forward layers; 0 means 4 * width.
        cca_layers: decoder blocks (counted from 1) with chunked cross-attention, the paper's P.
        cca_heads: heads of chunked cross-attention; 0 means num_heads.
        positions: how every attention knows distances: "rotary", or "relative", the paper's learned logits
            (appendix B), which keep torch from its fastest kernels.
        cca_positions: positions in chunked cross-attention, d(i, i') = i - i' + m - 1 (eq. 6); without
            them a query knows what a retrieved token is but not where.
        encoder_width: features of the neighbour encoder (e, the paper's d').
        encoder_layers: encoder blocks; 0 encodes neighbours by their embeddings alone.
        encoder_heads: attention heads of the encoder.
        encoder_head_width: features of one head of the encoder, even; 0 means encoder_width / encoder_heads.
        encoder_feed_forward_width: hidden features of the encoder's feed-forward layers; 0 means 4 * encoder_width.
        encoder_cross_attention_layers: encoder blocks (counted from 1) that read the activations of the chunk the
            neighbours were retrieved for, the paper's P_enc.
        retrieved_part: what is read of the retrieved text: "both", the matched "neighbour" alone, or its
            "continuation" alone (Table 13: .822, .950 and .895 bits per byte); positions count from its first token.
        tie_embeddings: the output matrix is the input embedding.
        share_encoder_embeddings: the encoder reads the decoder's embedding (through a linear map where the
            widths differ) instead of a table of its own (Table 13: .823 against .822 bits per byte).
        dropout: probability on each residual update, 0 to 1.
        rotary_theta: base of the wavelengths of rotary and relative positions.
        smear: reading aid; each embedding also carries a learned map of the one before it, in decoder and encoder,
            so that one attention step can match two tokens in a row.
        next_token_values: reading aid; the value of a retrieved token is the state of the token after it (what
            kNN-LM stores: context -> next token), so that attending to a match already says what comes next.
        copy_initialisation: reading aid; the maps of chunked cross-attention start as the identity (its output
            as 0.3 of it), so that it copies before it has learned anything.
        cca_scale: reading aid; above 0, queries and keys of chunked cross-attention are normalised and their
            product is multiplied by a learned scale per head that starts at this value.

    Raises:
        UsageError: values that no model can have; names every key, what was given and what is allowed.
    """

    vocabulary_size: Positive
    chunk_length: Positive
    width: Positive = 896
    num_layers: Layers = 12
    num_heads: Positive = 16
    head_width: OrDerived = 64
    feed_forward_width: OrDerived = 0
    cca_layers: LayerNumbers = (6, 9, 12)
    cca_heads: OrDerived = 0
    positions: Literal["rotary", "relative"] = "rotary"
    cca_positions: bool = True
    encoder_width: Positive = 896
    encoder_layers: Annotated[int, Ge(0), Le(MOST_LAYERS)] = 2
    encoder_heads: Positive = 16
    encoder_head_width: OrDerived = 0
    encoder_feed_forward_width: OrDerived = 0
    encoder_cross_attention_layers: LayerNumbers = (1,)
    retrieved_part: Literal["both", "neighbour", "continuation"] = "both"
    tie_embeddings: bool = True
    share_encoder_embeddings: bool = False
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    rotary_theta: Annotated[float, Gt(0)] = 10000.0
    smear: bool = False
    next_token_values: bool = False
    copy_initialisation: bool = False
    cca_scale: Annotated[float, Ge(0), Le(1_000_000)] = 0.0

    def __post_init__(self) -> None:
        if problems := [*self._head_problems(), *self._layer_problems(), *self._part_problems()]:
            raise UsageError("\n".join(problems))

    @property
    def retrieves(self) -> bool:
        """Whether any layer reads neighbours."""
        return bool(self.cca_layers)

    @property
    def part_read(self) -> slice:
        """The tokens of a retrieved neighbour that are read."""
        m = self.chunk_length
        return {"both": slice(0, 2 * m), "neighbour": slice(0, m), "continuation": slice(m, 2 * m)}[self.retrieved_part]

    def build(self) -> "Retro":
        """Make the model with freshly initialised weights."""
        from retroflow.model.retro import Retro

        return Retro(self)

    def _head_problems(self) -> list[str]:
        problems = []
        if self.head_width == 0 and self.width % self.num_heads:
            problems.append(
                f"model.num_heads is {self.num_heads}, which does not divide model.width {self.width}; choose a "
                "divisor or give model.head_width."
            )
        if self.cca_heads and self.width % self.cca_heads:
            problems.append(
                f"model.cca_heads is {self.cca_heads}, which does not divide model.width {self.width}; choose a "
                "divisor."
            )
        if self.encoder_layers and not self.encoder_head_width and self.encoder_width % self.encoder_heads:
            problems.append(
                f"model.encoder_heads is {self.encoder_heads}, which does not divide model.encoder_width "
                f"{self.encoder_width}; choose a divisor or give model.encoder_head_width."
            )
        if problems or self.positions != "rotary":
            return problems
        widths = {"head_width": self.resolved_head_width}
        if self.cca_heads and self.cca_positions and self.cca_layers:
            widths["cca_heads"] = self.width // self.cca_heads
        if self.encoder_layers:
            widths["encoder_head_width"] = self.resolved_encoder_head_width
        return [
            f"model.{name} is {getattr(self, name)}, and a head has {width} features; rotary positions turn pairs, so "
            "choose an even number."
            for name, width in widths.items()
            if width % 2
        ]

    def _part_problems(self) -> list[str]:
        problems = []
        if self.copy_initialisation and not self.share_encoder_embeddings:
            problems.append(
                "model.copy_initialisation is true, and copies the decoder's own embeddings; set "
                "model.share_encoder_embeddings to true too."
            )
        if not self.next_token_values or self.part_read.stop - self.part_read.start > 1:
            return problems
        return [
            *problems,
            f"model.next_token_values is true, but with data.chunk_length {self.chunk_length} and model.retrieved_part "
            f'"{self.retrieved_part}" one token of a neighbour is read, which has no next one; read both parts.',
        ]

    def _layer_problems(self) -> list[str]:
        problems = []
        limits = (
            ("cca_layers", self.num_layers, "num_layers"),
            ("encoder_cross_attention_layers", self.encoder_layers, "encoder_layers"),
        )
        for name, count, of in limits:
            layers = getattr(self, name)
            if layers and max(layers) > count:
                problems.append(
                    f"model.{name} is {list(layers)}, which names layer {max(layers)}; layers are counted from 1 "
                    f"to model.{of} = {count}."
                )
            if len(set(layers)) != len(layers):
                problems.append(f"model.{name} is {list(layers)}, which names a layer twice; name it once.")
        if not self.cca_layers and self.encoder_cross_attention_layers:
            problems.append(
                "model.cca_layers is [], a decoder without retrieval; set model.encoder_cross_attention_layers to [] "
                "too."
            )
        return problems

    @property
    def resolved_head_width(self) -> int:
        """Features of one decoder head."""
        return self.head_width or self.width // self.num_heads

    @property
    def resolved_encoder_head_width(self) -> int:
        """Features of one encoder head."""
        return self.encoder_head_width or self.encoder_width // self.encoder_heads
