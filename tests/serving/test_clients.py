"""Clients that people have, against a server on a port of this machine: openai's, 64 at once, and lm-eval's."""

import asyncio
import re
import socket
import threading

import pytest

from retroflow.errors import RetrieverError
from retroflow.serving.options import ServerOptions
from retroflow.serving.service import Service
from tests.house.tree import ROOT
from tests.serving.small import listening, open_model, prompt_of
from tests.waiting import wait_until

pytest.importorskip("uvicorn")
openai = pytest.importorskip("openai")

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def url(opened):
    opened.tokenizer.chat_template = TEMPLATE
    service = Service(opened, name="small", options=ServerOptions(max_running=8, max_waiting=128))
    with listening(service) as address:
        yield address
    opened.tokenizer.chat_template = None


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as found:
        yield found


def test_openai_reads_completions_models_and_errors(client, opened) -> None:
    assert [model.id for model in client.models.list()] == ["small"]
    prompt = prompt_of(1)
    expected = opened.generate(prompt, max_new_tokens=12).text
    answer = client.completions.create(
        model="small", prompt=prompt, max_tokens=12, temperature=0, logprobs=2, echo=True
    )
    assert answer.choices[0].text == prompt + expected and len(answer.choices[0].logprobs.tokens) > 12
    assert answer.usage.completion_tokens == 12 and answer.model_extra["search_results"]
    frames = list(client.completions.create(model="small", prompt=prompt, max_tokens=12, temperature=0, stream=True))
    assert "".join(frame.choices[0].text for frame in frames) == expected
    assert frames[-1].choices[0].finish_reason == "length" and frames[-1].model_extra["retroflow"]["sources"]
    with pytest.raises(openai.BadRequestError, match="temperature is -1"):
        client.completions.create(model="small", prompt="a", temperature=-1)
    with pytest.raises(openai.NotFoundError, match='this server has "small"'):
        client.completions.create(model="gpt", prompt="a")


def test_the_python_of_the_page_runs(url, capsys) -> None:
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    block = block.replace("http://127.0.0.1:8000", url).replace('"retro_small"', '"small"')
    exec(block.replace("def forward(self, x):", prompt_of(1)), {})
    assert re.search(r"^\d+ \d+ \S+ -?\d\.\d+", capsys.readouterr().out, re.MULTILINE)


def test_openai_reads_messages_their_annotations_and_their_stream(client, opened) -> None:
    asked = {"model": "small", "messages": [{"role": "user", "content": prompt_of(2)}], "temperature": 0}
    answer = client.chat.completions.create(**asked, max_completion_tokens=16, logprobs=True, top_logprobs=2)
    message = answer.choices[0].message
    prompt = [*opened.tokenizer.encode(f"<user>{prompt_of(2)}").ids.tolist(), opened.tokenizer.end_of_text]
    prompt += opened.tokenizer.encode("<assistant>").ids.tolist()
    from retroflow.generation import GenerationOptions, generate

    options = GenerationOptions(max_new_tokens=16, num_neighbours=2)
    (alone,) = generate(opened.model, opened.tokenizer, [prompt], retriever=opened.database, options=options)
    assert message.content == alone.text and answer.usage.prompt_tokens == len(prompt)
    assert (
        len(answer.choices[0].logprobs.content) == 16 and len(answer.choices[0].logprobs.content[0].top_logprobs) == 2
    )
    note = message.annotations[0]
    assert note.url_citation.url.startswith("https://docs.test/d") and note.url_citation.title.startswith("Title ")
    assert 0 <= note.url_citation.start_index < note.url_citation.end_index <= len(message.content)
    frames = list(
        client.chat.completions.create(
            **asked, max_completion_tokens=16, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(frame.choices[0].delta.content or "" for frame in frames if frame.choices) == alone.text
    ended = next(frame.choices[0] for frame in frames if frame.choices and frame.choices[0].finish_reason)
    assert ended.delta.model_extra["annotations"] == [each.model_dump() for each in message.annotations]
    assert frames[-1].usage.completion_tokens == 16 and frames[-1].model_extra["search_results"]
    off = {"retroflow": {"retrieval": False}}
    last = list(client.chat.completions.create(**asked, max_completion_tokens=4, stream=True, extra_body=off))[-1]
    assert last.model_extra["retroflow"]["sources"] == [] and last.model_extra["search_results"] == []
    with pytest.raises(openai.BadRequestError, match=r"messages\[0\].content spells <\|endoftext\|>"):
        client.chat.completions.create(model="small", messages=[{"role": "user", "content": "<|endoftext|>"}])


def test_64_clients_at_once_get_their_own_texts_and_sources(url, opened) -> None:
    prompts = [prompt_of(number, 3 + number % 17) for number in range(64)]

    async def ask(client, number):
        stream = number % 2 == 0
        answer = await client.completions.create(
            model="small", prompt=prompts[number], max_tokens=8 + number % 11, temperature=0, stream=stream
        )
        if not stream:
            return answer.choices[0].text, answer.model_extra["retroflow"]["sources"]
        frames = [frame async for frame in answer]
        return "".join(frame.choices[0].text for frame in frames), frames[-1].model_extra["retroflow"]["sources"]

    async def ask_all():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=250) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(64)))

    for number, (text, sources) in enumerate(asyncio.run(ask_all())):
        alone = opened.generate(prompts[number], max_new_tokens=8 + number % 11)
        assert text == alone.text
        assert {(each["document"], each["text"]) for each in sources} <= {(s.document, s.text) for s in alone.sources}
        assert sources


def test_clients_that_go_away_end_their_jobs(url, client) -> None:
    """With a stream and without: the number of generated tokens stops growing long before the end."""
    import urllib.request

    def generated():
        text = urllib.request.urlopen(f"{url}/metrics", timeout=30).read().decode()
        line = next(line for line in text.splitlines() if line.startswith("retroflow_generated_tokens_total"))
        return float(line.split()[1])

    start = generated()
    stream = client.completions.create(model="small", prompt=prompt_of(5), max_tokens=2000, temperature=0, stream=True)
    next(iter(stream))
    stream.close()
    with pytest.raises(openai.APITimeoutError):
        client.completions.create(model="small", prompt=prompt_of(5), max_tokens=2000, temperature=0, timeout=0.3)
    before, now = -1.0, generated()
    while now != before:
        threading.Event().wait(0.5)
        before, now = now, generated()
    assert now - start < 3500
    assert client.completions.create(model="small", prompt="a", max_tokens=1).usage.completion_tokens == 1


def test_a_client_that_leaves_before_the_first_text_of_a_stream_is_noticed(opened) -> None:
    service, joined, release = Service(opened, name="small"), [], threading.Event()
    join = service.worker.batch.join
    service.worker.batch.join = lambda jobs: (joined.extend(jobs), release.wait(200), join(jobs))
    body = b'{"prompt": "abc", "stream": true}'
    request = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    with listening(service) as address:
        try:
            with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as connection:
                connection.sendall(request)
                wait_until(lambda: joined)
                assert not joined[0].is_cancelled
            wait_until(lambda: joined[0].is_cancelled)
        finally:
            release.set()


def test_an_error_in_a_stream_reaches_the_client(opened) -> None:
    class Broken:
        def retrieve(self, queries, num_neighbours):
            if asked:
                raise RetrieverError("the index is gone")
            asked.append(queries)
            return opened.database.retrieve(queries, num_neighbours)

    asked = []
    service = Service(opened, name="small")
    service.worker.batch.decoding.retriever = Broken()
    with listening(service) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client:
        stream = client.completions.create(model="small", prompt="abc", max_tokens=40, temperature=0, stream=True)
        with pytest.raises(openai.APIError, match="the index is gone"):
            list(stream)


def test_lm_eval_scores_over_http_what_the_model_scores(url, opened, tmp_path) -> None:
    pytest.importorskip("tenacity", reason="lm-eval[api] is not installed")
    completions = pytest.importorskip("lm_eval.models.openai_completions", reason="lm-eval is not installed")
    from lm_eval.api.instance import Instance

    opened.tokenizer.save(tmp_path)
    model = completions.LocalCompletionsAPI(
        base_url=f"{url}/v1/completions", model="small", tokenizer=str(tmp_path), tokenizer_backend="huggingface",
        num_concurrent=1, max_retries=1, batch_size=2,
    )  # fmt: skip
    pairs = [(prompt_of(number, 8 + number), " " + prompt_of(50 + number, 2)) for number in range(5)]
    asked = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    for (context, text), (loglikelihood, is_greedy) in zip(pairs, model.loglikelihood(asked), strict=True):
        num_context = len(opened.tokenizer.encode(context).ids)
        nats = opened.score(context + text).nats[num_context - 1 :]
        assert loglikelihood == pytest.approx(-sum(nats), rel=1e-6) and is_greedy is False
    from retroflow.integrations.lm_eval import RetroflowLM

    for one, other in zip(model.loglikelihood(asked), RetroflowLM(opened).loglikelihood(asked), strict=True):
        assert one[0] == pytest.approx(other[0], abs=1e-6) and one[1] == other[1]
    texts = [Instance("loglikelihood_rolling", {}, (prompt_of(number, 20),), number) for number in range(3)]
    inside = RetroflowLM(opened).loglikelihood_rolling(texts)
    assert model.loglikelihood_rolling(texts) == pytest.approx(inside, abs=1e-6)
    off = open_model(None, opened.tokenizer, double=True)  # without retrieval no window depends on where a context ends
    with listening(Service(off, name="small")) as address:
        model.base_url = f"{address}/v1/completions"
        found = model.loglikelihood(asked)
    for one, other in zip(found, RetroflowLM(off).loglikelihood(asked), strict=True):
        assert one[0] == pytest.approx(other[0], rel=1e-6) and one[1] == other[1]
