"""Each plugin is loaded where it can do no harm, and whoever cannot be loaded is named."""

import json
import os
import re
import subprocess
import sys

import pytest

from retroflow.doctor import components as component_check
from retroflow.doctor.components import ComponentCheck
from retroflow.registry import Entry, Registry
from tests.waiting import wait_until

HANGING = """
import os, pathlib, subprocess, time
started = subprocess.Popen(["sleep", "600"])
file = pathlib.Path(__file__).with_name("processes")
file.with_suffix(".new").write_text(f"{os.getpid()} {started.pid}")
file.with_suffix(".new").rename(file)
time.sleep(600)
"""
PLUGINS = {
    "good": "from importlib import metadata\nmetadata.entry_points()\nclass Part: pass",  # as torch does
    "raising": "class Part: pass\nraise ValueError('broken inside')",
    "interrupting": "class Part: pass\nraise KeyboardInterrupt",
    "exiting": "class Part: pass\nimport sys; sys.exit(0)",
    "ending": "class Part: pass\nimport os; os._exit(0)",
    "crashing": "class Part: pass\nimport os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "hanging": f"class Part: pass\n{HANGING}",
    "talking": "print('noise'); class_ = 1\nclass Part: pass",
    "a_spoiling": "import sys; sys.modules['fractions'] = None\nclass Part: pass",
    "m_spoilt": "import fractions\nclass Part: pass",
    "z_spoiling": "import sys; sys.modules['fractions'] = None\nclass Part: pass",
    "lacking": "class Part: pass\nif True: import nowhere_to_be_found",
    "latin": "class Part: pass\n\n# caf\xe9\n",
}
PROGRAM = """
import json, sys
from dataclasses import asdict
from retroflow.registry import Registry
from retroflow.doctor import components as component_check
component_check.KINDS = (Registry("retriever", "retroflow.retrievers", {}),)
with component_check.ComponentCheck(seconds=float(sys.argv[1])) as check:
    found = [asdict(loaded) for loaded in check.results()]
print(json.dumps({loaded["name"]: loaded for loaded in found}))
"""


def install(folder, name):
    """Lay out a distribution with one retriever as pip would."""
    (folder / f"plugin_{name}.py").write_bytes(PLUGINS[name].encode("latin-1"))
    info = folder / f"plugin_{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: plugin-{name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[retroflow.retrievers]\nmy_{name} = plugin_{name}:Part\n")


def start(folder, seconds):
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    words = [sys.executable, "-c", PROGRAM, str(seconds)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)


def assert_gone(processes):
    """Wait for processes to be gone, or dead and not yet collected by whoever has inherited them."""
    for process in processes:
        wait_until(lambda process=process: _state(process) in ("", "Z"))


def _state(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def test_every_plugin_gets_its_verdict_however_another_behaves(tmp_path):
    behaving = {name for name in PLUGINS if name != "hanging" and "spoil" not in name}
    for name in behaving:
        install(tmp_path, name)
    stranger = tmp_path / "stranger-1.0.dist-info"
    stranger.mkdir()
    (stranger / "entry_points.txt").write_bytes(b"[some.group]\n\xff = a:b\n")
    output, _ = start(tmp_path, 200.0).communicate(timeout=250)
    found = {name.removeprefix("my_"): loaded for name, loaded in json.loads(output).items()}
    assert behaving <= found.keys()  # others may be installed for real
    assert found["good"]["error"] is found["talking"]["error"] is None
    for name, words in {
        "raising": "broken inside. Ask its authors; if you do not need it: pip uninstall plugin-raising",
        "interrupting": '"my_interrupting" of plugin-interrupting 1.0 raised KeyboardInterrupt while it was loaded',
        "exiting": "SystemExit",
        "ending": "plugin-ending 1.0 ended the process (exit code 0) while it was loaded",
        "crashing": "ended the process (signal 11) while it was loaded. Ask its authors; if you do not need it: pip",
        "lacking": 'needs the module "nowhere_to_be_found", which is not installed',
        "latin": "plugin_latin.py:3: not UTF-8",
    }.items():
        assert words in found[name]["error"], name
        assert found[name]["owner"] == f"plugin-{name} 1.0"
        assert found[name]["is_optional"]  # nobody has asked for it


def test_what_a_plugin_does_to_its_process_is_no_fault_of_another(tmp_path):
    for name in PLUGINS:
        if "spoil" in name:
            install(tmp_path, name)
    output, _ = start(tmp_path, 200.0).communicate(timeout=250)
    assert json.loads(output)["my_m_spoilt"]["error"] is None


def test_a_plugin_that_hangs_is_given_up_and_named(tmp_path):
    install(tmp_path, "hanging")
    output, _ = start(tmp_path, 1.0).communicate(timeout=250)
    hanging = json.loads(output)["my_hanging"]
    assert '"my_hanging" of plugin-hanging 1.0 did not end within 1 s while it was loaded. Ask' in hanging["error"]
    assert hanging["is_optional"]
    if (tmp_path / "processes").exists():  # it had begun
        assert_gone((tmp_path / "processes").read_text().split())


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_nothing_outlives_a_check_that_is_killed(tmp_path):
    install(tmp_path, "hanging")
    checking = start(tmp_path, 600.0)
    try:
        wait_until(lambda: (tmp_path / "processes").exists() or checking.poll() is not None)
    finally:
        checking.kill()
        checking.wait()
    child, started = (tmp_path / "processes").read_text().split()
    assert_gone([child])
    os.kill(int(started), 9)  # what a plugin starts is its own, and not seen by the kernel's signal


def test_leaving_a_check_ends_what_still_runs(tmp_path, monkeypatch):
    install(tmp_path, "hanging")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setattr(component_check, "KINDS", (Registry("retriever", "retroflow.retrievers", {}),))

    def interrupt():
        with ComponentCheck(seconds=600.0):
            wait_until((tmp_path / "processes").exists)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert_gone((tmp_path / "processes").read_text().split())


@pytest.mark.parametrize(
    ("answer", "error", "is_optional"),
    [
        ({"error": None, "is_optional": False}, None, False),
        ({"error": "needs scann", "is_optional": True}, "needs scann", True),
        (
            "ended the process (signal 4)",
            'part "scann" of retroflow .* ended the process .* damaged, or built for',
            False,
        ),
    ],
)
def test_a_built_in_that_is_broken_is_no_option(answer, error, is_optional):
    registry = Registry("part", "retroflow.parts", {"scann": Entry("a:b", extra="scann")})
    judged = component_check._judged(registry, "scann", answer)
    assert judged.is_optional == is_optional
    assert re.search(error, judged.error) if error else judged.error is None
