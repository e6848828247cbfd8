"""One GPU: bf16, compiled, and sharded over a group of one, against plain float32 there. Run with `-m gpu`."""

import pytest
import torch

from tests.training.jobs import tiny_config
from tests.training.test_strategies import metrics, trained

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def losses(runs, **options):
    _, run = trained(runs, device="cuda", validate_every=6, model=tiny_config(dropout=0.0), **options)
    return [line["train/loss"] for line in metrics(run) if "train/loss" in line]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return losses(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"strategy": "fsdp"}, 1e-6),
        ({"activation_checkpointing": True}, 1e-6),
        ({"precision": "bf16"}, 0.05),
        ({"strategy": "fsdp", "precision": "bf16", "activation_checkpointing": True}, 0.05),
        ({"compile": True}, 1e-4),
        ({"strategy": "fsdp", "compile": True, "precision": "bf16"}, 0.05),
    ],
)
def test_each_way_to_train_on_a_gpu_learns_alike(tmp_path, plain, options, tolerance):
    assert losses(tmp_path, **options) == pytest.approx(plain, abs=tolerance)


def test_the_same_weights_on_every_kind_of_device(tmp_path):
    weights = []
    for device in ("cpu", "cuda"):
        job, _ = trained(tmp_path / device, device=device, max_steps=1)
        job.module.release()
        with torch.device(device):
            job.module.configure_model()
        weights.append({name: value.detach().cpu() for name, value in job.module.model.named_parameters()})
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
