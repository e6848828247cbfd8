"""The four models of Borgeaud et al. 2022 by name (Tables 2 and 10): a recipe says `model: {name: retro_425m}`.

Each is a RetroConfig with other defaults, so every option can still be set beside the name. What the paper leaves
open or contradicts is decided in docs/decisions/0011-the-papers-sizes.md; tests/model/test_paper_sizes.py holds the
parameter counts against the paper's. `positions: rotary` trains faster and has 8 to 9 % fewer parameters.
"""

from dataclasses import dataclass
from typing import Literal

from retroflow.model.config import LayerNumbers, Layers, OrDerived, Positive, RetroConfig
from retroflow.options import checked_options


@checked_options("model")
@dataclass(frozen=True, kw_only=True)
class Retro172M(RetroConfig):
    """172M parameters without embeddings; the baseline decoder has 132M."""

    width: Positive = 896
    num_layers: Layers = 12
    num_heads: Positive = 16
    head_width: OrDerived = 64
    cca_layers: LayerNumbers = (6, 9, 12)
    positions: Literal["rotary", "relative"] = "relative"
    encoder_head_width: OrDerived = 64


@checked_options("model")
@dataclass(frozen=True, kw_only=True)
class Retro425M(RetroConfig):
    """425M parameters without embeddings; the baseline decoder has 368M."""

    width: Positive = 1536
    num_layers: Layers = 12
    num_heads: Positive = 12
    head_width: OrDerived = 128
    cca_layers: LayerNumbers = (6, 9, 12)
    positions: Literal["rotary", "relative"] = "relative"
    encoder_head_width: OrDerived = 64


@checked_options("model")
@dataclass(frozen=True, kw_only=True)
class Retro1B5(RetroConfig):
    """1,451M parameters without embeddings; the baseline decoder has 1,309M."""

    width: Positive = 2048
    num_layers: Layers = 24
    num_heads: Positive = 16
    head_width: OrDerived = 128
    cca_layers: LayerNumbers = (6, 9, 12, 15, 18, 21, 24)
    positions: Literal["rotary", "relative"] = "relative"
    encoder_head_width: OrDerived = 64


@checked_options("model")
@dataclass(frozen=True, kw_only=True)
class Retro7B5(RetroConfig):
    """7,532M parameters without embeddings; the baseline decoder has 6,982M."""

    width: Positive = 4096
    num_layers: Layers = 32
    num_heads: Positive = 32
    head_width: OrDerived = 128
    cca_layers: LayerNumbers = (6, 9, 12, 15, 18, 21, 24, 27, 30)
    positions: Literal["rotary", "relative"] = "relative"
    encoder_head_width: OrDerived = 64
