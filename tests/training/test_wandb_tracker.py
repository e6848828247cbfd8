"""W&B mirrors a run offline, keeps its id, and can never stop a run."""

import json

import pytest

from retroflow.training.trackers import GuardedTracker, TrackedRun

wandb = pytest.importorskip("wandb")


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture
def tracker():
    from retroflow.training.wandb_tracker import WandbTracker

    return WandbTracker


def tracked(folder):
    return TrackedRun(folder=folder, name="tiny-exact-k2-0001", group="tiny", description={"recipe": {"seed": 1}})


def test_without_a_key_the_run_is_kept_offline_under_one_id(tmp_path, tracker, capsys):
    for _ in range(2):
        mirror = tracker()
        mirror.start(tracked(tmp_path))
        mirror.log({"train/loss": 2.0}, 10)
        mirror.finish({"validation/gain_over_off": 0.1})
    run_id = json.loads((tmp_path / "wandb.json").read_text())["id"]
    folders = list(tmp_path.glob("wandb/offline-run-*"))
    assert folders and all(folder.name.endswith(run_id) for folder in folders)
    assert "wandb has no key here" in capsys.readouterr().err


class Broken:
    """A tracker that fails from its third call on."""

    def __init__(self):
        self.calls = 0

    def _call(self):
        self.calls += 1
        if self.calls > 2:
            raise ConnectionError("gone")

    def start(self, run):
        self._call()

    def log(self, metrics, step):
        self._call()

    def finish(self, summary):
        self._call()


def test_a_tracker_that_fails_midway_is_reported_once_and_left_alone(tmp_path, capsys):
    broken = Broken()
    guarded = GuardedTracker(broken)
    guarded.start(tracked(tmp_path))
    for step in range(5):
        guarded.log({"train/loss": 1.0}, step)
    guarded.finish({})
    assert broken.calls == 3
    assert capsys.readouterr().err.splitlines() == ["Broken failed in log (gone); the run goes on without it"]
