"""A BERT forward pass for the CPU without padding: the texts of a batch are concatenated.

transformers pads and masks each batch, and its attention on a CPU without AMX spends a fifth of the time outside the
multiplications. Here the linear layers get one packed matrix, and attention gets runs of texts of equal length, so
nothing is padded or masked. Query, key and value are one multiplication. Rates: docs/embedders.md.

Shapes: t packed wordpieces, s texts of a run, w wordpieces of a text, d width, h heads.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class Run:
    """Consecutive texts of equal length in the packed matrix."""

    start: int
    count: int
    length: int

    @property
    def rows(self) -> slice:
        """The run's rows of the packed matrix."""
        return slice(self.start, self.start + self.count * self.length)


@dataclass(frozen=True)
class _Layer:
    query_key_value: tuple[Tensor, Tensor]
    attention_output: tuple[Tensor, Tensor]
    attention_norm: tuple[Tensor, Tensor]
    expansion: tuple[Tensor, Tensor]
    contraction: tuple[Tensor, Tensor]
    output_norm: tuple[Tensor, Tensor]


class PackedBert:
    """The weights of a transformers BertModel, arranged for packed texts.

    Args:
        network: a BertModel with absolute positions and exact GELU, see `fits`.
    """

    def __init__(self, network: Any) -> None:
        config = network.config
        self._heads: int = config.num_attention_heads
        self._epsilon: float = config.layer_norm_eps
        embeddings = network.embeddings
        self._words: Tensor = embeddings.word_embeddings.weight
        # All texts are of segment 0, so its vector is added to every position in advance.
        self._positions: Tensor = embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
        self._embedding_norm = _pair(embeddings.LayerNorm)
        self._layers = [self._arrange(layer) for layer in network.encoder.layer]

    @staticmethod
    def fits(network: Any, device: torch.device) -> bool:
        """Return whether this network, on this device, can and should run packed."""
        config = network.config
        return bool(
            device.type == "cpu"
            and type(network).__name__ == "BertModel"
            and config.hidden_act == "gelu"
            and getattr(config, "position_embedding_type", None) in (None, "absolute")
            and not config.is_decoder
        )

    def _arrange(self, layer: Any) -> _Layer:
        attention = layer.attention.self
        # exp(q.k / sqrt(d/h)) = exp2(q'.k): the scale is in the query's weights, and exp2 takes a third of the
        # time of exp in torch on AVX-512 (0.5 against 1.5 ns per element in float32, Zen 4, 2026-11-21).
        scale = LOG2_E / math.sqrt(attention.query.out_features // self._heads)
        return _Layer(
            query_key_value=(
                torch.cat([_scaled(attention.query.weight, scale), attention.key.weight, attention.value.weight]),
                torch.cat([_scaled(attention.query.bias, scale), attention.key.bias, attention.value.bias]),
            ),
            attention_output=_pair(layer.attention.output.dense),
            attention_norm=_pair(layer.attention.output.LayerNorm),
            expansion=_pair(layer.intermediate.dense),
            contraction=_pair(layer.output.dense),
            output_norm=_pair(layer.output.LayerNorm),
        )

    def pooled(self, token_ids: list[list[int]]) -> Tensor:
        """Return the mean of the last hidden layer over each text.

        Args:
            token_ids: wordpieces of each text, none empty; fastest if texts of equal length are adjacent.

        Returns:
            float32 [texts, d]. Not finite if an attention score is beyond 2^127: the row's maximum is not subtracted
            before exp, since that would cost as much as exp. The caller must check.
        """
        runs = _runs([len(ids) for ids in token_ids])
        positions = torch.cat([torch.arange(run.length).repeat(run.count) for run in runs])
        flat = torch.tensor([token for ids in token_ids for token in ids])
        states = self._words[flat] + self._positions[positions]  # [t, d]
        states = self._norm(states, self._embedding_norm)
        for layer in self._layers:
            mixed = self._attend(functional.linear(states, *layer.query_key_value), runs)
            states = self._norm(functional.linear(mixed, *layer.attention_output).add_(states), layer.attention_norm)
            expanded = functional.gelu(functional.linear(states, *layer.expansion))
            states = self._norm(functional.linear(expanded, *layer.contraction).add_(states), layer.output_norm)
        width = states.shape[1]
        return torch.cat([states[run.rows].view(run.count, run.length, width).float().mean(dim=1) for run in runs])

    def _norm(self, states: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
        return functional.layer_norm(states, (states.shape[1],), *weights, self._epsilon)

    def _attend(self, query_key_value: Tensor, runs: list[Run]) -> Tensor:
        """Compute softmax attention within each text, from [t, 3 d] to [t, d]."""
        width = query_key_value.shape[1] // 3
        head = width // self._heads
        mixed = query_key_value.new_empty(query_key_value.shape[0], width)
        for run in runs:
            split = query_key_value[run.rows].view(run.count, run.length, 3, self._heads, head)
            query, key, value = split.permute(2, 0, 3, 1, 4).reshape(3, run.count * self._heads, run.length, head)
            weights = torch.bmm(query, key.transpose(1, 2)).exp2_()  # [s h, w, w], not yet divided by the row sums
            attended = torch.bmm(weights, value).div_(weights.sum(dim=2, keepdim=True))
            attended = attended.view(run.count, self._heads, run.length, head).transpose(1, 2)
            mixed[run.rows].view(run.count, run.length, self._heads, head).copy_(attended)
        return mixed


def _runs(lengths: list[int]) -> list[Run]:
    runs: list[Run] = []
    start = 0
    for length in lengths:
        if runs and runs[-1].length == length:
            runs[-1] = Run(runs[-1].start, runs[-1].count + 1, length)
        else:
            runs.append(Run(start, 1, length))
        start += length
    return runs


def _pair(module: Any) -> tuple[Tensor, Tensor]:
    return module.weight.detach(), module.bias.detach()


def _scaled(weight: Tensor, scale: float) -> Tensor:
    return (weight.detach().float() * scale).to(weight.dtype)
