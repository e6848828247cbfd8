"""A sharded model on a mesh of one rank."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from retroflow.distributed.sharding import build_sharded
from retroflow.model.config import RetroConfig

CONFIG = RetroConfig(
    vocabulary_size=100,
    chunk_length=8,
    width=32,
    num_layers=3,
    num_heads=2,
    cca_layers=(2,),
    encoder_width=16,
    encoder_layers=1,
    encoder_heads=2,
)


def build():
    torch.manual_seed(1)
    model = CONFIG.build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning")
@pytest.mark.parametrize("bf16", [False, True])
def test_a_sharded_model_computes_what_the_whole_one_does(mesh, bf16):
    whole, sharded = build(), build_sharded(build, mesh, prepare=lambda model: None, bf16=bf16)
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(0, 100, (2, 33), generator=generator)
    retrieved = torch.randint(0, 100, (2, 4, 2, 16), generator=generator)
    losses = []
    for model in (whole, sharded):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model.loss(tokens[:, :-1], tokens[:, 1:], retrieved).sum()
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3 if bf16 else 0)  # the gains of norms are rounded, too
    for (_, one), (_, other) in zip(whole.named_parameters(), sharded.named_parameters(), strict=True):
        assert other.dtype == other.grad.dtype == torch.float32
        difference = (other.grad.full_tensor() - one.grad).norm() / one.grad.norm()
        assert difference < (0.03 if bf16 else 1e-5)


def test_gathered_weights_are_bfloat16(mesh):
    model = build_sharded(build, mesh, prepare=lambda model: None, bf16=True)
    seen = {}

    def look(block, arguments):
        seen["block"] = block.feed_forward.expand.weight.dtype

    model.blocks[0].register_forward_pre_hook(look)
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.zeros(1, 8, dtype=torch.int64))
    assert seen == {"block": torch.bfloat16}
