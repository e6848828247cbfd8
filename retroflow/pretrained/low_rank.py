"""A copy of a base with low-rank maps beside its linear ones (PEFT's LoRA): what reading is compared with."""

import copy
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from retroflow.pretrained.narrow_base import NarrowBase
from retroflow.pretrained.retrofit import RetrofitModel
from retroflow.pretrained.retrofit_config import RetrofitConfig


def with_low_rank_maps(model: RetrofitModel, num_weights: int) -> RetrofitModel:
    """Copy a model's base, and add a low-rank map to each of its linear maps but the output's.

    Source: Hu et al. 2021, LoRA; on all linear maps: Dettmers et al. 2023, QLoRA, section 4.

    Args:
        model: whose base is copied, with its device; it stays as it is. Under bfloat16 autocast the copy is in
            bfloat16, as what reads is.
        num_weights: how many the maps have at least; their rank is the lowest with so many.

    Returns:
        The copy, without retrieval; only its maps are trained, and they are zero at first.
    """
    from peft import LoraConfig, inject_adapter_in_model

    options = RetrofitConfig(
        vocabulary_size=model.config.vocabulary_size,
        chunk_length=model.config.chunk_length,
        base=model.options.base,
        reader="inherit",
    )
    base = NarrowBase().of(model.base)  # a copy already, unless weights stay as they are
    copied = RetrofitModel(options, copy.deepcopy(base) if base is model.base else base)
    output = copied.base.get_output_embeddings()
    linear = [each for each in copied.base.modules() if isinstance(each, nn.Linear | Conv1D) and each is not output]
    of_rank_1 = sum(sum(each.weight.shape) for each in linear)
    rank = -(-num_weights // of_rank_1)
    has_transposed = any(isinstance(each, Conv1D) for each in linear)
    maps: Any = LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", fan_in_fan_out=has_transposed)
    inject_adapter_in_model(maps, copied.base)
    for weight in copied.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()  # bfloat16 would lose the optimizer's small steps
    return copied
