"""What a comparison says of leakage: planted copies are named, with the bits per byte of what remains."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

import retroflow as rf
from retroflow.comparison.leakage_facts import NOT_LOOKED_FOR, LeakageFacts
from retroflow.evaluation import near_duplicates

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def compared(trained, tmp_path_factory):
    return rf.compare(trained, rows=["off", "on"], output=tmp_path_factory.mktemp("leakage") / "kept")


def test_the_json_has_curves_leaks_and_near_duplicates(compared):
    overlap = json.loads((compared.folder / "comparison.json").read_text())["overlap"]
    assert overlap["alpha"] == [0.125 * eighths for eighths in range(1, 9)] and overlap["of"] == "nearest_10"
    rows = {row.name: row for row in compared.rows}
    for mode in ("on", "off"):
        assert overlap["bits_per_byte"][mode][-1] == pytest.approx(rows[mode].bits_per_byte)
    text, facts = compared.measurements.text, compared.leakage
    for kind in ("neighbours", "nearest_10", "database"):
        assert overlap["with"][kind]["chunks"][-1] == text.chunks.sum()
    assert (facts.overlaps["nearest_10"] >= text.overlaps).all()  # the neighbours are among the nearest
    # A run of an eighth of a chunk or more stands somewhere in the database.
    inside = np.where(text.overlaps >= 0.125, text.overlaps, 0.0)
    assert (facts.overlaps["database"] >= inside).all()
    longest = [max(leak["tokens"].values()) for leak in overlap["leaks"]]
    assert longest == sorted(longest, reverse=True) and min(longest) >= text.chunk_length / 8
    assert all(leak["document"] for leak in overlap["leaks"])


def test_all_leaks_are_listed():
    facts = LeakageFacts({"database": np.full((30, 10), 0.25)}, None, {"0": "copied"})
    sizes = {"documents": np.zeros((30, 80), int), "bytes": np.zeros((30, 10), int)}
    text = SimpleNamespace(chunk_length=8, sequences=np.arange(30), **sizes)
    leaks = facts._leaks(SimpleNamespace(text=text), facts.overlaps)
    assert [leak["chunk"] for leak in leaks] == list(range(300))
    assert leaks[7] == {"chunk": 7, "document": "copied", "tokens": {"database": 2}}


def test_near_duplicates_are_found_once_their_library_is_there(compared, monkeypatch):
    pytest.importorskip("datasketch")
    assert "evaluated documents: 0 in the database" in compared.overlap_statement
    found = LeakageFacts.read(compared.folder)
    assert found.near_duplicates == compared.leakage.near_duplicates
    without = LeakageFacts(found.overlaps, None, found.documents)
    assert without.statement == {"statement": NOT_LOOKED_FOR}
    content = (compared.folder / "leakage.npz").read_bytes()
    without.write(compared.folder)
    assert LeakageFacts.read(compared.folder) is None  # so it is looked for now
    monkeypatch.setattr(near_duplicates.importlib.util, "find_spec", lambda name: None)
    assert LeakageFacts.read(compared.folder).statement == {"statement": NOT_LOOKED_FOR}
    (compared.folder / "leakage.npz").write_bytes(content)
