"""The four models of Borgeaud et al. 2022 by name (Tables 2 and 10): a recipe says `model: {name: retro_425m}`.

Each is a RetroConfig with other defaults, so every option can still be set beside the name. What the paper leaves
open or contradicts is decided in docs/decisions/0011-the-papers-sizes.md; tests/model/test_paper_sizes.py holds the
parameter counts against the paper's. `positions: rotary` trains faster and has 8 to 9 % fewer parameters.
"""

from dataclasses import dataclass
from typing import Literal

from retroflow.model.config import RetroConfig


@dataclass(frozen=True, kw_only=True)
class Retro172M(RetroConfig):
    """172M parameters without embeddings; the baseline decoder has 132M."""

    width: int = 896
    num_layers: int = 12
    num_heads: int = 16
    head_width: int = 64
    cca_layers: tuple[int, ...] = (6, 9, 12)
    positions: Literal["rotary", "relative"] = "relative"
    encoder_head_width: int = 64


@dataclass(frozen=True, kw_only=True)
class Retro425M(RetroConfig):
    """425M parameters without embeddings; the baseline decoder has 368M."""

    width: int = 1536
    num_layers: int = 12
    num_heads: int = 12
    head_width: int = 128
    cca_layers: tuple[int, ...] = (6, 9, 12)
    positions: Literal["rotary", "relative"] = "relative"
    encoder_head_width: int = 64


@dataclass(frozen=True, kw_only=True)
class Retro1B5(RetroConfig):
    """1,451M parameters without embeddings; the baseline decoder has 1,309M."""

    width: int = 2048
    num_layers: int = 24
    num_heads: int = 16
    head_width: int = 128
    cca_layers: tuple[int, ...] = (6, 9, 12, 15, 18, 21, 24)
    positions: Literal["rotary", "relative"] = "relative"
    encoder_head_width: int = 64


@dataclass(frozen=True, kw_only=True)
class Retro7B5(RetroConfig):
    """7,532M parameters without embeddings; the baseline decoder has 6,982M."""

    width: int = 4096
    num_layers: int = 32
    num_heads: int = 32
    head_width: int = 128
    cca_layers: tuple[int, ...] = (6, 9, 12, 15, 18, 21, 24, 27, 30)
    positions: Literal["rotary", "relative"] = "relative"
    encoder_head_width: int = 64
