"""Requests that are computed together: what each gets is what it gets alone; nobody waits for a client that left."""

import random
import threading

import pytest
import torch

from retroflow.database.database import Database
from retroflow.errors import RetrieverError
from retroflow.generation import GenerationOptions, generate
from retroflow.generation.decoding import Decoding
from retroflow.generation.language_model import LanguageModel
from retroflow.generation.rows import Row
from retroflow.generation.sampling import Sampler
from retroflow.runs.origin import Origin
from retroflow.serving.measured import Measured
from retroflow.serving.options import ServerOptions
from retroflow.serving.running import Event, Job, RunningBatch
from retroflow.serving.service import Service
from retroflow.serving.worker import QueueFull, Worker
from tests.generation.small import HashRetriever, LetterTokenizer
from tests.pretrained.bases import make_retrofit
from tests.pretrained.test_inherited import make_model
from tests.serving.small import CHUNK, open_model, prompt_of


class Heard:
    """Events of one job."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.ended = threading.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if event.is_last:
            self.ended.set()

    @property
    def generation(self):
        assert self.events[-1].error is None, self.events[-1].error
        return self.events[-1].result.generation


def make_job(opened, number: int, heard: Heard, **changes) -> Job:
    draw = random.Random(number)
    prompt = prompt_of(number, draw.randint(1, 25))
    options = {"max_new_tokens": draw.randint(1, 40), "seed": number, "stop_at_end_of_text": False}
    if draw.random() < 0.6:
        options |= {"temperature": draw.choice([0.7, 1.2]), "top_p": draw.choice([1.0, 0.9])}
    options |= changes.pop("options", {})
    tokens = opened.tokenizer.encode(prompt).ids.tolist()
    made = GenerationOptions(**options)
    return Job(prompt, tokens, made, heard, max_new_tokens=made.max_new_tokens, **changes)


def alone(opened, job: Job):
    lm = opened if job.retrieves else opened.with_database(None)
    names = ("max_new_tokens", "seed", "temperature", "top_p", "stop_at_end_of_text")
    return lm.generate(job.prompt, **{name: getattr(job.options, name) for name in names})


@pytest.mark.parametrize("step", [CHUNK, 3, 1])
def test_rows_that_join_a_running_batch_get_what_they_get_alone(database_folder, step: int) -> None:
    """Any arrival, any length, any options, some with retrieval off: tokens, texts and retrievals are the same."""
    opened = open_model(Database.open(database_folder), step=step, double=True)
    batch = RunningBatch(opened, GenerationOptions(num_neighbours=2, retrieval_step=step))
    draw, heard, jobs, together = random.Random(step), [Heard() for _ in range(24)], [], 0
    for number, each in enumerate(heard):
        jobs.append(make_job(opened, number, each, retrieves=number % 5 != 0))
    waiting = list(jobs)
    while waiting or len(batch):
        if batch.can_join and waiting and len(batch) < 6:
            batch.join([waiting.pop(0) for _ in range(min(len(waiting), draw.randint(1, 3)))])
        batch.step()
        together = max(together, len(batch))
    assert together > 3
    for each, job in zip(heard, jobs, strict=True):
        assert each.generation == alone(opened, job)


def test_what_is_drawn_alike_is_drawn_at_once_and_one_that_cannot_be_drawn_ends_alone(opened, monkeypatch) -> None:
    batch, heard, calls = RunningBatch(opened, GenerationOptions(num_neighbours=2)), [Heard() for _ in range(5)], []
    for number, each in enumerate(heard):
        options = {"max_new_tokens": 4, "temperature": 0.9 if number < 3 else 0.0, "top_p": 1.0}
        batch.join([make_job(opened, number, each, options=options)])
    choose = Sampler.choose
    monkeypatch.setattr(Sampler, "choose", lambda self, logits: calls.append(len(logits)) or choose(self, logits))
    batch.step()
    assert sorted(calls) == [2, 3]
    extend = batch.decoding.extend

    def spoiled(*given):
        logits = extend(*given).clone()
        logits[1] = float("nan")
        return logits

    monkeypatch.setattr(batch.decoding, "extend", spoiled)
    batch.step()
    assert "not finite" in str(heard[1].events[-1].error) and len(batch) == 4
    monkeypatch.setattr(batch.decoding, "extend", extend)
    while len(batch):
        batch.step()
    assert all(each.events[-1].error is None for number, each in enumerate(heard) if number != 1)


@pytest.mark.parametrize(("family", "reader"), [("gpt2", "encoder"), ("gpt2", "inherit"), ("mistral", "inherit")])
@pytest.mark.filterwarnings("ignore")
def test_pretrained_bases_share_batches_too(family: str, reader: str) -> None:
    """Learned positions, of which padding may not take too many; sliding windows; lookups that last."""
    model = make_retrofit(family, smear=True) if reader == "encoder" else make_model(family, lookups_read=3)
    retriever, tokenizer, draw = HashRetriever(model.config.chunk_length), LetterTokenizer(), random.Random(1)
    opened = LanguageModel(model, tokenizer, Origin(family, 0, 2, 2, 16, "", {}, ""), retriever)
    batch, waiting, heard, sizes = RunningBatch(opened, GenerationOptions(retrieval_step=2)), [], [], []
    for _ in range(14):
        prompt = "".join(draw.choices("abcdefgh", k=draw.randint(1, 24)))
        made = GenerationOptions(max_new_tokens=draw.randint(3, 30), retrieval_step=2, stop_at_end_of_text=False)
        heard.append(Heard())
        tokens = tokenizer.encode(prompt).ids.tolist()
        waiting.append(Job(prompt, tokens, made, heard[-1], max_new_tokens=made.max_new_tokens))
    jobs = list(waiting)
    while waiting or len(batch):
        if batch.can_join and waiting and len(batch) < 4 and batch.has_room(waiting[0]):
            batch.join([waiting.pop(0)])
        batch.step()
        sizes.append(len(batch))
    assert max(sizes) > 2
    for each, job in zip(heard, jobs, strict=True):
        (alone_,) = generate(model, tokenizer, [job.prompt], retriever=retriever, options=job.options)
        assert each.generation == alone_


@pytest.mark.filterwarnings("ignore")
def test_a_base_generates_in_bfloat16_where_that_is_faster_and_scores_prompts_in_float32(monkeypatch) -> None:
    def narrow(model, precision: str) -> bool:
        opened = LanguageModel(model, tokenizer, Origin("", 0, 2, 2, 16, "", {}, ""), None)
        service = Service(opened, name="", options=ServerOptions(precision=precision))
        return service.worker.batch.decoding.narrow

    base, encoder = make_model("llama", dtype=torch.float32), make_retrofit("llama")
    retriever, tokenizer = HashRetriever(base.config.chunk_length), LetterTokenizer()
    for pays in (True, False):
        monkeypatch.setattr("retroflow.serving.service.bf16_pays", lambda device, pays=pays: pays)
        found = [narrow(model, precision) for model in (base, encoder) for precision in ("auto", "fp32", "bf16")]
        assert found == [pays, False, True, False, False, True]
    opened, heard = LanguageModel(base, tokenizer, Origin("", 0, 2, 2, 16, "", {}, ""), retriever), Heard()
    batch, dtypes, choose = RunningBatch(opened, GenerationOptions(), narrow=True), set(), RunningBatch._choose
    with monkeypatch.context() as patch:
        patch.setattr(batch, "_choose", lambda new, logits: dtypes.add(logits.dtype) or choose(batch, new, logits))
        batch.join([make_job(opened, 1, heard, scores_prompt=True, num_logprobs=0)])
        while len(batch):
            batch.step()
    result, scores = heard.events[-1].result, heard.events[-1].scores
    assert dtypes == {torch.bfloat16} and result.nats_off is not None
    prompt = scores[: len(scores) - len(result.nats)]
    text = tokenizer.decode([score.token for score in prompt])
    exact = Decoding(base, tokenizer, retriever, GenerationOptions(align=False), base.config.chunk_length, None)
    wanted, _ = exact.losses(Row(0, text, [score.token for score in prompt], tokenizer, ()))
    assert [-score.logprob for score in prompt[1:]] == pytest.approx(wanted, abs=1e-5)


def test_a_client_that_leaves_costs_nothing_after_the_step(opened) -> None:
    steps = []
    batch = RunningBatch(opened, GenerationOptions(num_neighbours=2))
    worker = Worker(batch, most_running=4, most_waiting=8, measured=Measured())
    heard = Heard(), Heard()
    jobs = [make_job(opened, n, each, options={"max_new_tokens": 60}, streams=True) for n, each in enumerate(heard)]
    compute = batch.step

    def step() -> None:
        steps.append([job is jobs[0] for job in batch.jobs])
        if len(steps) == 5:
            jobs[0].is_cancelled = True  # while this step is computed
        compute()

    batch.step = step
    worker.start()
    worker.submit(jobs)
    assert heard[1].ended.wait(60)
    worker.close()
    assert [any(each) for each in steps] == [True] * 5 + [False] * (len(steps) - 5) and len(steps) > 50
    assert not heard[0].ended.is_set() and heard[1].generation == alone(opened, jobs[1])


def test_a_prompt_is_not_scored_for_a_client_that_left_meanwhile(opened) -> None:
    worker = Worker(
        RunningBatch(opened, GenerationOptions(num_neighbours=2)), most_running=1, most_waiting=8, measured=Measured()
    )
    heard = [Heard() for _ in range(3)]
    jobs = [make_job(opened, number, each, scores_prompt=True) for number, each in enumerate(heard)]
    for job in jobs:
        job.max_new_tokens = 0
    jobs[0].report = lambda event: setattr(jobs[1], "is_cancelled", True)
    worker.start()
    worker.submit(jobs)
    assert heard[2].ended.wait(60)
    worker.close()
    assert heard[2].events[-1].scores and not heard[1].events


def test_what_is_only_scored_holds_up_what_runs_for_a_bounded_time(opened) -> None:
    """As many prompts as can run come between two tokens, though each ends at once and another one waits already."""
    batch = RunningBatch(opened, GenerationOptions(num_neighbours=2))
    worker, order = Worker(batch, most_running=3, most_waiting=40, measured=Measured()), []

    class Scored(Heard):
        def __call__(self, event: Event) -> None:
            order.append("scored")
            super().__call__(event)

    compute, heard = batch.step, Heard()
    batch.step = lambda: (order.append("token"), compute())
    scored = [make_job(opened, number, Scored(), scores_prompt=True) for number in range(20)]
    for job in scored:
        job.max_new_tokens = 0
    worker._thread = threading.current_thread()  # it lives, and takes nothing from the queue yet
    worker.submit([make_job(opened, 50, heard, options={"max_new_tokens": 60}), *scored])
    worker._thread = threading.Thread(target=worker._run, daemon=True)
    worker.start()
    assert heard.ended.wait(60)
    worker.close()
    runs = "".join(each[0] for each in order).split("t")
    assert max(map(len, runs)) <= 3 and sum(map(len, runs)) == 20


def test_a_request_never_ends_another_and_the_queue_has_an_end(opened) -> None:
    batch = RunningBatch(opened, GenerationOptions(num_neighbours=2))
    worker = Worker(batch, most_running=2, most_waiting=6, measured=Measured())
    heard = [Heard() for _ in range(6)]
    jobs = [make_job(opened, n, each, options={"max_new_tokens": 30}) for n, each in enumerate(heard)]
    short = Worker(batch, most_running=2, most_waiting=5, measured=Measured())
    short._thread = threading.current_thread()  # it lives, and takes nothing from the queue
    with pytest.raises(QueueFull, match="texts are waiting"):  # none of them: all or nothing
        short.submit(jobs)
    short.submit(jobs[:5])
    worker.start()
    worker.submit(jobs)
    for each in heard:
        assert each.ended.wait(60)
    worker.close()
    assert [each.generation for each in heard] == [alone(opened, job) for job in jobs]


def test_a_failing_search_fails_those_that_read_and_no_later_ones(opened) -> None:
    class Broken:
        def retrieve(self, queries, num_neighbours):
            raise RetrieverError("the index is gone")

    batch = RunningBatch(opened, GenerationOptions(num_neighbours=2))
    worker = Worker(batch, most_running=4, most_waiting=8, measured=Measured())
    worker.start()
    good, batch.decoding.retriever = batch.decoding.retriever, Broken()
    first, second = Heard(), Heard()
    worker.submit([make_job(opened, 1, first)])
    assert first.ended.wait(60) and "the index is gone" in str(first.events[-1].error)
    batch.decoding.retriever = good
    worker.submit([job := make_job(opened, 2, second)])
    assert second.ended.wait(60) and second.generation == alone(opened, job)
    worker.close()
