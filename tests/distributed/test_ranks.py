"""Who a process is among those that a launcher has started, and what ranks tell each other."""

import pytest
import torch

from retroflow.distributed.ranks import ALONE, Ranks, ranks_of_this_process
from retroflow.training.callbacks import Metrics
from retroflow.training.lightning_environment import RanksEnvironment

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "node0"}
SLURM = {"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_JOB_NAME": "fit"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ALONE),
        (TORCHRUN, Ranks(5, 8, 1, 4, "torchrun")),
        (TORCHRUN | {"RETROFLOW_LAUNCHED": "17"}, Ranks(5, 8, 1, 4, "retroflow")),
        (SLURM, Ranks(5, 8, 1, 4, "slurm")),
        (SLURM | TORCHRUN, Ranks(5, 8, 1, 4, "torchrun")),  # torchrun under SLURM
        (TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, ALONE),
        (SLURM | {"SLURM_NTASKS": "1"}, ALONE),
        (SLURM | {"SLURM_JOB_NAME": "interactive"}, ALONE),
        ({name: value for name, value in TORCHRUN.items() if name != "LOCAL_RANK"}, ALONE),
    ],
)
def test_the_environment_says_who_a_process_is(environment, expected):
    assert ranks_of_this_process(environment) == expected


def test_slurm_tasks_know_where_to_meet_without_asking(monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "1234567")
    monkeypatch.setenv("SLURM_STEP_NODELIST", "gpu[07-09]")
    environment = RanksEnvironment(ranks_of_this_process(SLURM))
    assert (environment.main_address, environment.main_port) == ("gpu07", 19567)
    assert (environment.global_rank(), environment.node_rank(), environment.local_rank()) == (5, 1, 1)


def test_a_process_alone_decides_and_sums_alone():
    assert ALONE.agree(lambda: 7) == 7
    assert ALONE.gather([1.5, 2]) == [[1.5, 2.0]] and ALONE.total([1.5, 2]) == [1.5, 2.0]


def log_metrics(rank, world_size):
    ranks = Ranks(rank=rank, world_size=world_size, local_size=world_size)
    return Metrics(None, None, None, None, ranks)


def window(callback):
    return float(callback._nats), int(callback._window_tokens)


def test_an_unfinished_window_goes_back_to_the_rank_it_came_from():
    state = {"windows": [[1.25, 3.0], [2.5, 4.0]], "tokens": 70}
    for rank, expected in enumerate([(1.25, 3), (2.5, 4)]):
        callback = log_metrics(rank, 2)
        callback.load_state_dict(state)
        assert window(callback) == expected and callback.tokens == 70


def test_with_another_number_of_ranks_an_unfinished_window_is_counted_once():
    windows = []
    for rank in range(3):
        callback = log_metrics(rank, 3)
        callback.load_state_dict({"windows": [[1.25, 3.0], [2.5, 4.0]], "tokens": 70})
        windows.append(window(callback))
    assert torch.tensor(windows, dtype=torch.float64).sum(0).tolist() == [3.75, 7.0]
