"""A frozen base under bfloat16 autocast: a copy with bfloat16 weights computes what autocast would, in less time.

Autocast casts weights in every call, and computes norms and sums in float32. The copy is made once. The base stays as
it is, and is what is fingerprinted, saved and exported.
"""

import copy
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel


def has_adapters(base: nn.Module) -> bool:
    """Whether PEFT has put adapters into a base, which can be switched on and off at any time."""
    return any(".base_layer." in name for name, _ in base.named_parameters())


def version_of(weights: Sequence[Tensor]) -> tuple[int, int]:
    """Return what changes if weights change in place: the number of changes, and a hash of one number of each weight.

    PEFT merges an adapter into `weight.data`, which is not counted.

    Args:
        weights: float [...] each.
    """
    counted = sum(weight._version for weight in weights if not weight.is_inference())
    if any(isinstance(weight, DTensor) for weight in weights):
        return counted, 0
    ends = [weight.detach().reshape(-1)[-1].double() for weight in weights if weight.numel()]
    return counted, hash(tuple(torch.stack(ends).tolist()) if ends else ())


class NarrowBase:
    """Holds the copy of a base."""

    def __init__(self) -> None:
        self._copy: tuple[Any, PreTrainedModel] | None = None
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> "NarrowBase":
        return NarrowBase()

    def of(self, base: PreTrainedModel) -> PreTrainedModel:
        """Return what to run: under bfloat16 autocast the copy, unless the base is trained, adapted or sharded."""
        device = base.device.type
        if not torch.is_autocast_enabled(device) or torch.get_autocast_dtype(device) != torch.bfloat16:
            return base
        weights = list(base.parameters())
        if has_adapters(base) or any(weight.requires_grad or isinstance(weight, DTensor) for weight in weights):
            return base
        made_of = (base.device, base.dtype, version_of(weights))
        with self._lock:
            if self._copy is None or self._copy[0] != made_of:
                with torch.inference_mode(False), torch.no_grad():
                    # Buffers stay as they are: rounded frequencies would be other positions.
                    rounded: dict[int, Any] = {
                        id(weight): nn.Parameter(weight.to(torch.bfloat16), requires_grad=False) for weight in weights
                    }
                    self._copy = made_of, copy.deepcopy(base, rounded)
            return self._copy[1]

    @contextmanager
    def running(self, base: PreTrainedModel) -> Iterator[PreTrainedModel]:
        """Yield what to run, with autocast off while it is the copy."""
        chosen, device = self.of(base), base.device.type
        with torch.autocast(device, enabled=chosen is base and torch.is_autocast_enabled(device)):
            yield chosen
