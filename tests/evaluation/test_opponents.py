"""In-context retrieval on the same neighbours equals a literal loop over chunks, and the report says what it says."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from retroflow.data import Batch
from retroflow.evaluation.measuring import measure_report, prompted_sequences, sequences_to_measure
from retroflow.evaluation.opponents import Sample, compare, intervals_of
from retroflow.evaluation.perplexity import Measure
from retroflow.evaluation.prompted import Prompting, prompt_of
from retroflow.evaluation.stored_report import read_report
from retroflow.pretrained.retrofit import RetrofitModel
from retroflow.pretrained.retrofit_config import RetrofitConfig
from retroflow.store.sealed_json import render_sealed
from tests.pretrained.bases import make_base, make_options
from tests.training.jobs import VOCABULARY, tiny_job, tiny_splits

pytestmark = pytest.mark.filterwarnings("ignore")

CHUNK, SEQUENCE = 4, 12
MODES = {"in_context": (None, 10**6), "in_context_ram": (1, SEQUENCE)}  # passages, tokens of the prompt


def make_job(tmp_path, *, family="llama", reader="inherit", splits=None, base=None, **trainer):
    job = tiny_job(tmp_path, splits=splits, **trainer)
    options = RetrofitConfig(vocabulary_size=VOCABULARY, chunk_length=CHUNK, base="in memory", reader="inherit")
    if reader == "encoder":
        options = make_options(vocabulary_size=VOCABULARY)
    job.module.model = RetrofitModel(options, base or make_base(family)).eval()
    return job


@torch.no_grad()
def literal_nats(job, number, chunk, passages, most):
    """Nats of one chunk of one sequence: its prompt as a plain list, the base on it alone."""
    splits, base = job.splits, job.module.model.base
    start = number * splits.sequence_chunks
    length = min(splits.sequence_chunks, len(splits.valid_chunks) - start)
    batch = splits.validation(splits.validation_neighbours).assemble([start], length)
    texts = []
    for neighbour, real in zip(batch.retrieved[0, chunk - 1], batch.retrieved_mask[0, chunk - 1], strict=True):
        text = [token for token, is_real in zip(neighbour.tolist(), real.tolist(), strict=True) if is_real]
        if text:
            texts.append(text)
    texts = texts[:passages]
    prefix, scored = batch.tokens[0, : chunk * CHUNK].tolist(), batch.targets[0].tolist()[chunk * CHUNK - 1 :][:CHUNK]
    body = batch.tokens[0, chunk * CHUNK : (chunk + 1) * CHUNK - 1].tolist()
    before = [token for text in texts for token in text]
    most = min(most, base.config.max_position_embeddings)
    while len(before) + len(prefix) + len(body) > most and len(prefix) > CHUNK:
        del prefix[0]
    while len(before) + len(prefix) + len(body) > most:
        before.pop()
    logits = base(input_ids=torch.tensor([before + prefix + body])).logits[0].double().log_softmax(-1)
    first = len(before) + len(prefix) - 1
    return -sum(float(logits[first + place, token]) for place, token in enumerate(scored) if token >= 0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("reader", ["inherit", "encoder"])
def test_it_equals_a_literal_loop_over_chunks(tmp_path, family, reader):
    reports = [
        measure_report(
            make_job(tmp_path, family=family, reader=reader, eval_batch_size=size), training={}, advance=lambda n: None
        )
        for size in (1, 3)
    ]
    job = make_job(tmp_path, family=family, reader=reader)
    splits = job.splits
    places = [
        (number, chunk) for number in range(5) for chunk in (1, 2) if number * 3 + chunk < len(splits.valid_chunks)
    ]
    for mode, (passages, most) in MODES.items():
        wanted = [literal_nats(job, number, chunk, passages, most) for number, chunk in places]
        for report in reports:
            found = report.opponents.measures[mode]
            np.testing.assert_allclose(found.chunk_nats, wanted, atol=1e-4)
            assert found.nats == pytest.approx(sum(wanted), abs=1e-3)


def test_prompts_that_are_too_long_lose_text_at_their_left_and_then_passages_at_their_right(tmp_path):
    for most in (20, 14, 9):
        base = make_base("llama", max_position_embeddings=most)
        job = make_job(tmp_path, base=base)
        found = measure_report(job, training={}, advance=lambda n: None).opponents.measures["in_context"].chunk_nats
        wanted = [literal_nats(job, n, c, None, most) for n in range(5) for c in (1, 2) if n * 3 + c < 14]
        np.testing.assert_allclose(found, wanted[: len(found)], atol=1e-4)


@pytest.mark.parametrize(
    ("prompting", "context", "wanted"),
    [
        (Prompting(), 99, [20, 21, 22, 23, 30, 31, 1, 2, 3, 4, 5]),  # the best one first, none of their padding
        (Prompting(passages=1), 99, [20, 21, 22, 23, 1, 2, 3, 4, 5]),
        (Prompting(passages=1, passage_tokens=3), 99, [20, 21, 22, 1, 2, 3, 4, 5]),
        (Prompting(), 9, [20, 21, 22, 23, 30, 31, 3, 4, 5]),  # of the text the chunk before stays
        (Prompting(length=7), 99, [20, 21, 22, 23, 3, 4, 5]),  # then the worst passage goes first
        (Prompting(length=4), 99, [20, 3, 4, 5]),
        (Prompting(length=2), 99, [4, 5]),
    ],
)
def test_a_prompt_is_passages_and_text(prompting, context, wanted):
    retrieved = torch.tensor([[[0, 0, 0, 0], [0, 0, 0, 0]], [[20, 21, 22, 23], [30, 31, 0, 0]], [[9] * 4] * 2])[None]
    mask = retrieved > 0
    batch = Batch(torch.arange(1, 7)[None], torch.arange(2, 8)[None], retrieved, mask, torch.tensor([6]))
    assert prompt_of(batch, 0, 2, 2, prompting, context).tolist() == wanted
    assert (
        prompt_of(batch, 0, 1, 2, prompting, context).tolist() == [1, 2, 3][-len(wanted) :]
    )  # the chunk before has no neighbours


def test_all_modes_are_compared_on_the_same_tokens(tmp_path):
    job = make_job(tmp_path)
    report = measure_report(job, training={}, advance=lambda n: None)
    found, splits = report.opponents, job.splits
    chunks = np.array([chunk for chunk in range(len(splits.valid_chunks)) if chunk % 3])
    for mode in ("on", "off"):
        assert found.measures[mode].chunk_nats.tolist() == report.measures[mode].chunk_nats[chunks].tolist()
    for measure in found.measures.values():
        assert measure.chunk_tokens.tolist() == report.measures["off"].chunk_tokens[chunks].tolist()
        assert measure.tokens == measure.chunk_tokens.sum() and measure.seconds > 0
        assert measure.bytes == splits.valid_chunks.num_bytes[chunks].sum()
        assert measure.nats == pytest.approx(measure.chunk_nats.sum())


def test_without_any_neighbour_the_prompt_is_the_text_alone(tmp_path):
    splits = tiny_splits()
    splits = replace(splits, validation_neighbours=np.full_like(splits.validation_neighbours, -1))
    found = measure_report(make_job(tmp_path, splits=splits), training={}, advance=lambda n: None).opponents
    np.testing.assert_allclose(found.measures["in_context"].chunk_nats, found.measures["off"].chunk_nats, atol=1e-4)


@pytest.mark.parametrize(("wanted", "final"), [(0, None), (2, None), (2, 3), (100, 2)])
def test_the_sample_is_one_of_what_is_measured_anyway(tmp_path, wanted, final):
    job = make_job(tmp_path, in_context_sequences=wanted, final_sequences=final, eval_batch_size=2)
    seen = []
    report = measure_report(job, training={}, advance=seen.append)
    assert sum(seen) == sequences_to_measure(job)
    count = min(wanted, final or 5)
    assert len(set(prompted_sequences(job).tolist())) == count
    assert (report.opponents is None) == (count == 0)
    if count:
        assert (report.opponents.sequences, report.opponents.of) == (count, 5)
        assert report.opponents.measures["on"].tokens < report.measures["on"].tokens


def test_without_a_base_or_retrieval_or_a_second_chunk_there_is_nothing_to_compare(tmp_path):
    plain = tiny_job(tmp_path)
    plain.module.configure_model()
    assert measure_report(plain, training={}, advance=lambda n: None).opponents is None
    job = make_job(tmp_path)
    assert len(prompted_sequences(replace(job, options=replace(job.options, retrieval=False)))) == 0
    short = make_job(tmp_path, splits=replace(tiny_splits(), sequence_chunks=1))
    report = measure_report(short, training={}, advance=lambda n: None)
    assert report.opponents is None and "recovered" not in report.to_json()


def with_losses(found, **losses):
    """The same comparison as if these had been the losses of the modes, each in its share of every document."""
    measures = {
        mode: replace(measure, nats=losses[mode] * measure.tokens, chunk_nats=losses[mode] * measure.chunk_tokens)
        for mode, measure in found.measures.items()
        if mode in losses
    }
    return replace(found, measures=measures)


def test_recovered_is_the_share_of_in_contexts_gain(tmp_path):
    found = measure_report(make_job(tmp_path), training={}, advance=lambda n: None).opponents
    assert with_losses(found, off=2.0, on=1.7, in_context=1.6, in_context_ram=1.8).recovered == pytest.approx(0.75)
    assert with_losses(found, off=2.0, on=1.4, in_context=1.6, in_context_ram=1.8).recovered == pytest.approx(1.5)
    assert with_losses(found, off=2.0, on=2.2, in_context=1.6, in_context_ram=1.8).recovered == pytest.approx(-0.5)
    assert "few documents" in found.findings()[0] or found.recovered is None
    many = replace(with_losses(found, off=2.0, on=1.7, in_context=1.6, in_context_ram=1.8), documents=20)
    assert many.findings()[0].startswith("Reading recovers 75.0% (") and "few" not in many.findings()[0]
    useless = with_losses(found, off=2.0, on=1.9, in_context=2.1, in_context_ram=2.1)
    assert useless.recovered is None and "do not lower its loss" in useless.findings()[0]


def by_chunk(nats):
    tokens = np.array([40, 60, 50])
    return Measure(float(np.sum(nats * tokens)), 150, 600, 1.0, nats * tokens, tokens)


@pytest.mark.parametrize("share", [0.75, 1.5, -0.5])
def test_intervals_are_of_the_differences_they_are_named_after(share):
    """Where every document gains 0.4 nats in the prompt, and a share of that by reading, all resamples agree."""
    off = np.array([2.0, 3.0, 4.0])
    measures = {"off": by_chunk(off), "on": by_chunk(off - 0.4 * share), "in_context": by_chunk(off - 0.4)}
    found = intervals_of(measures, np.array([3, 5, 9]), seed=1)
    wanted = {
        "on_minus_off": -0.4 * share,
        "in_context_minus_off": -0.4,
        "on_minus_in_context": 0.4 * (1 - share),
        "recovered": share,
    }
    assert found == {name: (pytest.approx(value), pytest.approx(value)) for name, value in wanted.items()}


def test_a_share_of_what_may_be_no_gain_has_no_interval():
    off = np.array([2.0, 3.0, 4.0])
    measures = {"off": by_chunk(off), "on": by_chunk(off - 0.1), "in_context": by_chunk(off - [0.4, 0.4, -0.1])}
    found = intervals_of(measures, np.array([3, 5, 9]), seed=1)
    assert found["recovered"] is None and found["in_context_minus_off"][0] < -0.3


def test_the_report_shows_and_stores_the_opponents(tmp_path):
    report = measure_report(make_job(tmp_path), training={"steps": 0}, advance=lambda n: None)
    values = json.loads(json.dumps(report.to_json()))
    assert list(values["opponents"]["validation"]) == ["on", "random", "in_context", "in_context_ram", "off"]
    assert set(values["opponents"]["intervals"]) == {
        "on_minus_off", "in_context_minus_off", "in_context_ram_minus_off", "on_minus_in_context",
        "on_minus_in_context_ram", "random_minus_off", "on_minus_random", "recovered",
    }  # fmt: skip
    losses = {mode: measured["loss"] for mode, measured in values["opponents"]["validation"].items()}
    gain = losses["off"] - losses["in_context"]
    wanted = (losses["off"] - losses["on"]) / gain if gain > 0 else None
    assert values["recovered"] == (wanted and pytest.approx(wanted))
    for mode, other in (("on", "off"), ("in_context", "off"), ("on", "in_context")):
        low, high = values["opponents"]["intervals"][f"{mode}_minus_{other}"]
        assert low <= losses[mode] - losses[other] <= high
    assert all(measured["seconds_per_token"] > 0 for measured in values["validation"].values())
    console = Console(file=io.StringIO(), width=160)
    console.print(report.render())
    shown = console.file.getvalue()
    assert "in_context_ram" in shown and "the same neighbours in the base's prompt" in shown
    (tmp_path / "report.json").write_text(render_sealed(values, what="report"))
    assert read_report(tmp_path).report.to_json() == values


def test_one_document_has_no_interval(tmp_path):
    job = make_job(tmp_path)
    report = measure_report(job, training={}, advance=lambda n: None)
    job.splits.valid_chunks.document_ids[:] = 99
    sample = Sample(job.splits, np.array([0, 1]), job.placement, 2, lambda n: None)
    found = compare(job.module.model, sample, report.measures, seed=1)
    assert found.documents == 1 and set(found.intervals.values()) == {None}
