"""The doctor's checks: what is fine on any machine, and what is said otherwise."""

import json
import os
from collections import namedtuple

import pytest

from retroflow.doctor import machine
from retroflow.doctor.components import Loaded
from retroflow.doctor.machine import Check, check_machine, to_json

Usage = namedtuple("Usage", "total used free")


EXACT = Loaded("retriever", "exact", "retroflow 1")


def checks_of(folder, loaded=(EXACT,)):
    found = {}
    for finding in check_machine(folder, lambda: loaded):
        found.setdefault(finding.name, finding)
    return found


def test_this_machine_is_looked_at_and_nothing_is_left_behind(tmp_path):
    found = checks_of(tmp_path)
    assert {
        "versions",
        "processor",
        "processes",
        "folder",
        "temporary folder",
        "open files",
        "compiler",
    } <= found.keys()
    assert "torch 2" in found["versions"].text
    assert found["processes"].state == found["folder"].state == "ok"
    assert found["retriever exact"] == Check("retriever exact", "ok", "loads, from retroflow 1")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_yet_is_judged_by_the_one_above(tmp_path):
    assert str(tmp_path) in checks_of(tmp_path / "runs" / "deep")["folder"].text
    assert not list(tmp_path.iterdir())


def test_a_read_only_folder_is_a_problem(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(machine.tempfile, "NamedTemporaryFile", refuse)
    assert checks_of(tmp_path)["folder"].state == "problem"


@pytest.mark.parametrize(("free", "state"), [(5e8, "problem"), (5e9, "note"), (5e10, "ok")])
def test_free_disk(tmp_path, monkeypatch, free, state):
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: Usage(1e12, 0, free))
    assert checks_of(tmp_path)["folder"].state == state


@pytest.mark.parametrize(("free", "state"), [(32 << 20, "problem"), (512 << 20, "note"), (8 << 30, "ok")])
def test_shared_memory(tmp_path, monkeypatch, free, state):
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: Usage(1e12, 0, free))
    found = checks_of(tmp_path)["shared memory"]
    assert found.state == state and ("--shm-size" in found.remedy) == (state != "ok")


def test_a_driver_without_a_gpu_is_a_problem_and_no_driver_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(machine.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "_has_driver", lambda: True)
    found = checks_of(tmp_path)["GPU"]
    assert found.state == "problem" and "CUDA build of torch" in found.remedy
    monkeypatch.setattr(machine, "_has_driver", lambda: False)
    assert checks_of(tmp_path)["GPU"].state == "note"


def test_several_gpus_without_nccl_are_a_problem(tmp_path, monkeypatch):
    monkeypatch.setattr(machine.dist, "is_nccl_available", lambda: False)
    assert checks_of(tmp_path)["NCCL"].state == "note"
    monkeypatch.setattr(machine.torch.cuda, "device_count", lambda: 2)
    assert checks_of(tmp_path)["NCCL"].state == "problem"


def test_gloo_that_cannot_connect_is_a_problem(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("gai error: Name or service not known\nmore")

    monkeypatch.setattr(machine.dist, "init_process_group", fail)
    found = checks_of(tmp_path)["processes"]
    assert found.state == "problem" and found.text.endswith("Name or service not known")


def test_a_temporary_folder_elsewhere_is_told_and_harmless(tmp_path, monkeypatch):
    other = next((path for path in ("/dev/shm", "/run") if os.path.isdir(path)), None)
    if other is None or os.stat(other).st_dev == tmp_path.stat().st_dev:
        pytest.skip("one filesystem only")
    monkeypatch.setattr(machine.tempfile, "gettempdir", lambda: other)
    found = checks_of(tmp_path)["temporary folder"]
    assert found.state == "ok" and "another filesystem" in found.text


def test_few_open_files_are_a_note(tmp_path, monkeypatch):
    monkeypatch.setattr(machine.resource, "getrlimit", lambda kind: (256, 4096))
    assert checks_of(tmp_path)["open files"] == Check("open files", "note", "at most 256", "ulimit -n 4096")


def test_missing_distributions_and_both_faiss_builds(tmp_path, monkeypatch):
    def version(name):
        if name in ("torch", "scann"):
            raise machine.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(machine.metadata, "version", version)
    every = list(check_machine(tmp_path, tuple))
    assert Check("versions", "problem", "torch not installed", "pip install retroflow") in every
    assert any(finding.name == "extra scann" and finding.state == "note" for finding in every)
    assert any(finding.state == "problem" and "write over each other" in finding.text for finding in every)


def test_a_component_that_is_optional_is_a_note_and_a_broken_one_a_problem(tmp_path):
    broken = [
        Loaded("retriever", "scann", "retroflow 1", "needs scann", is_optional=True),
        Loaded("retriever", "exact", "retroflow 1", "cannot be loaded"),
    ]
    found = checks_of(tmp_path, broken)
    assert (found["retriever scann"].state, found["retriever exact"].state) == ("note", "problem")


def test_what_is_passed_over_is_a_note(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "unreadable", lambda: ["one that cannot be read"])
    monkeypatch.setattr(machine.KINDS[1], "passed_over", lambda name=None: ["one with a bad name"])
    notes = [finding for finding in check_machine(tmp_path, tuple) if finding.name == "plugins"]
    assert [(note.state, note.text) for note in notes] == [
        ("note", "one that cannot be read"),
        ("note", "one with a bad name"),
    ]


def test_a_check_that_fails_does_not_stop_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "bf16_pays", lambda device: 1 / 0)
    found = checks_of(tmp_path)
    assert found["processor"].state == "problem" and "ZeroDivisionError" in found["processor"].text
    assert "retriever exact" in found


def test_json_says_whether_all_is_well():
    good, bad = Check("a", "note", "b"), Check("c", "problem", "d", "e")
    assert json.loads(to_json([good]))["ok"]
    values = json.loads(to_json([good, bad]))
    assert not values["ok"]
    assert values["checks"][1] == {"name": "c", "state": "problem", "text": "d", "remedy": "e"}
