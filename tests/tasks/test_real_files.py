"""The published files of the tasks, where they are at hand, are read whole."""

import os
from pathlib import Path

import pytest

from retroflow.tasks.files import find_file
from retroflow.tasks.running import TASKS

DATA = os.environ.get("RETROFLOW_TEST_DATA")
pytestmark = pytest.mark.skipif(DATA is None, reason="RETROFLOW_TEST_DATA names no folder with real text")


@pytest.mark.parametrize(("name", "examples"), [("lambada", 5153), ("nq_open", 3610), ("xquad", 1190)])
def test_every_line_is_an_example(name, examples):
    task = TASKS[name]
    found = task.read(find_file(name, task.files, task.lines, Path(str(DATA))))
    assert len(found) == examples
    if name == "lambada":
        assert all(" " not in one.word and one.context for one in found)
    else:
        assert all(one.answers and one.prompt.endswith("\nanswer:") for one in found)
