"""The forward pass of transformers, for GPUs and for BERT-like models that packed_bert does not support."""

from typing import Any

import torch
from torch import Tensor


class PaddedBert:
    """A transformers encoder with padded, masked batches.

    Args:
        network: from AutoModel, on its device, in its dtype.
        pad_id: the token that fills short texts; its states are masked out of attention and mean.
    """

    def __init__(self, network: Any, pad_id: int) -> None:
        self._network = network
        self._pad_id = pad_id

    def pooled(self, token_ids: list[list[int]]) -> Tensor:
        """Return the mean of the last hidden layer over each text, float32 [texts, d], on the network's device."""
        width = max(len(ids) for ids in token_ids)
        tokens = torch.tensor([ids + [self._pad_id] * (width - len(ids)) for ids in token_ids])
        mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in token_ids])
        device = self._network.device
        tokens, mask = tokens.to(device), mask.to(device)
        states = self._network(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
        mean: Tensor = (states * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        return mean
