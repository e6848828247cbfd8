"""metrics.jsonl when the disk is full, and after a kill in the middle of a line."""

import json
import resource

import pytest

from retroflow.errors import RetroflowError
from retroflow.runs.metrics import MetricsLog, read_metrics


def steps(folder):
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", ["append", "append_throughput"])
def test_a_full_disk_is_told_with_its_remedy_and_closing_says_no_more(tmp_path, method):
    log = MetricsLog(tmp_path)
    log.append(1, {"train/loss": 2.0})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(
            RetroflowError, match=r"metrics cannot be written \(.*File too large\); free space, then continue"
        ):
            getattr(log, method)(2, {"train/loss": 1.0})
        log.close()  # as `train` does; what could not be written must not fail here again
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert steps(tmp_path) == [1]


def test_a_disk_that_fails_at_the_sync_is_told_too(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("retroflow.runs.metrics.os.fsync", full)
    with pytest.raises(RetroflowError, match="metrics cannot be written .*No space left on device"):
        log.sync()
    log.close()


@pytest.mark.parametrize(
    "torn", ['{"step": 3, "tra', '{"step": 3, "train/loss": 1.0}', "\0\0\0\0\n", "nonsense\n", "[3]\n", b"\xff\xfe\n"]
)
def test_a_torn_or_foreign_line_is_cut_away(tmp_path, torn):
    log = MetricsLog(tmp_path)
    log.append(1, {"train/loss": 2.0})
    log.append(2, {"train/loss": 1.0})
    log.close()
    whole = {name: (tmp_path / name).read_bytes() for name in ("metrics.jsonl", "metrics.csv")}
    for name in whole:
        with (tmp_path / name).open("ab") as file:
            file.write(torn if isinstance(torn, bytes) else torn.encode())
    MetricsLog(tmp_path, step=2).close()
    assert {name: (tmp_path / name).read_bytes() for name in whole} == whole


@pytest.mark.parametrize("method", ["append", "append_throughput"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_json_does_not_have_is_not_written(tmp_path, method, value):
    log = MetricsLog(tmp_path)
    with pytest.raises(RetroflowError, match=r"(metrics|throughput)\.jsonl, step 2: a number in it is NaN or infinite"):
        getattr(log, method)(2, {"train/loss": value})
    log.close()
    assert not (tmp_path / "metrics.jsonl").read_text() + (tmp_path / "throughput.jsonl").read_text()


def test_whole_lines_are_read_again_and_damaged_ones_are_left_out(tmp_path):
    assert read_metrics(tmp_path) == []
    lines = [
        '{"step": 2, "train/loss": 1.0}',
        "torn {",
        "3",
        '{"step": "4"}',
        '{"step": 6}',
        '{"step": 8}',
        '{"step": 1',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert read_metrics(tmp_path) == [{"step": 2, "train/loss": 1.0}, {"step": 6}, {"step": 8}]
    assert read_metrics(tmp_path, most=2) == [{"step": 6}, {"step": 8}]
