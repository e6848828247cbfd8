"""The endpoints of a server in this process."""

import json

import pytest

from retroflow.generation import Source
from retroflow.serving.sources import ReadSource, as_annotations, as_own, as_search_results, link_to
from tests.serving.small import prompt_of


def complete(client, **body):
    answer = client.post("/v1/completions", json={"temperature": 0, "max_tokens": 20} | body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def frames_of(response):
    lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def generated(client):
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("retroflow_generated_tokens_total"))


def test_completions_are_what_the_model_generates(client, opened) -> None:
    prompts = [prompt_of(1), prompt_of(2, 20), opened.tokenizer.encode(prompt_of(3)).ids.tolist()]
    answer = complete(client, prompt=prompts, seed=5, n=2, temperature=0.8, top_p=0.9, stop=["q"], max_tokens=24)
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    for number, choice in enumerate(answer["choices"]):
        prompt = prompts[number // 2] if number < 4 else prompt_of(3)
        alone = opened.generate(prompt, seed=5 + number, temperature=0.8, top_p=0.9, stop=("q",), max_new_tokens=24)
        assert choice["text"] == alone.text
        assert choice["finish_reason"] == ("length" if alone.finish_reason == "length" else "stop")
    num_tokens = [len(opened.tokenizer.encode(prompt_of(*each)).ids) for each in ((1,), (2, 20), (3,))]
    assert answer["usage"]["prompt_tokens"] == sum(num_tokens)


def test_echo_with_logprobs_is_the_score_of_the_text(client, opened) -> None:
    text = prompt_of(4, 12)
    choice = complete(client, prompt=text, echo=True, logprobs=3, max_tokens=0)["choices"][0]
    scored, found = opened.score(text), choice["logprobs"]
    assert choice["text"] == text and found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
    assert [-each for each in found["token_logprobs"][1:]] == pytest.approx(list(scored.nats), abs=1e-5)
    assert all(1 <= len(top) <= 3 for top in found["top_logprobs"][1:])
    assert "".join(found["tokens"]) == text and found["text_offset"][1] == len(found["tokens"][0])
    more = complete(client, prompt=text, echo=True, logprobs=3, max_tokens=5)["choices"][0]
    assert more["logprobs"]["token_logprobs"][: len(scored.tokens)] == found["token_logprobs"]
    assert len(more["logprobs"]["tokens"]) == len(scored.tokens) + 5 and more["text"].startswith(text)


def test_a_stream_is_the_whole_answer_in_pieces(client) -> None:
    body = {"prompt": [prompt_of(5), prompt_of(6, 15)], "max_tokens": 20, "temperature": 0, "logprobs": 1, "seed": 1}
    whole = client.post("/v1/completions", json=body | {"echo": True}).json()
    options = {"stream": True, "echo": True}
    for usage in (True, False):
        with client.stream(
            "POST", "/v1/completions", json=body | options | {"stream_options": {"include_usage": usage}}
        ) as response:
            frames = frames_of(response)
        texts, logprobs, annotations, ends = ["", ""], [[], []], [None, None], [None, None]
        for frame in frames:
            for choice in frame["choices"]:
                index = choice["index"]
                texts[index] += choice["text"]
                logprobs[index] += choice["logprobs"]["token_logprobs"] if choice["logprobs"] else []
                annotations[index] = choice.get("annotations", annotations[index])
                ends[index] = choice["finish_reason"] or ends[index]
        assert texts == [choice["text"] for choice in whole["choices"]]
        assert ends == ["length", "length"]
        assert annotations == [choice["annotations"] for choice in whole["choices"]]
        for found, choice in zip(logprobs, whole["choices"], strict=True):
            assert found[1:] == pytest.approx(choice["logprobs"]["token_logprobs"][1:], abs=1e-4)
        last = frames[-1]
        assert last["search_results"] == whole["search_results"] and last["search_results"]
        assert len(last["retroflow"]["sources"]) == len(whole["retroflow"]["sources"])
        assert (last.get("usage") == whole["usage"]) == usage and (not last["choices"]) == usage


def test_sources_say_what_was_read_where_and_what_it_was_worth(client, opened) -> None:
    prompt = prompt_of(7)
    answer = complete(client, prompt=prompt, max_tokens=24, echo=True)
    generation = opened.generate(prompt, max_new_tokens=24)
    text, sources = answer["choices"][0]["text"], answer["retroflow"]["sources"]
    read = {(source.document, source.text) for source in generation.sources}
    assert {(each["document"], each["text"]) for each in sources} <= read and sources
    assert all(len(prompt) <= each["start"] <= each["end"] <= len(text) for each in sources)
    assert min(each["start"] for each in sources) == len(prompt) and max(each["end"] for each in sources) == len(text)
    tokens = list(generation.tokens)
    scored = [model.score(generation.text, context=prompt) for model in (opened, opened.with_database(None))]
    if len(scored[0].tokens) == len(tokens):  # the text spells these tokens
        spans = {(each["start"], each["end"]): each["influence"] for each in sources}
        assert sum(spans.values()) == pytest.approx(sum(scored[1].nats) - sum(scored[0].nats), abs=1e-3)
    assert all(isinstance(each["influence"], float) for each in sources)
    quick = complete(client, prompt=prompt, retroflow={"influence": False})["retroflow"]["sources"]
    assert quick and all(each["influence"] is None for each in quick)
    off = complete(client, prompt=prompt, retroflow={"retrieval": False})
    assert off["choices"][0]["text"] == opened.with_database(None).generate(prompt, max_new_tokens=20).text
    assert (off["retroflow"]["sources"], off["search_results"], off["choices"][0]["annotations"]) == ([], [], [])


def test_no_document_names_an_address_that_runs_a_script() -> None:
    def link(where: str) -> str:
        return link_to(Source("d", "", where, "", 0.0, 0))

    for where in ("https://docs.test/a?b=c#d", "HTTP://docs.test", "file:///a/b.md", "docs/a b.md"[:6]):
        assert link(where) == where
    for where in ("javascript:alert(1)", " jAvAscript:alert(1)", "java\nscript:x", "data:text/html,x", "vbscript:x"):
        assert ":" not in link(where) and "\n" not in link(where)
    assert ":" not in link("https://a\njavascript:x") and link("docs/ü b.md") == "docs/%C3%BC%20b.md"
    source = Source("javascript:alert(1)", "", "", "", 0.0, 0)
    found = [ReadSource(0, 1, source, None)]
    urls = [as_annotations(found)[0]["url_citation"]["url"], as_search_results(found)[0]["url"]]
    assert urls == ["javascript%3Aalert(1)"] * 2 and as_own(found, 0)[0]["document"] == source.document


def test_models_health_and_metrics(client) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == "small" and model["retroflow"]["database"]["version"] == 1
    assert client.get("/v1/models/small").json() == model and client.get("/v1/models/other").status_code == 404
    assert client.get("/health", headers={"Authorization": ""}).json() == {"status": "ok"}
    before = generated(client)
    assert complete(client, prompt="a", max_tokens=7)["usage"]["completion_tokens"] == 7
    assert generated(client) == before + 7
    assert 'retroflow_requests_total{path="/v1/completions",status="200"}' in client.get("/metrics").text
