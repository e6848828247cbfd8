"""The formulas of costs.py against torch's own counters."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from retroflow.model.config import RetroConfig
from retroflow.planning.costs import activation_bytes, forward_flops, training_flops

SMALL = {
    "vocabulary_size": 97,
    "chunk_length": 8,
    "width": 24,
    "num_layers": 3,
    "num_heads": 3,
    "head_width": 10,
    "cca_layers": (2, 3),
    "encoder_width": 16,
    "encoder_layers": 2,
    "encoder_heads": 2,
    "encoder_cross_attention_layers": (1,),
}
AIDS = {
    "smear": True,
    "next_token_values": True,
    "copy_initialisation": True,
    "cca_scale": 10.0,
    "share_encoder_embeddings": True,
    "cca_heads": 1,
    "cca_positions": False,
}


def counted(config, length, k, *, backward=False):
    """FLOPs that torch counts for one sequence."""
    model = config.build()
    tokens = torch.randint(0, config.vocabulary_size, (1, length))
    shape = (1, length // config.chunk_length, k, config.retrieved_length)
    retrieved = torch.randint(0, config.vocabulary_size, shape) if k else None
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:  # whose products the counter sees one by one
        loss = model.loss(tokens, tokens, retrieved).sum()
        if backward:
            loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("k", [0, 1, 3])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        AIDS,
        {"share_encoder_embeddings": True},
        {"feed_forward_width": 50, "encoder_feed_forward_width": 20},
        {"encoder_layers": 0, "encoder_cross_attention_layers": ()},
        {"cca_layers": (), "encoder_cross_attention_layers": ()},
        {"encoder_head_width": 6},
        {"retrieved_part": "continuation"},
        {"positions": "relative"},
        {"positions": "relative", "cca_positions": False, "cca_heads": 2},
        AIDS | {"positions": "relative", "cca_positions": True},
    ],
    ids=lambda changes: "+".join(changes) or "plain",
)
def test_forward_flops_are_what_torch_counts(changes, k):
    config = RetroConfig(**(SMALL | changes))
    assert forward_flops(config, 32, k) == counted(config, 32, k)


def test_the_backward_pass_costs_about_twice_the_forward_pass():
    config = RetroConfig(**SMALL)
    # Not exactly: what the first layers' inputs would need is not computed.
    assert training_flops(config, 64, 2) == pytest.approx(counted(config, 64, 2, backward=True), rel=0.05)


def kept(config, length, k, *, bf16):
    """Bytes that autograd keeps for one sequence's backward pass, weights and logits left out."""
    model = config.build()
    weights = {parameter.shape for parameter in model.parameters()}  # in bfloat16, too
    storages = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if tensor.shape not in weights and tensor.shape[::-1] not in weights:
            storages[storage.data_ptr()] = (storage.nbytes(), tensor)  # kept alive, so that no pointer comes twice
        return tensor

    tokens = torch.randint(0, config.vocabulary_size, (1, length))
    shape = (1, length // config.chunk_length, k, config.retrieved_length)
    retrieved = torch.randint(0, config.vocabulary_size, shape) if k else None
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            model.loss(tokens, tokens, retrieved).sum()
    return sum(size for size, _ in storages.values())


LARGER = SMALL | {"chunk_length": 32, "width": 96, "num_heads": 4, "head_width": 24, "encoder_width": 64}


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("k", [0, 2])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_layers": 6, "cca_layers": (3, 6)},
        {"encoder_layers": 4},
        {"cca_layers": (1, 2, 3)},
        {"positions": "relative"},
    ],
    ids=str,
)
def test_activation_bytes_are_about_what_autograd_keeps(changes, k, bf16):
    config = RetroConfig(**(LARGER | changes))
    estimated = activation_bytes(config, 256, k, value_bytes=2 if bf16 else 4)
    assert estimated == pytest.approx(kept(config, 256, k, bf16=bf16), rel=0.25)


def test_checkpointing_keeps_two_blocks_and_the_inputs_of_all():
    config = RetroConfig(**(LARGER | {"num_layers": 24, "cca_layers": (12, 24)}))
    whole = activation_bytes(config, 256, 0, value_bytes=4)
    checkpointed = activation_bytes(config, 256, 0, value_bytes=4, checkpointing=True)
    assert 24 * 256 * 96 * 4 < checkpointed < whole / 5
