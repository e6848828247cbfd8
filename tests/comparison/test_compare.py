"""A comparison has evaluate's numbers, is measured once, and continues where it was killed, bit for bit."""

import csv
import io
import json
import re
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

import retroflow as rf
from retroflow import console
from retroflow.comparison import compare as comparing
from retroflow.comparison import measuring
from retroflow.comparison.compare import chosen, compare
from retroflow.comparison.rows import ROWS
from retroflow.comparison.run_plan import RunPlan
from retroflow.comparison.subject import Subject
from retroflow.errors import Interrupted, Preempted, RetroflowError, UsageError
from retroflow.evaluation.modes import MODES
from retroflow.pretrained.retrofit import RetrofitModel
from retroflow.pretrained.retrofit_config import RetrofitConfig
from tests.pretrained.bases import make_base
from tests.training.jobs import VOCABULARY, Killed, kill, tiny_job

pytestmark = pytest.mark.filterwarnings("ignore")


ROWS_OF_RUN = ["off", "on", "shuffled", "random"]


class Made:
    """A plan for a job in memory with a small base."""

    def __init__(self, job, folder, sequences=None):
        self._job, self.folder, self._sequences = job, folder, sequences
        self.definition, self.stated = {"kind": "made"}, {"model": {}, "database": {}}
        self.opened = 0

    def open(self, check):
        self.opened += 1
        job, count = self._job, len(self._job.splits.validation())
        sequences = np.arange(count) if self._sequences is None else self._sequences
        return Subject(
            model=job.module.model,
            placement=job.placement,
            splits=job.splits,
            sequences=np.asarray(sequences),
            seed=job.seed,
            batch_size=job.options.eval_batch_size,
            step=job.step,
            search=None,
            reads=True,
            check=check,
        )


def make_plan(folder, *, family="llama", sequences=None, **trainer):
    job = tiny_job(folder, **trainer)
    options = RetrofitConfig(vocabulary_size=VOCABULARY, chunk_length=4, base="in memory", reader="inherit")
    job.module.model = RetrofitModel(options, make_base(family)).eval()
    return Made(job, folder, sequences)


def printed(comparison):
    stream = io.StringIO()
    Console(file=stream, width=200).print(comparison.render())
    return stream.getvalue()


def nats_of(comparison):
    return {name: row.token_nats for name, row in comparison.measurements.rows.items()}


def test_every_mode_has_a_function_and_every_function_a_mode():
    assert ROWS.keys() == MODES.keys()


def test_a_run_s_rows_are_what_evaluate_measures(trained):
    found = rf.compare(trained, rows=ROWS_OF_RUN)
    wanted = rf.evaluate(trained).measures
    for row in found.rows:
        assert row.nats == pytest.approx(wanted[row.name].loss, abs=1e-6) and row.tokens == wanted["on"].tokens
        assert row.bits_per_byte == pytest.approx(wanted[row.name].bits_per_byte, abs=1e-6)
        assert row.gain == (None if row.name == "off" else pytest.approx(found.rows[0].nats - row.nats))
    assert found.folder.parent == trained / "comparisons"
    assert json.loads((found.folder / "comparison.json").read_text()) == json.loads(json.dumps(found.to_json()))
    assert any(sentence.startswith("Overlap: ") for sentence in found.to_json()["findings"])


def test_what_was_measured_is_not_measured_again_and_no_model_is_opened(tmp_path, monkeypatch):
    plan = make_plan(tmp_path)
    first = compare(plan, rows=["off", "on"])
    monkeypatch.setitem(ROWS, "off", kill)
    monkeypatch.setitem(ROWS, "on", kill)
    more = compare(plan, rows=["off", "on", "in_context"])
    assert plan.opened == 2 and [row.name for row in more.rows] == ["off", "on", "in_context"]
    again = compare(plan, rows=["off", "on"])
    assert plan.opened == 2 and again.rows == first.rows
    assert more.rows[0] == first.rows[0] and more.rows[2].tokens == first.rows[0].tokens


@pytest.mark.parametrize("after", [1, 2, 5])
def test_a_killed_comparison_continues_with_the_same_bits(tmp_path, monkeypatch, after):
    rows = ["off", "on", "in_context"]
    whole = nats_of(compare(make_plan(tmp_path / "whole", eval_batch_size=2), rows=rows))
    plan, written = make_plan(tmp_path / "killed", eval_batch_size=2), []
    monkeypatch.setattr(measuring, "SECONDS_BETWEEN_WRITES", 0.0)
    before = measuring.write_row

    def write(*arguments):
        written.append(arguments)
        if len(written) > after:
            raise Killed
        before(*arguments)

    monkeypatch.setattr(measuring, "write_row", write)
    with pytest.raises(Killed):
        compare(plan, rows=rows)
    monkeypatch.setattr(measuring, "write_row", before)
    found = nats_of(compare(plan, rows=rows))
    for name in rows:
        assert found[name].tobytes() == whole[name].tobytes()


def test_what_a_comparison_that_was_killed_early_left_is_not_taken_for_another_s(tmp_path, monkeypatch):
    """It was killed before subject.json was written, and the next one in the same folder is of other sequences."""
    first, kept = make_plan(tmp_path, sequences=[0, 1, 2]), tmp_path / "kept"
    first.definition = {"kind": "other"}
    monkeypatch.setattr(comparing, "write_text", lambda *_: kill())
    with pytest.raises(Killed):
        compare(first, rows=["off", "on"], output=kept)
    assert (kept / "text.npz").is_file() and (kept / "leakage.npz").is_file()
    monkeypatch.undo()
    plan = make_plan(tmp_path, sequences=[1, 3])
    found = compare(plan, rows=["off", "on"], output=kept)
    assert found.measurements.text.sequences.tolist() == [1, 3] and found.leakage.overlaps["database"].shape[0] == 2


def test_a_killed_comparison_continues_in_other_batches(tmp_path, monkeypatch):
    plan, before = make_plan(tmp_path, eval_batch_size=2), measuring.write_row
    monkeypatch.setattr(measuring, "SECONDS_BETWEEN_WRITES", 0.0)

    def kill_after_the_first(*arguments):
        before(*arguments)
        raise Killed

    monkeypatch.setattr(measuring, "write_row", kill_after_the_first)
    with pytest.raises(Killed):
        compare(plan, rows=["off"])
    monkeypatch.setattr(measuring, "write_row", before)
    plan._job = replace(plan._job, options=replace(plan._job.options, eval_batch_size=3))
    found = compare(plan, rows=["off"]).measurements
    assert sorted(found.rows["off"].sequences) == found.text.sequences.tolist()


def test_leakage_that_is_lost_is_looked_for_again(tmp_path):
    plan = make_plan(tmp_path)
    first = compare(plan, rows=["off", "on"])
    (first.folder / "leakage.npz").unlink()
    again = compare(plan, rows=["off", "on"])
    assert plan.opened == 2 and again.overlap_statement == first.overlap_statement
    assert nats_of(again)["on"].tobytes() == nats_of(first)["on"].tobytes()


def test_a_damaged_row_is_measured_again_and_one_of_something_else_too(tmp_path, caplog):
    plan = make_plan(tmp_path)
    first = compare(plan, rows=["off", "on"])
    file = first.folder / "rows" / "on.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    again = compare(plan, rows=["off", "on"])
    assert plan.opened == 2 and nats_of(again)["on"].tobytes() == nats_of(first)["on"].tobytes()
    shutil.copy(first.folder / "rows" / "off.npz", file)
    assert nats_of(compare(plan, rows=["off", "on"]))["on"].tobytes() == nats_of(first)["on"].tobytes()


def test_rows_that_do_not_exist_or_cannot_be_had(trained, tmp_path):
    with pytest.raises(UsageError, match="^rows='onn': there is no such row. Did you mean \"on\"\\? Known: off, on, "):
        chosen(["onn"])
    assert [mode.name for mode in chosen("on,off")] == ["off", "on"]
    assert [mode.name for mode in chosen(["all"])] == list(MODES)
    off = "trainer.retrieval=false"
    with pytest.raises(UsageError, match="^rows='on': it cannot be measured, because the model reads no neighbours"):
        rf.compare(trained, off, rows=["on"])
    found = rf.compare(trained, off, sequences=4)
    assert [row.name for row in found.rows] == ["off", "knn_lm"] and "in_context" in found.left_out
    assert "of a chunk in a row with any text of the database; the gain is" in found.overlap_statement
    plan = RunPlan.of(trained, [], sequences=5, checkpoint=None)
    compare(plan, rows=["off"], output=tmp_path / "kept")
    with pytest.raises(UsageError, match="it holds a comparison of other weights, text, neighbours or sequences"):
        compare(replace(plan, sequences=6), rows=["off"], output=tmp_path / "kept")


def test_a_model_that_sees_what_it_predicts_is_refused(tmp_path):
    plan = make_plan(tmp_path)
    model = plan._job.module.model
    forward = model.forward

    def leaking(tokens, *arguments, **options):
        logits = forward(tokens, *arguments, **options)
        return logits + 3.0 * logits.roll(-1, dims=1)

    model.forward = leaking
    with pytest.raises(RetroflowError, match="^the causality probe failed, and nothing was compared: .* token 1 "):
        compare(plan)
    assert not list(tmp_path.rglob("*.npz")) and not list(tmp_path.rglob("subject.json"))


def test_a_model_that_reads_neighbours_too_early_is_refused(tmp_path):
    plan = make_plan(tmp_path)
    model = plan._job.module.model
    forward = model.forward

    def leaking(tokens, retrieved=None, *arguments, **options):
        logits = forward(tokens, retrieved, *arguments, **options)
        return logits if retrieved is None else logits * (1 + retrieved.float().mean() / 100)

    model.forward = leaking
    with pytest.raises(RetroflowError, match="logits before token 3 change with neighbours that are found there"):
        compare(plan, rows=["off", "on"])


def test_a_model_whose_retrieval_is_switched_off_inside_is_called_out(tmp_path):
    plan = make_plan(tmp_path)
    model = plan._job.module.model
    forward = model.forward
    model.forward = lambda tokens, *arguments, **options: forward(tokens)
    found = compare(plan, rows=["off", "on", "random"])
    assert found.warnings[0].startswith("Retrieval is switched off inside this model: on equals off on every token")
    assert "So do random." in found.warnings[0] and "no better than random" in found.warnings[1]
    assert found.to_json()["findings"][:2] == found.warnings


def test_a_model_that_reads_the_same_whatever_is_retrieved_is_called_out(tmp_path):
    plan = make_plan(tmp_path)
    model = plan._job.module.model
    forward = model.forward

    def constant(tokens, retrieved=None, mask=None, **options):
        if retrieved is None:
            return forward(tokens, **options)
        return forward(tokens, torch.full_like(retrieved, 7), torch.ones_like(mask), **options)

    model.forward = constant
    found = compare(plan, rows=["off", "on", "shuffled", "random"])
    same = "What is retrieved makes no difference to this model: on equals shuffled, random on every token"
    assert found.warnings[0].startswith(same) and found.rows[1].gain != 0
    assert ["no better than" in sentence for sentence in found.warnings] == [False, True, True]
    few = compare(plan, rows=["off", "on"])  # the probe has seen it, too
    assert few.warnings[0].startswith("What is retrieved makes no difference to this model: other neighbours change no")
    assert compare(make_plan(tmp_path / "reads"), rows=["off", "on"]).stated["probe"]["effect"] > 1e-3


def test_without_random_it_is_said_that_the_check_is_missing(tmp_path):
    plan = make_plan(tmp_path)
    missing = "Not checked: whether found neighbours are better than random ones."
    assert compare(plan, rows=["off", "on"]).warnings[-1].startswith(missing)
    assert missing not in " ".join(compare(plan, rows=["off", "on", "random"]).findings)
    assert missing not in " ".join(compare(plan, rows=["off", "shuffled"]).findings)


def test_rows_that_read_nothing_say_so(tmp_path):
    plan = make_plan(tmp_path)
    one = plan._job.splits.valid_chunks
    one = replace(one, document_ids=np.full_like(one.document_ids, one.document_ids[0]))
    plan._job = replace(plan._job, splits=replace(plan._job.splits, valid_chunks=one))
    found = compare(plan, rows=["off", "on", "shuffled", "topic_matched"])
    said = " ".join(found.to_json()["findings"])
    assert "topic_matched read nothing, so its numbers are those of off: there is no other document to take" in said
    assert "shuffled read nothing" not in said and "topic_matched (read nothing)" in printed(found)
    shares = [row.facts.get("share_read") for row in found.rows]
    assert shares[0] is None and 0 < shares[1] <= 1 and shares[3] == 0
    assert found.rows[3].nats == pytest.approx(found.rows[0].nats, abs=1e-6)
    few = compare(make_plan(tmp_path / "few"), rows=["off", "on", "topic_matched"])
    assert "topic_matched: there are too few documents for topics, so it reads any other document's." in few.findings


def test_a_single_sequence_has_no_other_to_take_windows_from(trained):
    found = rf.compare(trained, "neighbours.step=4", rows=["off", "on", "shuffled"], sequences=1)
    assert found.rows[2].facts["share_read"] == 0 and found.rows[1].facts["share_read"] > 0.5
    assert "shuffled read nothing, so its numbers are those of off: there is no other chunk" in " ".join(found.findings)


def test_the_bars_of_an_interval_are_those_of_a_plain_bootstrap(tmp_path):
    found = compare(make_plan(tmp_path), rows=["off", "on"])
    text, rows = found.measurements.text, nats_of(found)
    documents = [text.documents == number for number in np.unique(text.documents[text.documents >= 0])]
    tokens = np.array([mask.sum() for mask in documents])
    lost = np.array([(rows["off"] - rows["on"])[mask].sum() for mask in documents])
    generator = np.random.default_rng(9)
    draws = [generator.integers(len(tokens), size=len(tokens)) for _ in range(4000)]
    wanted = np.percentile([lost[draw].sum() / tokens[draw].sum() for draw in draws], (2.5, 97.5))
    on = found.rows[1]
    assert on.gain == pytest.approx(lost.sum() / tokens.sum())
    width = wanted[1] - wanted[0]
    assert on.gain_interval == pytest.approx(wanted, abs=0.1 * width)


def test_the_run_s_tracker_gets_the_table_once(trained, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    offline_runs = pytest.importorskip("tests.training.wandb_files").offline_runs
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = shutil.copytree(trained, tmp_path / "tiny" / "0001")
    words = [f"data.artifacts_folder={trained.parents[2] / 'tiny' / 'artifacts'}", "tracker.name=wandb"]
    found = rf.compare(run, *words, rows=["off", "on"], sequences=4)
    assert rf.compare(run, *words, rows=["off", "on"], sequences=4).rows == found.rows  # measures nothing
    rf.curve(run, *words, over="alpha", sequences=4)  # measures random, and leaves the table as it is
    (mirror,) = offline_runs(run)
    assert mirror.run.display_name == "tiny-exact-k2-0001"
    assert [row["trainer/global_step"] for row in mirror.history if any("report/comparison" in key for key in row)] == [
        6
    ]
    (table,) = mirror.tables
    lines = list(csv.DictReader((found.folder / "comparison.csv").read_text().splitlines()))
    assert table["columns"] == list(lines[0]) and [row[0] for row in table["data"]] == ["off", "on"]
    assert [str("" if cell is None else cell) for cell in table["data"][1]] == list(lines[1].values())


def test_a_second_process_is_kept_out(tmp_path):
    plan = make_plan(tmp_path)
    found = compare(plan, rows=["off"])
    with comparing.locked(found.folder), pytest.raises(UsageError, match="another process is at work here"):
        compare(plan, rows=["off"])


def test_another_run_is_a_row_on_the_same_tokens(trained, tmp_path):
    recipe, words = (
        trained.parents[2] / "tiny.yaml",
        [f"trainer.runs_folder={tmp_path / 'runs'}", "trainer.max_steps=2"],
    )
    plain = rf.fit(rf.load_recipe(recipe, *words, "trainer.retrieval=false")).folder
    found = rf.compare(trained, rows=["off", "on"], sequences=6, against=[plain], output=tmp_path / "kept")
    off, on, other = found.rows
    assert (other.name, other.tokens, other.sequences) == ("tiny-0001", on.tokens, 6)
    assert other.facts["training"]["tokens"] == rf.open_run(plain).report["training"]["tokens"]
    alone = rf.compare(plain, rows=["off"], sequences=6)
    assert other.nats == pytest.approx(alone.rows[0].nats, abs=1e-6) and other.gain == pytest.approx(
        off.nats - other.nats
    )
    assert "tiny-0001 (another run, trained without retrieval on" in " ".join(found.findings)
    without = rf.compare(plain, rows="all", sequences=2)
    assert [row.name for row in without.rows] == ["off", "knn_lm"]
    assert without.left_out["in_context_ram"] == "nothing can be looked up"
    again = rf.compare(trained, rows=["off", "on"], sequences=6, against=[plain], output=tmp_path / "kept")
    assert again.rows == found.rows
    with pytest.raises(UsageError, match="^against='.*': it is named already; leave it out"):
        rf.compare(trained, against=[plain, plain])
    copied = shutil.copytree(plain, tmp_path / "others" / plain.parent.name / plain.name)
    two = rf.compare(trained, rows=["off"], sequences=2, against=[plain, copied])
    assert [row.name for row in two.rows] == ["off", "tiny-0001", "others-tiny-0001"]
    elsewhere = rf.fit(rf.load_recipe(recipe, *words, "data.chunk_length=4", "data.sequence_chunks=2")).folder
    with pytest.raises(UsageError, match="^against='.*': it has another text, tokenizer or chunk length"):
        rf.compare(trained, against=[elsewhere])


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, Interrupted), (signal.SIGTERM, Preempted)])
def test_a_signal_stops_it_and_the_same_call_continues(tmp_path, capfd, monkeypatch, number, error):
    monkeypatch.setattr(console, "FIRST_SECONDS", 0.0)
    whole = nats_of(compare(make_plan(tmp_path / "whole", eval_batch_size=2), rows=["off", "on"]))
    plan, calls = make_plan(tmp_path / "stopped", eval_batch_size=2), []
    forward = plan._job.module.model.forward

    def interrupting(*arguments, **options):
        calls.append(1)
        if len(calls) == 17:  # 13 of the probe, 3 of off
            signal.raise_signal(number)
        return forward(*arguments, **options)

    plan._job.module.model.forward = interrupting
    with pytest.raises(error, match="^stopped while comparing; the same command continues where it stopped"):
        compare(plan, rows=["off", "on"])
    assert {file.name for file in plan.folder.rglob("rows/*.npz")} == {"off.npz", "on.npz"}
    assert re.search(r"^comparing: .* passes, .* left$", capfd.readouterr().err, re.MULTILINE)
    again = nats_of(compare(plan, rows=["off", "on"]))
    for name, nats in whole.items():
        assert again[name].tobytes() == nats.tobytes()
