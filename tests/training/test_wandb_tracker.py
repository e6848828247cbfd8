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
    monkeypatch.delenv("WANDB_MODE", raising=False)  # Lightning's logger sets it for good when it is offline
    yield
    wandb.teardown()  # its service remembers the settings of the first run


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


def test_a_key_without_a_network_keeps_the_run_offline_under_its_id(tmp_path, tracker, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # the discard port: nobody answers
    mirror = tracker(init_seconds=1.0)
    mirror.start(tracked(tmp_path))
    mirror.log({"train/loss": 2.0}, 10)
    mirror.finish({"validation/gain_over_off": 0.1})
    run_id = json.loads((tmp_path / "wandb.json").read_text())["id"]
    assert [folder.name.endswith(run_id) for folder in tmp_path.glob("wandb/offline-run-*")] == [True]
    assert "wandb cannot be reached" in capsys.readouterr().err


def test_a_login_to_the_server_that_wandb_uses_by_default_counts_as_a_key(tmp_path, tracker, monkeypatch):
    from retroflow.training.wandb_tracker import has_key

    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    host = wandb.Settings().base_url.removeprefix("https://")
    assert not has_key()
    (tmp_path / "netrc").write_text(f"machine {host} login user password {'a' * 40}\n")
    assert has_key()


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
