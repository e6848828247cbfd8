"""Progress: plain lines with rate and time left, nothing for short work."""

import logging
import threading

import pytest

from retroflow import console
from retroflow import console as module
from retroflow.console import progress, say, saying_if_slow
from retroflow.planning.outline import outline
from tests.training.jobs import tiny_config


def test_short_work_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("work", 10, "chunks") as advance:
        advance(10)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("total", "line"), [(40, "work: 10/40 chunks, 5/s, 6 s left"), (None, "work: 10 chunks, 5/s")])
def test_long_work_shows_rate_and_time_left(capsys, monkeypatch, total: int | None, line: str) -> None:
    clock = iter([0.0, 0.5, 2.0, 3.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with progress("work", total, "chunks") as advance:
        advance(0)
        advance(10)
        advance(1)
    assert capsys.readouterr().err == line + "\n"


def test_a_terminal_gets_a_bar(capsys, monkeypatch) -> None:
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(module, "FIRST_SECONDS", -1.0)
    with progress("work", 10, "chunks") as advance:
        advance(4)
        advance(6)
    output = capsys.readouterr()
    assert output.out == "" and "work" in output.err


def test_a_bar_inside_another_is_a_line_below_it(capsys, monkeypatch) -> None:
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(module, "FIRST_SECONDS", -1.0)
    with progress("outer", 10, "passes") as advance:
        advance(4)
        with progress("inner", None, "keys") as inner:
            inner(3)
            assert [task.description for task in module._BARS.get().tasks] == ["outer", "inner"]
        advance(6)
        assert [task.description for task in module._BARS.get().tasks] == ["outer"]
    assert module._BARS.get() is None and "outer" in capsys.readouterr().err


def test_say_writes_to_stderr(capsys) -> None:
    say("a line")
    assert capsys.readouterr() == ("", "a line\n")


def test_everything_that_is_shown_can_be_silenced_and_sent_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    logger, lines = logging.getLogger("retroflow"), []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler = Keep()
    say("shown")
    logger.addHandler(handler)
    try:
        say("100 % kept")
        logger.setLevel(logging.WARNING)
        say("silent")
        with progress("work", 2, "rows") as advance:
            advance(2)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    assert capsys.readouterr().err == "shown\n100 % kept\n"
    assert lines == ["100 % kept"]


def test_what_takes_long_is_said_and_what_does_not_is_not(monkeypatch):
    said = threading.Event()
    texts = []
    monkeypatch.setattr(console, "say", lambda text: (texts.append(text), said.set()))
    with saying_if_slow("at work", seconds=0.01):
        assert said.wait(60)
    with saying_if_slow("at once", seconds=3600):
        pass
    assert texts == ["at work"]


def test_counting_parameters_says_so_if_it_takes_long(monkeypatch):
    texts = []

    class Timer:
        def __init__(self, seconds, act, words):
            self.act, self.words = act, words

        def start(self):
            texts.extend(self.words)

        def cancel(self):
            pass

    monkeypatch.setattr(console.threading, "Timer", Timer)
    outline(tiny_config())
    assert texts == ["still counting the model's parameters, layer by layer"]
