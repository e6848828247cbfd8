"""RetroModule is a LightningModule like any other: it trains in a Trainer, with callbacks and a logger, of the user's own."""

import csv
import subprocess
import sys

import pytest
import torch

from retroflow.pretrained.base_models import fingerprint, load_base
from tests.pretrained.bases import make_base, make_options
from tests.training.jobs import VOCABULARY, tiny_config
from tests.training.stock_trainer import fit_stock

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stock")
    return folder, *fit_stock(folder)


def test_it_trains_logs_and_calls_callbacks(unbroken):
    folder, trainer, _, counter = unbroken
    assert trainer.global_step == 12
    assert len(counter.losses) == 12
    assert sum(counter.losses[-3:]) < sum(counter.losses[:3])
    rows = list(csv.DictReader((folder / "lightning_logs" / "version_0" / "metrics.csv").open()))
    assert [int(row["step"]) for row in rows] == list(range(12))
    assert all(float(row["train/loss"]) > 0 for row in rows)


@pytest.mark.parametrize("step", [4, 8])
def test_resumed_from_a_stock_checkpoint_it_ends_with_the_bits_of_an_unbroken_run(unbroken, tmp_path, step):
    folder, _, module, _ = unbroken
    (checkpoint,) = (folder / "checkpoints").glob(f"*step={step}.ckpt")
    _, resumed, counter = fit_stock(tmp_path, checkpoint=checkpoint)
    assert len(counter.losses) == 12 - step
    expected = module.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())


def test_accumulated_it_takes_the_same_steps(tmp_path):
    trainer, _, counter = fit_stock(tmp_path, accumulate=2)
    assert (trainer.global_step, len(counter.losses)) == (12, 24)


def test_two_processes_compute_what_one_does(tmp_path):
    command = [sys.executable, "-m", "tests.training.stock_trainer", str(tmp_path / "two")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr[-2000:]
    weights = torch.load(tmp_path / "two" / "weights.pt", weights_only=True)
    _, alone, _ = fit_stock(tmp_path / "one", model=tiny_config(dropout=0.0))
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6)


def test_a_retrofit_trains_and_its_frozen_base_stays(tmp_path):
    make_base("gpt2", vocab_size=VOCABULARY + 3).save_pretrained(tmp_path / "base")
    config = make_options(base=str(tmp_path / "base"), vocabulary_size=VOCABULARY, cca_layers=(2, 5))
    trainer, module, counter = fit_stock(tmp_path / "run", model=config)
    assert (trainer.global_step, len(counter.losses)) == (12, 12)
    assert torch.equal(fingerprint(module.model.base), fingerprint(load_base(str(tmp_path / "base"))))
    assert sum(counter.losses[-3:]) < sum(counter.losses[:3])
