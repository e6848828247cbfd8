"""The opponents of reading as rows: on a run's own database, whatever the batch, with options."""

import re

import numpy as np
import pytest

import retroflow as rf
from retroflow.comparison.row_options import RowOptions, split_options
from retroflow.errors import UsageError
from retroflow.evaluation.modes import MODES

pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = ["rows.ram_stride=5", "rows.ram_candidates=3", "rows.ram_rank=4", "rows.oracle_candidates=3", "rows.knn_k=9"]


def test_every_row_of_a_run_is_measured_and_none_depends_on_the_batch(trained, tmp_path):
    ways = [["trainer.eval_batch_size=1"], ["trainer.eval_batch_size=3"]]
    one, three = (rf.compare(trained, *SMALL, *way, rows="all", sequences=4, output=tmp_path / way[0]) for way in ways)
    assert [row.name for row in one.rows] == list(MODES) and not one.left_out
    for row, other in zip(one.rows, three.rows, strict=True):
        assert row.nats == pytest.approx(other.nats, abs=1e-4), row.name
    rows = {row.name: row for row in one.rows}
    assert rows["oracle"].nats <= rows["on"].nats + 1e-6
    assert {rows[name].sequences for name in MODES} == {2, 4}
    facts = rows["knn_lm"].facts
    keys = int(facts["keys"].split(" ")[0].replace(",", ""))
    assert len(facts["mixtures"]) == 2 and facts["mixtures"][0]["weight"] > 0
    assert rows["knn_lm"].computation_per_token * rows["knn_lm"].tokens > keys + rows["off"].tokens


def test_a_row_of_another_size_is_measured_again_and_no_other(trained, tmp_path):
    first = rf.compare(trained, *SMALL, rows=["off", "in_context_ram"], sequences=2, output=tmp_path)
    files = {path.name: path.read_bytes() for path in (tmp_path / "rows").iterdir()}
    again = rf.compare(
        trained, *SMALL, "rows.ram_stride=4", rows=["off", "in_context_ram"], sequences=2, output=tmp_path
    )
    assert (tmp_path / "rows/off.npz").read_bytes() == files["off.npz"]
    before, after = (found.measurements.rows["in_context_ram"].token_nats for found in (first, again))
    assert (before[:, :3] == after[:, :3]).all() and not np.allclose(before, after, atol=1e-3)


def test_prompts_may_be_as_frequent_as_wanted(trained, tmp_path):
    rows = ["off", "in_context"]
    chunks = rf.compare(trained, rows=rows, sequences=2, output=tmp_path)
    same = rf.compare(trained, "rows.in_context_stride=8", rows=rows, sequences=2, output=tmp_path)
    assert same.rows[1].nats == pytest.approx(chunks.rows[1].nats, abs=1e-5)  # a chunk has 8 tokens
    often = rf.compare(trained, "rows.in_context_stride=3", rows=rows, sequences=2, output=tmp_path)
    assert often.rows[1].computation_per_token > 1.5 * same.rows[1].computation_per_token
    assert abs(often.rows[1].nats - same.rows[1].nats) > 1e-4


def test_a_stride_that_no_prompt_has_room_for_is_refused(trained, tmp_path):
    for word, row in (("rows.ram_stride=99", "in_context_ram"), ("rows.in_context_stride=99", "in_context")):
        with pytest.raises(UsageError, match=f"^{word}: one prompt predicts so many tokens, and has room for "):
            rf.compare(trained, word, rows=[row], sequences=1, output=tmp_path)


def test_a_window_without_room_for_a_passage_is_refused(trained, tmp_path):
    options, rows = ["rows.ram_rank=9", "rows.ram_stride=4"], ["off", "in_context_ram"]  # a chunk has 8 tokens
    with pytest.raises(UsageError, match="^rows.ram_window=11: the last 11 tokens of a window are text, so it has no "):
        rf.compare(trained, *options, "rows.ram_window=11", rows=rows, sequences=1, output=tmp_path)
    with pytest.raises(UsageError, match="no room for a passage; give 14 or more"):
        rf.compare(trained, *options, "rows.ram_window=13", rows=["in_context_ram_reranked"], sequences=1)
    found = rf.compare(trained, *options, "rows.ram_window=12", rows=rows, sequences=1, output=tmp_path)
    assert abs(found.rows[0].nats - found.rows[1].nats) > 1e-5


def test_keys_of_another_database_leave_out_the_evaluated_documents(trained, tmp_path):
    folder = trained.parents[2]
    corpus = next((folder / "tiny").glob("*.jsonl"))  # with the documents that are held out
    tokenizer = next((folder / "tiny" / "artifacts").glob("chunks-*")) / "tokenizer"
    database = rf.Database.build(tmp_path / "all", corpus, tokenizer=str(tokenizer), chunk_length=8, retriever="bm25")
    rows = ["off", "topic_matched", "in_context_ram", "knn_lm"]
    found = rf.compare(trained, *SMALL, database=database.folder, rows=rows, sequences="all", output=tmp_path / "c")
    keys = [
        int(number.replace(",", ""))
        for number in re.findall(r"^([0-9,]+) of ([0-9,]+) ", found.rows[3].facts["keys"])[0]
    ]
    held_out = found.to_json()["text"]["predicted_tokens"]
    assert 0 <= keys[1] - keys[0] - held_out <= 3  # first tokens of sequences


def test_options_of_rows_are_checked():
    options, rest = split_options(["rows.ram_window=99", "trainer.device=cpu", "rows.knn_tokens=7"])
    assert (options.ram_window, options.knn_tokens, rest) == (99, 7, ["trainer.device=cpu"])
    assert options.of("knn_lm") == {"knn_k": 1024, "knn_tokens": 7} and options.of("on") == {}
    assert {name.split("_")[0] for name in RowOptions().of("in_context_ram_reranked")} == {"ram"}
    with pytest.raises(UsageError, match='rows has no option "ram_strid"'):
        split_options(["rows.ram_strid=4"])
    with pytest.raises(UsageError, match="rows.ram_stride is 0; allowed: a whole number of at least 1"):
        split_options(["rows.ram_stride=0"])
