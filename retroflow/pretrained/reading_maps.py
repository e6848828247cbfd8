"""What can be trained of reading by inheritance: maps that act where a position reads neighbours, and nowhere else.

    s_ij = f_a (q_i + U_q D_q x_i) k_j / sqrt(h) + c_a    logits of a neighbour's token j; own logits stay as they are
    o_i  = own_i + (1 + U_o D_o) theirs_i                 own and theirs: the two parts of one softmax's sum
    y_i  = W x_i + U D x_i                                every linear map W of the layer ("layers")

with x the layer's input to its attention, a factor f and an offset c for each head a, and low-rank maps over all heads.
f = 1, c = 0 and U = 0 at step 0, which is reading without training. U_q D_q x is not rotated: it asks as if from the
place where neighbours end, whatever the position in the text. At a position without neighbours all this adds nothing.
What an own key is made of is decided at the key's position, so a cache holds for all later ones.

Shapes: b batch, t tokens, a heads, g heads of keys (a multiple of g is a), h features of a head, s own keys, j tokens
of neighbours, d features of the base.
"""

from collections.abc import Iterable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from retroflow.model.config import RetroConfig
from retroflow.pretrained.retrofit_config import RetrofitConfig

_MARGIN = 8
"""Features of a widened head beside the two halves, of which the first is used; kernels want multiples of 8."""


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

    def forward(self, x: Tensor, where: Tensor | None = None) -> Tensor:
        """Map float [..., inputs] to [..., outputs]; 0 where `where`, float [..., 1], is 0 and not 1."""
        inner = F.linear(x, self.down.to(x.dtype))
        return F.linear(inner if where is None else inner * where, self.up.to(x.dtype))


class ReadingMaps(nn.Module):
    """The trained part of one layer's reading.

    Args:
        trained: among "scale" (factor and offset), "query", "answer" and "layers".
        width: d.
        num_heads: a.
        head_width: h.
        rank: of the maps.
        linear: the layer's linear maps, by name, for "layers".

    Attributes:
        layers: for each of them a map beside it.
    """

    def __init__(
        self,
        trained: Iterable[str],
        *,
        width: int,
        num_heads: int,
        head_width: int,
        rank: int,
        linear: Mapping[str, nn.Linear | Conv1D] | None = None,
    ) -> None:
        super().__init__()
        inner, scale = num_heads * head_width, "scale" in trained
        self.num_heads = num_heads
        self.factor = nn.Parameter(torch.ones(num_heads)) if scale else None
        self.offset = nn.Parameter(torch.zeros(num_heads)) if scale else None
        self.query = LowRankMap(width, inner, rank) if "query" in trained else None
        self.answer = LowRankMap(inner, inner, rank) if "answer" in trained else None
        mapped = linear if linear and "layers" in trained else {}
        self.layers = nn.ModuleDict({name: LowRankMap(*_sizes(each), rank) for name, each in mapped.items()})

    @property
    def widens(self) -> bool:
        """Whether own keys and neighbours' are asked, or answer, differently."""
        return any(each is not None for each in (self.factor, self.query, self.answer))

    def question(self, x: Tensor) -> Tensor | None:
        """Compute what is added to the queries that ask neighbours.

        Args:
            x: float [b, t, d], the input of the layer's attention.

        Returns:
            float [b, a, t, h]; None without a query map.
        """
        return None if self.query is None else self.query(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def asking(self, query: Tensor, question: Tensor | None) -> Tensor:
        """Make the queries float [b, a, t, h] that ask neighbours; arguments as in `side_by_side`."""
        asking = query if question is None else query + question
        return asking if self.factor is None else asking * self.factor[:, None, None].to(query.dtype)

    def side_by_side(
        self,
        query: Tensor,
        question: Tensor | None,
        own: tuple[Tensor, Tensor],
        theirs: tuple[Tensor, Tensor],
        scaling: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Widen heads so that one attention asks own keys and neighbours' differently, and keeps their sums apart.

        Queries are [q, asking neighbours, offset / scaling], own keys [k, 0, 0], neighbours' [0, k, 1]; values alike.

        Args:
            query: float [b, a, t, h], positions in it.
            question: float [b, a, t, h], from `question`.
            own: keys and values, float [b, g, s, h] each.
            theirs: keys and values of neighbours, float [b, g, j, h] each.
            scaling: of the logits.

        Returns:
            Queries float [b, a, t, w], keys and values float [b, g, s + j, w] each, w = 2h + 8.
        """
        width = query.shape[-1]
        asking = self.asking(query, question)
        last = query.new_zeros(_MARGIN)
        last[0] = 1.0
        offsets = query.new_zeros(self.num_heads) if self.offset is None else self.offset.to(query.dtype) / scaling
        marked = (offsets[:, None, None] * last).expand(*query.shape[:-1], -1)
        keys, values = (
            torch.cat((F.pad(mine, (0, width + _MARGIN)), F.pad(other, (width, _MARGIN))), dim=2)
            for mine, other in zip(own, theirs, strict=True)
        )
        keys[:, :, own[0].shape[2] :, 2 * width] = 1.0
        return torch.cat((query, asking, marked), dim=-1), keys, values

    def together(self, sums: Tensor) -> Tensor:
        """Add up what own keys and neighbours answer.

        Args:
            sums: float [b, a, t, w], of attention with what `side_by_side` returns.

        Returns:
            float [b, a, t, h].
        """
        width = (sums.shape[-1] - _MARGIN) // 2
        own, answers, _ = sums.split((width, width, _MARGIN), dim=-1)
        return own + self.answering(answers)

    def answering(self, answers: Tensor) -> Tensor:
        """Map what neighbours answer, float [b, a, t, h]."""
        if self.answer is None:
            return answers
        mapped: Tensor = self.answer(answers.transpose(1, 2).flatten(2))
        return answers + mapped.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def make_maps(options: RetrofitConfig, config: RetroConfig, blocks: Mapping[int, nn.Module]) -> list[ReadingMaps]:
    """Make the maps of each reading layer; none where nothing is trained.

    Args:
        options: of the recipe.
        config: sizes of the base.
        blocks: number of a reading layer, from 1 -> the layer.
    """
    sizes = {"width": config.width, "num_heads": config.num_heads, "head_width": config.resolved_head_width}
    return [
        ReadingMaps(options.trained, rank=options.rank, linear=dict(linear_maps(block)), **sizes)
        for block in blocks.values()
        if options.trained
    ]


def linear_maps(block: nn.Module) -> Iterator[tuple[str, nn.Linear | Conv1D]]:
    """Yield the linear maps of a layer, each with a name for a module that belongs to it."""
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            yield name.replace(".", "_"), module


def _sizes(linear: nn.Linear | Conv1D) -> tuple[int, int]:
    """Features that a linear map gets and gives."""
    outputs, inputs = linear.weight.shape
    return (outputs, inputs) if isinstance(linear, Conv1D) else (inputs, outputs)
