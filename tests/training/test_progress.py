"""Off a terminal the first step is told at once, then a line now and then; on one there is a live line."""

import pytest
from rich.console import Console

from retroflow.training import progress as module
from retroflow.training.progress import TrainingProgress, clock


class Clock:
    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def time(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_the_first_step_is_told_at_once_and_does_not_count_for_the_time_left(time, capsys):
    progress = TrainingProgress(1000)
    progress.start(0)
    time.now += 30.0  # compiling, say
    progress.first_step_done(1, 9.5)
    progress.advance(1)
    assert capsys.readouterr().err == "step 1/1,000  loss 9.5000  first step took 30.0 s\n"
    for step in range(2, 12):
        time.now += 1.0
        if step == 10:
            progress.measured(8.25, 512.0)
        progress.advance(step)
    assert capsys.readouterr().err.splitlines() == [
        "step 6/1,000  loss 9.5000  16:34 left",
        "step 11/1,000  loss 8.2500  512 tokens/s  16:29 left",
    ]


def test_lines_become_rarer_in_a_long_run(time, capsys):
    progress = TrainingProgress(10_000)
    progress.start(0)
    progress.first_step_done(1, 1.0)
    for step in range(2, 3602):
        time.now += 1.0
        progress.advance(step)
    assert 60 < len(capsys.readouterr().err.splitlines()) < 120  # an hour: every 5 s would be 720


def test_the_last_step_is_always_told(time, capsys):
    progress = TrainingProgress(3)
    progress.start(1)
    progress.first_step_done(2, 1.0)
    time.now += 0.1
    progress.measured(0.5, 10.0)
    progress.advance(3)
    assert capsys.readouterr().err.splitlines()[-1] == "step 3/3  loss 0.5000  10 tokens/s  0:00 left"


def test_on_a_terminal_there_is_one_live_line_with_loss_speed_and_time_left(time, monkeypatch):
    console = Console(force_terminal=True, width=120, record=True)
    monkeypatch.setattr(module, "Console", lambda stderr: console)
    progress = TrainingProgress(100)
    progress.start(0)
    progress.first_step_done(1, 3.0)
    time.now += 2.0
    progress.measured(2.5, 1234.0)
    progress.advance(3)
    progress.note(3, {"validation/loss_on": 1.5})
    progress.stop()
    shown = console.export_text()
    assert "3/100" in shown and "loss 2.5000  1,234 tokens/s  1:37 left" in shown
    assert "step 3  validation/loss_on 1.5000" in shown


def test_on_a_narrow_terminal_the_steps_are_whole(time, monkeypatch):
    console = Console(force_terminal=True, width=80, record=True)
    monkeypatch.setattr(module, "Console", lambda stderr: console)
    progress = TrainingProgress(800_000)
    progress.start(123_456)
    progress.first_step_done(123_457, 3.0)
    time.now += 2.0
    progress.measured(2.5, 1_234_567.0)
    progress.advance(123_458)
    progress.stop()
    shown = console.export_text()
    assert "123458/800000" in shown and "loss 2.5000  1,234,567 tokens/s" in shown


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61.4, "1:01"), (3600, "1:00:00"), (90061, "25:01:01")])
def test_clock(seconds, text):
    assert clock(seconds) == text
