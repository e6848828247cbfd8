"""What can be trained of reading by inheritance: maps on the path from a position to its neighbours, and on no other.

    s_ij = f_a (q_i + U_q D_q x_i) k_j / sqrt(h) + c_a    logits of a neighbour's token j; own logits stay as they are
    o_i  = own_i + (1 + U_o D_o) theirs_i                 own and theirs: the two parts of one softmax's sum

with x the layer's input to its attention, a factor f and an offset c for each head a, and low-rank maps over all heads.
f = 1, c = 0 and U = 0 at step 0, which is reading without training. U_q D_q x is not rotated: it asks as if from the
place where neighbours end, whatever the position in the text. A position without neighbours computes nothing of this.

Shapes: b batch, t tokens, a heads, g heads of keys (a multiple of g is a), h features of a head, s own keys, j tokens
of neighbours, d features of the base.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retroflow.integrations.retrofit_config import RetrofitConfig
from retroflow.model.config import RetroConfig


class LowRankMap(nn.Module):
    """Computes U D x, zero at step 0.

    Args:
        inputs: features of x.
        outputs: features of the result.
        rank: features between D and U.
    """

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, inputs) * inputs**-0.5)
        self.up = nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, x: Tensor) -> Tensor:
        """Map float [..., inputs] to [..., outputs]."""
        return F.linear(F.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))


class ReadingMaps(nn.Module):
    """The trained part of one layer's reading.

    Args:
        trained: among "scale" (factor and offset), "query" and "answer".
        width: d.
        num_heads: a.
        head_width: h.
        rank: of the maps.
    """

    def __init__(self, trained: Iterable[str], *, width: int, num_heads: int, head_width: int, rank: int) -> None:
        super().__init__()
        inner, scale = num_heads * head_width, "scale" in trained
        self.num_heads = num_heads
        self.factor = nn.Parameter(torch.ones(num_heads)) if scale else None
        self.offset = nn.Parameter(torch.zeros(num_heads)) if scale else None
        self.query = LowRankMap(width, inner, rank) if "query" in trained else None
        self.answer = LowRankMap(inner, inner, rank) if "answer" in trained else None

    def question(self, x: Tensor) -> Tensor | None:
        """Compute what is added to the queries that ask neighbours.

        Args:
            x: float [b, t, d], the input of the layer's attention.

        Returns:
            float [b, a, t, h]; None without a query map.
        """
        return None if self.query is None else self.query(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def attend(
        self,
        query: Tensor,
        question: Tensor | None,
        own: tuple[Tensor, Tensor],
        theirs: tuple[Tensor, Tensor],
        mask: Tensor | None,
        *,
        dropout: float,
        scaling: float | None,
    ) -> Tensor:
        """Attend as the module's own words say.

        Args:
            query: float [b, a, t, h], positions in it.
            question: float [b, a, t, h], from `question`.
            own: keys and values, float [b, g, s, h] each.
            theirs: keys and values of neighbours, float [b, g, j, h] each.
            mask: bool [b, 1, t, s + j], True where a key is seen; None for all.
            dropout: of attention, in training.
            scaling: of the logits; None for 1 / sqrt(h).

        Returns:
            float [b, a, t, h].
        """
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        asking = query if question is None else query + question
        if self.factor is not None:
            asking = asking * self.factor[:, None, None].to(query.dtype)
        of_theirs = _logits(asking, theirs[0]) * scale
        if self.offset is not None:
            of_theirs = of_theirs + self.offset[:, None, None].to(of_theirs.dtype)
        logits = torch.cat((_logits(query, own[0]) * scale, of_theirs), dim=-1)
        if mask is not None:
            logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)  # padding sees nothing: no -inf
        wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
        shares = F.dropout(logits.softmax(-1, dtype=wide).to(query.dtype), dropout)
        to_own, to_theirs = shares.split((own[0].shape[2], theirs[0].shape[2]), dim=-1)
        answers = _weighted(to_theirs, theirs[1])
        if self.answer is not None:
            flat = answers.transpose(1, 2).flatten(2)
            answers = answers + self.answer(flat).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return _weighted(to_own, own[1]) + answers


def make_maps(options: RetrofitConfig, config: RetroConfig) -> list[ReadingMaps]:
    """Make the maps of each reading layer, which are `cca_layers` of the config; none where nothing is trained."""
    sizes = {"width": config.width, "num_heads": config.num_heads, "head_width": config.resolved_head_width}
    return [ReadingMaps(options.trained, rank=options.rank, **sizes) for _ in config.cca_layers if options.trained]


def _logits(query: Tensor, key: Tensor) -> Tensor:
    """Products of queries [b, a, t, h] with keys [b, g, s, h]: [b, a, t, s]."""
    by_key = query.unflatten(1, (key.shape[1], -1)).flatten(2, 3)  # [b, g, a / g * t, h]
    return (by_key @ key.to(query.dtype).mT).unflatten(2, (-1, query.shape[2])).flatten(1, 2)


def _weighted(shares: Tensor, value: Tensor) -> Tensor:
    """Sums [b, a, t, h] of values [b, g, s, h], weighted by shares [b, a, t, s]."""
    by_key = shares.unflatten(1, (value.shape[1], -1)).flatten(2, 3)
    return (by_key @ value.to(shares.dtype)).unflatten(2, (-1, shares.shape[2])).flatten(1, 2)
