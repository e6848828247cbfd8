"""A process ends with its parent, however that one ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CHILD = "from retroflow.distributed import parent_death as lifeline; {patch}; lifeline.end_with_parent({parent}); print('up', flush=True); import time; time.sleep(600)"
PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1].replace("PARENT", str(os.getpid()))], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


def is_alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("patch", ["pass", "lifeline.kill_with_parent = lambda parent: False"])
def test_a_child_ends_when_its_parent_is_killed(patch):
    """By the kernel, and where it cannot by looking."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    code = CHILD.format(patch=patch, parent="PARENT")
    parent = subprocess.Popen([sys.executable, "-c", PARENT, code], stdout=subprocess.PIPE, text=True, env=environment)
    child = int(parent.stdout.readline())
    assert is_alive(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 300
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(child)


def test_a_child_whose_parent_is_gone_already_ends_at_once():
    code = CHILD.format(patch="pass", parent=1 << 22)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)
    assert ended.returncode == 1 and not ended.stdout
