"""Reads W&B's offline files back with wandb's own record types.

A `.wandb` file is a 7-byte header and LevelDB's log format: blocks of 32 KiB that hold pieces of records, each piece
with checksum (4 bytes), length (2 bytes) and kind (whole, first, middle, last).
"""

import json

import wandb
from wandb.proto import wandb_internal_pb2

_BLOCK, _HEADER = 1 << 15, 7
_WHOLE, _LAST = 1, 4


def read_records(path):
    """Yield every record of a `.wandb` file."""
    data, position, pending = path.read_bytes(), _HEADER, b""
    assert data[:4] == b":W&B"
    while position + _HEADER <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < _HEADER:
            position += left
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        pending += data[position + _HEADER : position + _HEADER + length]
        position += _HEADER + length
        if kind in (_WHOLE, _LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pending)
            pending = b""
            yield record


class OfflineRun:
    """What one `offline-run-*` folder holds: run, config, history rows, summary, artifacts, tables."""

    def __init__(self, folder):
        self.folder = folder
        self.config, self.history, self.summary, self.artifacts, self.run = {}, [], {}, {}, None
        for record in read_records(next(folder.glob("*.wandb"))):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.run = record.run
                self.config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif kind == "history":
                self.history.append(_values(record.history.item))
            elif kind == "summary":
                self.summary |= _values(record.summary.update)
            elif kind == "artifact":
                self.artifacts[record.artifact.type] = record.artifact
        self.tables = [json.loads(path.read_text()) for path in sorted(folder.rglob("*.table.json"))]

    def rows(self, key):
        """(step, value) of each row of the history that has the key."""
        return [(row["trainer/global_step"], row[key]) for row in self.history if key in row]


def _values(items):
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def offline_runs(run_folder):
    """All offline runs of a run folder, oldest first, when W&B's process has written everything."""
    wandb.teardown()
    return [OfflineRun(folder) for folder in sorted(run_folder.glob("wandb/offline-run-*"))]
