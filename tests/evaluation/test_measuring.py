"""The evaluation at the end, and a stated sample of it for trials."""

import json

import numpy as np
import pytest
import torch

from retroflow.evaluation.measuring import measure_report, sample_of, sequences_to_measure, token_losses
from retroflow.evaluation.stored_report import read_report
from retroflow.store.sealed_json import render_sealed
from tests.training.jobs import tiny_job

COUNT = 5  # validation sequences of a tiny job; the last one is shorter


def measured(tmp_path, **trainer):
    job = tiny_job(tmp_path, **trainer)
    job.module.configure_model()
    seen = []
    return job, measure_report(job, training={"steps": 0}, advance=seen.append), sum(seen)


@pytest.mark.parametrize("wanted", [1, 2, 3, 4])
def test_a_sample_measures_its_sequences_and_no_others(tmp_path, wanted):
    job, report, seen = measured(tmp_path, final_sequences=wanted, eval_batch_size=2)
    sample = sample_of(job).tolist()
    assert len(set(sample)) == wanted and set(sample) <= set(range(COUNT))
    assert report.sample == {"sequences": wanted, "of": COUNT}
    assert seen == sequences_to_measure(job) == 4 * wanted
    dataset, losses = job.splits.validation(), token_losses(job.module.model.eval(), job.placement)
    nats = tokens = 0.0
    for number in sample:
        start = number * dataset.sequence_chunks
        batch = dataset.assemble([start], min(dataset.sequence_chunks, len(dataset.chunks) - start))
        with torch.no_grad():
            nats += float(losses(batch.without_retrieval()).double().sum())
        tokens += int((batch.targets >= 0).sum())
    assert report.measures["off"].tokens == tokens
    assert report.measures["off"].nats == pytest.approx(nats, rel=1e-6)


def test_the_chunks_of_a_sample_have_the_losses_that_they_have_in_the_whole(tmp_path):
    """By chunk and not only in the sum, since the overlap with retrieved text is looked at chunk by chunk."""
    job, part, _ = measured(tmp_path, final_sequences=2)
    _, whole, _ = measured(tmp_path)
    s, m = job.splits.sequence_chunks, job.splits.valid_chunks.chunk_length
    for number in sample_of(job):
        inner = np.arange(number * s + 1, min((number + 1) * s, len(job.splits.valid_chunks)))
        for mode in ("on", "off", "shuffled", "random"):
            one, two = part.measures[mode], whole.measures[mode]
            assert np.allclose(one.chunk_nats[inner], two.chunk_nats[inner], rtol=1e-6)
            assert one.chunk_tokens[inner].tolist() == two.chunk_tokens[inner].tolist()
    assert 0 < sum(bucket.tokens for bucket in part.overlap) <= part.measures["on"].tokens
    assert sum(bucket.chunks for bucket in part.overlap) <= 2 * s < sum(bucket.chunks for bucket in whole.overlap)
    assert m == 4


def test_a_sample_is_evenly_spaced_and_a_function_of_the_seed(tmp_path):
    samples = {seed: sample_of(tiny_job(tmp_path, seed=seed, final_sequences=2)).tolist() for seed in range(8)}
    assert all(first < COUNT / 2 and 2 <= second - first <= 3 for first, second in samples.values())
    assert len({tuple(sample) for sample in samples.values()}) > 1
    assert sample_of(tiny_job(tmp_path, seed=3, final_sequences=2)).tolist() == samples[3]


@pytest.mark.parametrize("wanted", [None, COUNT, 1000])
def test_the_whole_split_is_no_sample(tmp_path, wanted):
    job, report, seen = measured(tmp_path, final_sequences=wanted)
    assert sample_of(job) is None and report.sample is None and seen == 4 * COUNT
    assert not any("sample" in sentence for sentence in report.findings())


def test_the_report_states_the_sample_on_screen_and_in_json(tmp_path, capsys):
    from rich.console import Console

    _, report, _ = measured(tmp_path, final_sequences=2)
    _, baseline, _ = measured(tmp_path, final_sequences=2, retrieval=False)
    for each in (report, baseline):
        values = json.loads(json.dumps(each.to_json()))
        assert values["sample"] == {"sequences": 2, "of": 5}
        assert any("Only a sample was measured: 2 of the 5 validation sequences" in one for one in values["findings"])
        Console(width=200).print(each.render())
        assert "a sample of 2 of 5 sequences" in capsys.readouterr().out
        (tmp_path / "report.json").write_text(render_sealed(values, what="report"))
        assert read_report(tmp_path).report.to_json() == values


def test_a_model_whose_retrieval_is_switched_off_inside_is_called_out(tmp_path):
    job, report, _ = measured(tmp_path)
    assert not any("switched off" in warning for warning in report.warnings)
    assert report.intervals["on_minus_off"][0] <= report.measures["on"].loss - report.measures["off"].loss
    model = job.module.model
    forward = model.forward
    model.forward = lambda tokens, *arguments, **options: forward(tokens)
    off = measure_report(job, training={"steps": 0}, advance=lambda sequences: None)
    assert off.warnings[0].startswith("Retrieval is switched off inside this model: on equals off on every token")
    assert [each.split(":")[0] for each in off.warnings[1:]] == [
        "Found neighbours are no better than random ones",
        "Found neighbours are no better than those of other chunks",
    ]
    assert off.findings()[:3] == off.warnings

    def constant(tokens, retrieved=None, mask=None, **options):
        return forward(tokens) if retrieved is None else forward(tokens, torch.full_like(retrieved, 7), mask | True)

    model.forward = constant
    same = measure_report(job, training={"steps": 0}, advance=lambda sequences: None).warnings[0]
    assert same.startswith("What is retrieved makes no difference to this model: on equals shuffled, random on every")
