"""Which device an option called device means."""

import pytest
import torch

from retroflow.devices import choose_device
from retroflow.errors import UsageError


@pytest.mark.parametrize(
    ("wanted", "available", "chosen"),
    [
        ("auto", True, "cuda"),
        ("auto", False, "cpu"),
        ("cpu", True, "cpu"),
        ("cpu", False, "cpu"),
        ("cuda", True, "cuda"),
    ],
)
def test_a_device_is_chosen(monkeypatch, wanted, available, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert choose_device(wanted, "device") == chosen


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        UsageError, match=r'^trainer.device is "cuda", but torch finds no CUDA device here; use "auto" or "cpu"\.$'
    ):
        choose_device("cuda", "trainer.device")
