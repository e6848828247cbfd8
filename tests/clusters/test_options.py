"""Flags of `prepare --on`: each complaint is one line that says what is allowed."""

import sys
from pathlib import Path

import pytest

from retroflow.cli.main import run
from retroflow.clusters.options import Shares, open_cluster, parse_options
from retroflow.errors import MissingExtraError, UsageError
from tests.pipeline.recipes import recipe_file


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--on pbs --shares 2", '--on is "pbs"; allowed: slurm, ray, local.'),
        ("--on ray", "--on ray needs the number of shards: --shares N"),
        ("--on ray --shares 0", "--shares is 0; allowed: 1 to 100000."),
        ("--on ray --shares 2 --retries -1", "--retries is -1; allowed: 0 or more."),
        ("--on ray --shares 2 --merge", "--on makes the shards itself; leave out --shard, --merge, --wait and --step."),
        ("--on ray --shares 2 --on-option fast", '--on-option is "fast"; allowed: KEY=VALUE'),
        ("--on ray --shares 2 --on-option a=[", '--on-option is "a=["; allowed: KEY=VALUE'),
        ("--shares 2", "--shares is given without --on, which it is for"),
        ("--retries 2", "--retries is given without --on, which it is for"),
        ("--step", "--step is given, and neither --shard nor --merge, which it is for"),
    ],
)
def test_flags_that_do_not_fit_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str, words: str
) -> None:
    assert run(["prepare", "--recipe", str(recipe_file(tmp_path)), *flags.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and error.count("\n") == 1
    assert not (tmp_path / "artifacts").exists()


def test_values_are_yaml() -> None:
    words = ["timeout_min=240", "partition=gpu", "setup=[module load cuda, ulimit -n 4096]", "mem_gb=1.5"]
    assert parse_options(words) == {
        "timeout_min": 240,
        "partition": "gpu",
        "setup": ["module load cuda", "ulimit -n 4096"],
        "mem_gb": 1.5,
    }


@pytest.mark.parametrize(("on", "library", "extra"), [("ray", "ray", "ray"), ("slurm", "submitit", "slurm")])
def test_a_missing_library_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, on: str, library: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"retroflow.clusters.{on}", raising=False)
    with pytest.raises(MissingExtraError, match=rf'--on {on}: needs {library}.*pip install "retroflow\[{extra}\]"'):
        open_cluster(Shares(on, 2), tmp_path)


@pytest.mark.parametrize(
    ("on", "options", "words"),
    [
        ("slurm", {"nodes": 2}, r'--on slurm has no option "nodes"; allowed: timeout_min, .*partition'),
        ("local", {"partition": "gpu"}, r'--on local has no option "partition"; allowed: timeout_min'),
        ("local", {"timeout_min": "long"}, '--on local: submitit refuses the options: .*"timeout_min"'),
        ("slurm", {}, "--on slurm: sbatch is not on this machine. Run the command where jobs are submitted"),
    ],
)
def test_submitit_options_are_checked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, on: str, options: dict[str, object], words: str
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=words):
        open_cluster(Shares(on, 2, options=options), tmp_path / "logs")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nodes": 2}, r'--on ray has no option "nodes"; allowed: address, num_cpus'),
        ({"address": "localhost:1"}, "--on ray: nothing answers at the address localhost:1"),
        ({"memory_gb": "8GB"}, '--on-option: memory_gb is "8GB"; allowed: a number above 0'),
        ({"num_cpus": -1}, "--on ray: .*num_cpus cannot be negative"),
    ],
)
def test_ray_options_are_checked(tmp_path: Path, options: dict[str, object], words: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(UsageError, match=words):
        open_cluster(Shares("ray", 2, options=options), tmp_path)
