"""Speed is told per window, FLOPs of steps without retrieval are fewer, and MFU needs a known peak."""

import pytest

from retroflow.planning.costs import training_flops
from retroflow.planning.throughput import Throughput, peak_flops_of
from retroflow.training.fit import throughput_of
from retroflow.training.lightning_module import drops_retrieval
from tests.training.jobs import tiny_config, tiny_job


def test_steps_without_retrieval_count_what_they_cost():
    speed = Throughput(step_flops=100.0, step_flops_off=40.0, is_off=lambda step: step % 2 == 1, peak_flops=1000.0)
    reading = speed.metrics(4, 7, tokens=60, seconds=2.0)  # steps 4, 5, 6
    assert reading == {"seconds": 2.0, "tokens_per_second": 30.0, "model_flops_per_second": 120.0, "mfu": 0.12}


def test_a_peak_so_small_that_the_share_is_infinite_gives_none():
    throughput = Throughput(100.0, 50.0, lambda step: False, 5e-324)
    assert "mfu" not in throughput.metrics(0, 2, tokens=60, seconds=2.0)


def test_without_a_peak_there_is_no_mfu_and_without_a_formula_no_flops():
    speed = Throughput(step_flops=100.0, step_flops_off=40.0, is_off=lambda step: False, peak_flops=None)
    assert set(speed.metrics(0, 1, tokens=1, seconds=1.0)) == {"seconds", "tokens_per_second", "model_flops_per_second"}
    speed = Throughput(step_flops=None, step_flops_off=None, is_off=lambda step: False, peak_flops=1e12)
    assert set(speed.metrics(0, 1, tokens=1, seconds=1.0)) == {"seconds", "tokens_per_second"}


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("Tesla P100-PCIE-16GB", None),
        ("Orca L400", None),
    ],
)
def test_peaks_by_name(name, peak):
    assert peak_flops_of(name) == peak


def test_a_jobs_flops_are_those_of_its_batches(tmp_path):
    job = tiny_job(tmp_path, peak_flops=2e9, retrieval_dropout=0.5)
    speed = throughput_of(job)
    assert speed.step_flops == 4 * training_flops(tiny_config(), 12, 2)
    assert speed.step_flops_off == 4 * training_flops(tiny_config(), 12, 0) < speed.step_flops
    assert speed.peak_flops == 2e9
    assert [speed.is_off(step) for step in range(20)] == [drops_retrieval(1, step, 0.5) for step in range(20)]
    assert not any(
        throughput_of(tiny_job(tmp_path, retrieval=False, retrieval_dropout=1.0)).is_off(s) for s in range(3)
    )


def test_on_a_cpu_there_is_no_peak_unless_it_is_given(tmp_path):
    assert throughput_of(tiny_job(tmp_path)).peak_flops is None
