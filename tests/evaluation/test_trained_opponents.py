"""Opponents with as many weights trained for as long: nothing else changes, and step 0 is the untrained opponent."""

import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from retroflow.evaluation import trained_opponents
from retroflow.evaluation.measuring import measure_report, prompted_sequences, random_neighbours
from retroflow.evaluation.opponents import TRAINED, Sample, intervals_of
from retroflow.evaluation.prompted import Prompting
from retroflow.evaluation.report import Report
from retroflow.evaluation.trained_opponents import add_trained
from retroflow.planning.options import OptimizerOptions
from retroflow.pretrained.base_models import fingerprint
from retroflow.pretrained.low_rank import with_low_rank_maps
from tests.evaluation.test_opponents import by_chunk, literal_nats, make_job

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def steps(monkeypatch):
    """Let a step take a second of the process, and much longer by the clock, as on a busy machine."""
    clocks = {"perf_counter": itertools.count(step=1000).__next__, "process_time": itertools.count().__next__}
    monkeypatch.setattr(trained_opponents, "time", SimpleNamespace(**clocks))


def with_rate(job, rate):
    job.module._optimizer_options = OptimizerOptions(learning_rate=rate, warmup_steps=2, weight_decay=0.0)
    return job


def opponents_of(job, *, seconds=5.0, num_weights=100):
    found = measure_report(job, training={}, advance=lambda n: None).opponents
    return add_trained(job, found, seconds=seconds, num_weights=num_weights, stop=lambda: None)


@pytest.mark.parametrize(("family", "reader"), [("llama", "inherit"), ("gpt2", "encoder")])
def test_untrained_maps_are_the_untrained_opponents_and_nothing_else_changes(tmp_path, steps, family, reader):
    job = with_rate(make_job(tmp_path, family=family, reader=reader, in_context_sequences=3), 0.0)
    before, state = fingerprint(job.module.model.base), torch.get_rng_state()
    names = [name for name, _ in job.module.model.named_parameters()]
    found = opponents_of(job)
    assert torch.equal(fingerprint(job.module.model.base), before) and torch.equal(torch.get_rng_state(), state)
    assert [name for name, _ in job.module.model.named_parameters()] == names
    for trained, untrained in (("base_trained", "off"), ("in_context_trained", "in_context")):
        np.testing.assert_allclose(
            found.measures[trained].chunk_nats, found.measures[untrained].chunk_nats, rtol=0, atol=1e-4
        )
        assert found.trained[trained]["steps"] == 5 and found.trained[trained]["weights"] >= 100
    random = Sample(job.splits, prompted_sequences(job), job.placement, 2, lambda n: None).prompted(
        job.module.model, random_neighbours(job), Prompting()
    )
    np.testing.assert_allclose(found.measures[TRAINED[2]].chunk_nats, random.chunk_nats, rtol=0, atol=1e-4)


def test_both_learn_and_the_same_seconds_give_the_same(tmp_path, steps):
    job = with_rate(make_job(tmp_path, in_context_sequences=5), 0.01)
    first, again = (opponents_of(job, seconds=5.0) for _ in range(2))
    for mode in TRAINED:
        assert first.measures[mode].nats == again.measures[mode].nats
    untrained = {"base_trained": "off", "in_context_trained": "in_context"}
    assert all(first.measures[mode].nats != first.measures[other].nats for mode, other in untrained.items())


@pytest.mark.parametrize("mode", ["base", "in_context"])
def test_a_loss_is_that_of_the_measured_opponent(tmp_path, mode):
    job = make_job(tmp_path)
    splits, model = job.splits, job.module.model
    batch = splits.validation(splits.validation_neighbours).assemble([3, 6], 3)
    if mode == "base":
        found = trained_opponents._nats_alone(model, batch, 0) * batch.targets.numel()
        assert float(found) == pytest.approx(float(model.loss(batch.tokens, batch.targets).sum()))
        return
    nats = trained_opponents._nats_in_context(job.seed)
    seen = set()
    for step in range(6):
        found = float(nats(model, batch, step).detach()) * 2 * 4
        wanted = {
            (u, v): literal_nats(job, 1, u, None, 10**6) + literal_nats(job, 2, v, None, 10**6)
            for u, v in itertools.product((1, 2), repeat=2)
        }
        seen |= {chunks for chunks, value in wanted.items() if value == pytest.approx(found, abs=1e-4)}
    assert len(seen) > 1  # and each of the losses is one of them
    assert float(nats(model, batch, 0).detach()) == float(nats(model, batch, 0).detach())


def test_maps_lie_on_every_linear_map_but_the_outputs(tmp_path):
    model = make_job(tmp_path).module.model
    copied = with_low_rank_maps(model, 2000)
    trained = {name: weight for name, weight in copied.named_parameters() if weight.requires_grad}
    assert len(trained) == 2 * 7 * 6 and not any("lm_head" in name for name in trained)
    count = sum(weight.numel() for weight in trained.values())
    of_rank_1 = count // next(iter(trained.values())).shape[0]
    assert 2000 <= count < 2000 + of_rank_1
    tokens = torch.arange(12)[None]
    assert torch.equal(copied.eval()(tokens), model(tokens))


def test_maps_are_trained_in_float32_on_a_base_in_bfloat16(tmp_path):
    model = make_job(tmp_path).module.model
    with torch.autocast("cpu", torch.bfloat16):
        copied = with_low_rank_maps(model, 100)
        copied.loss(torch.arange(12)[None], torch.arange(12)[None]).sum().backward()
    dtypes = {weight.requires_grad: weight.dtype for weight in copied.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    assert all(weight.grad is not None for weight in copied.parameters() if weight.requires_grad)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_the_report_says_what_they_gain(tmp_path, steps):
    job = with_rate(make_job(tmp_path), 0.01)
    report = measure_report(job, training={}, advance=lambda n: None)
    found = add_trained(job, report.opponents, seconds=2.0, num_weights=50, stop=lambda: None)
    values = json.loads(json.dumps(replace(report, opponents=found).to_json()))
    assert list(values["opponents"]["validation"])[-3:] == [TRAINED[1], TRAINED[2], TRAINED[0]]
    assert values["opponents"]["trained"]["base_trained"] == {**found.trained["base_trained"]}
    assert values["recovered_trained"] == found.recovered_trained
    assert "gain_over_random_minus_in_context_trained" in values["opponents"]["intervals"]
    assert any("trained for as long, the base alone has" in each and "(2 steps)" in each for each in values["findings"])
    assert isinstance(replace(report, opponents=found), Report)


def test_intervals_of_trained_opponents():
    off = np.array([2.0, 3.0, 4.0])
    losses = {
        "off": off, "on": off - 0.6, "random": off - 0.1, "in_context": off - 0.4, "base_trained": off - 0.2,
        "in_context_trained": off - 0.7, "in_context_trained_random": off - 0.3,
    }  # fmt: skip
    found = intervals_of({mode: by_chunk(loss) for mode, loss in losses.items()}, np.array([3, 5, 9]), seed=1)
    wanted = {"recovered_trained": 0.8, "gain_over_random_minus_in_context_trained": 0.1, "on_minus_base_trained": -0.4}
    assert {name: found[name] for name in wanted} == {
        name: (pytest.approx(value), pytest.approx(value)) for name, value in wanted.items()
    }


def test_stopping_is_possible_within_training(tmp_path):
    job = with_rate(make_job(tmp_path), 0.01)

    def stop():
        raise KeyboardInterrupt

    found = measure_report(job, training={}, advance=lambda n: None).opponents
    with pytest.raises(KeyboardInterrupt):
        add_trained(job, found, seconds=1e6, num_weights=50, stop=stop)
