"""What a server refuses, and how: OpenAI's errors, keys, sizes, and bodies that make no sense."""

import json
import random
import threading

import pytest
from starlette.testclient import TestClient

from retroflow.database.database import Database
from retroflow.errors import UsageError
from retroflow.serving.app import make_app
from retroflow.serving.bodies import BadRequest, Body
from retroflow.serving.options import Keys, ServerOptions, check_host, read_key
from retroflow.serving.service import Service
from tests.serving.small import READ_KEY, WRITE_KEY, open_model, prompt_of
from tests.waiting import wait_until

GOOD = {"prompt": "abc", "max_tokens": 2}

WRONG = [
    ("/v1/completions", b"{", 400, "the body is not JSON"),
    ("/v1/completions", b"[1]", 400, "the body is a list"),
    ("/v1/completions", b'{"prompt": "a", "temperature": NaN}', 400, "NaN is not JSON"),
    ("/v1/completions", {}, 400, "prompt is missing"),
    ("/v1/completions", {"prompt": []}, 400, "prompt is []; allowed"),
    ("/v1/completions", {"prompt": [[]]}, 400, "prompt is [[]]; allowed"),
    ("/v1/completions", {"prompt": ""}, 400, "has no token"),
    ("/v1/completions", {"prompt": [[1, 10**9]]}, 400, "token 1000000000 given; the vocabulary has"),
    ("/v1/completions", b'{"prompt": "\\ud800"}', 400, "half of a surrogate pair"),
    ("/v1/completions", {"prompt": "ab " * 300}, 400, "this server takes up to 200"),
    ("/v1/completions", {"prompt": "ab " * 3000}, 400, "more than the 200 tokens"),
    ("/v1/completions", {"prompt": ["a"] * 65}, 400, "prompt is a list of 65"),
    ("/v1/completions", GOOD | {"max_tokens": 65}, 400, "max_tokens is 65; allowed: a whole number from 0 to 64"),
    ("/v1/completions", GOOD | {"max_tokens": 0}, 400, "with echo only"),
    ("/v1/completions", GOOD | {"max_tokens": True}, 400, "max_tokens is true"),
    ("/v1/completions", GOOD | {"temperature": -1}, 400, "temperature is -1; allowed: a number from 0"),
    ("/v1/completions", GOOD | {"n": 33}, 400, "more than the 32 texts that may wait"),
    ("/v1/completions", GOOD | {"best_of": 3}, 400, "best_of is 3"),
    ("/v1/completions", GOOD | {"stop": [1]}, 400, "stop is [1]; allowed"),
    ("/v1/completions", GOOD | {"stream": "yes"}, 400, 'stream is "yes"; allowed: true or false'),
    ("/v1/completions", GOOD | {"logprobs": 21}, 400, "logprobs is 21"),
    ("/v1/completions", GOOD | {"suffix": "x"}, 400, "suffix is not supported"),
    ("/v1/completions", GOOD | {"temprature": 1}, 400, '"temprature" is no known field'),
    ("/v1/completions", GOOD | {"retroflow": {"retrieve": True}}, 400, '"retroflow.retrieve" is no known field'),
    ("/v1/completions", GOOD | {"model": "gpt"}, 404, 'there is no such model; this server has "small"'),
    ("/v1/completions", b'{"prompt": "' + b"a" * 20_000 + b'"}', 413, "longer than 20000 bytes"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}, 400, "no chat template; use /v1/comp"),
    ("/v1/chat/completions", {"messages": [{"role": "boss", "content": "a"}]}, 400, "messages[0].role: allowed"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": 3}]}, 400, "messages[0].content"),
    ("/v1/retrieval/search", {"query": " "}, 400, "query is blank"),
    ("/v1/retrieval/search", {"query": "a", "k": 0}, 400, "k is 0"),
    ("/v1/none", {}, 404, "Not Found"),
]


@pytest.mark.parametrize(("path", "body", "status", "words"), WRONG, ids=[f"{each[3][:30]}" for each in WRONG])
def test_what_is_wrong_is_refused_with_a_reason(client, path, body, status, words) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post(path, content=content)
    error = answer.json()["error"]
    assert (answer.status_code, set(error)) == (status, {"message", "type", "param", "code"})
    assert words in error["message"]


def test_a_long_prompt_is_refused_by_its_beginning(client, service, monkeypatch) -> None:
    encoded, encode = [], type(service.opened.tokenizer).encode
    monkeypatch.setattr(
        type(service.opened.tokenizer), "encode", lambda self, text: encoded.append(len(text)) or encode(self, text)
    )
    answer = client.post("/v1/completions", json={"prompt": "ab " * 6000})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "context_length_exceeded"
    assert "more than the 200 tokens" in answer.json()["error"]["message"] and encoded == [1600]


def test_a_value_that_can_just_be_read_is_refused_in_words() -> None:
    for depth in range(1, 1200):  # somewhere in between it can be read and not be written
        with pytest.raises(BadRequest):
            Body(b'{"seed": ' + b"[" * depth + b"]" * depth + b"}").whole_number("seed", 0, least=0, most=1)


def test_a_template_that_fails_is_refused_whatever_it_raises(client, service, monkeypatch) -> None:
    for template, words in [
        ("{{ raise_exception('no system') }}", "TemplateError: no system"),
        ("{{ messages[0].content + 1 }}", "TypeError: can only concatenate str"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{% for", "TemplateSyntaxError"),
    ]:
        monkeypatch.setattr(service.opened.tokenizer, "chat_template", template)
        answer = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "a"}]})
        message = answer.json()["error"]["message"]
        assert answer.status_code == 400 and "the chat template of this model refuses the messages" in message
        assert words in message


def test_fields_of_others_that_change_nothing_are_taken(client) -> None:
    more = {"user": "me", "logit_bias": {}, "presence_penalty": 0, "suffix": None, "best_of": 1, "model": "small"}
    assert client.post("/v1/completions", json=GOOD | more).status_code == 200
    assert client.post("/v1/completions", json=GOOD | {"temperature": 0, "top_p": 0.5, "top_k": 3}).status_code == 200
    assert client.post("/v1/completions", json=GOOD | {"top_p": 0, "seed": -5}).status_code == 200


def test_keys_divide_asking_from_changing(client) -> None:
    def status(path, key, body=GOOD):
        headers = {"Authorization": key}
        answer = client.get(path, headers=headers) if body is None else client.post(path, json=body, headers=headers)
        return answer.status_code

    documents = {"documents": [{"id": "d000", "text": "x"}]}
    read, write = f"Bearer {READ_KEY}", f"bearer {WRITE_KEY}"
    assert [status("/v1/completions", key) for key in ("", "Bearer", "Bearer nope", f"Basic {READ_KEY}", read, write)] == [
        401, 401, 401, 401, 200, 200,
    ]  # fmt: skip
    assert [status("/v1/retrieval/add", key, documents) for key in ("", b"Bearer \xfc", read)] == [401, 401, 403]
    assert status("/v1/retrieval/add", write, documents) == 400  # the database has that document
    assert [status(path, "", None) for path in ("/v1/models", "/metrics", "/health", "/")] == [401, 401, 200, 200]


def test_pages_of_other_sites_are_not_answered(client) -> None:
    for headers in ({"Origin": "https://evil.test"}, {"Origin": "null"}, {"Host": "evil.test:8000"}, {"Host": ""}):
        answer = client.post("/v1/completions", json=GOOD, headers=headers)
        assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers
    own = {"Origin": "http://127.0.0.1:8000", "Host": "127.0.0.1:8000"}
    assert client.post("/v1/completions", json=GOOD, headers=own).status_code == 200


def test_a_server_without_keys_is_for_this_machine_alone(tmp_path, monkeypatch) -> None:
    check_host("127.0.0.1", Keys(), without_key=False)
    check_host("::1", Keys(), without_key=False)
    check_host("0.0.0.0", Keys("a"), without_key=False)
    check_host("0.0.0.0", Keys(), without_key=True)
    with pytest.raises(
        UsageError, match='--host is "0.0.0.0", which other machines reach, and there is no key'
    ) as caught:
        check_host("0.0.0.0", Keys(), without_key=False)
    assert "\n" not in str(caught.value)
    (tmp_path / "key").write_text("secret\n")
    assert read_key(tmp_path / "key", "X", {"X": "other"}, "--api-key-file") == "secret"
    assert read_key(None, "X", {"X": "other"}, "--api-key-file") == "other"
    assert read_key(None, "X", {}, "--api-key-file") is None
    (tmp_path / "key").write_text(" \n")
    with pytest.raises(UsageError, match="--api-key-file .*key: holds no key"):
        read_key(tmp_path / "key", "X", {}, "--api-key-file")
    with pytest.raises(UsageError, match="--api-key-file .*none: cannot be read"):
        read_key(tmp_path / "none", "X", {}, "--api-key-file")


def serve(database_folder, **options):
    service = Service(open_model(Database.open(database_folder)), name="small", options=ServerOptions(**options))
    return service, TestClient(make_app(service), base_url="http://127.0.0.1")


def test_a_full_queue_is_429_and_those_that_wait_are_answered(database_folder) -> None:
    service, client = serve(database_folder, max_running=1, max_waiting=2, max_seconds=1000)
    release, compute, answers = threading.Event(), service.worker.batch.step, []
    service.worker.batch.step = lambda: (release.wait(200), compute())

    def ask() -> None:
        answers.append(client.post("/v1/completions", json=GOOD | {"max_tokens": 9}))

    with client:
        threads = [threading.Thread(target=ask) for _ in range(3)]
        try:
            for waiting, thread in enumerate(threads):
                thread.start()
                wait_until(lambda n=waiting: (len(service.worker.batch), len(service.worker._waiting)) == (1, n))
            full = client.post("/v1/completions", json=GOOD)
        finally:
            release.set()
        for thread in threads:
            thread.join(200)
    assert full.status_code == 429 and full.headers["retry-after"] == "1"
    assert full.json()["error"]["type"] == "rate_limit_error"
    assert [answer.status_code for answer in answers] == [200] * 3


def test_an_answer_that_takes_too_long_is_504(database_folder) -> None:
    service, client = serve(database_folder, max_seconds=0.5)
    never = threading.Event()
    service.worker.batch.step = lambda: never.wait(0.05)  # it computes no token
    with client:
        answer = client.post("/v1/completions", json=GOOD)
    assert answer.status_code == 504 and answer.json()["error"]["type"] == "timeout_error"


def test_a_server_whose_worker_died_says_so(database_folder) -> None:
    service, client = serve(database_folder)

    def die():
        raise SystemExit

    with client:
        assert client.post("/v1/completions", json=GOOD).status_code == 200
        service.worker.batch.step = die
        assert client.post("/v1/completions", json=GOOD).status_code == 503
        assert client.get("/health").status_code == 503
        assert client.post("/v1/completions", json=GOOD).status_code == 503


NAMES = [
    *(
        "prompt",
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "n",
        "stop",
        "seed",
        "stream",
        "echo",
        "logprobs",
        "messages",
    ),
    *(
        "stream_options",
        "query",
        "k",
        "documents",
        "ids",
        "retroflow",
        "model",
        "best_of",
        "suffix",
        "logit_bias",
        "user",
    ),
    *("repetition_penalty", "tools", "response_format", "max_completion_tokens"),
]


def random_value(draw: random.Random, depth: int = 0):
    simple = [
        lambda: draw.choice([None, True, False, 0, 1, 2, -1, 10**30, 1e308, -0.0, 0.5, "", "a", "\x00", "\u2028", "é" * 5, "\ud800"]),
        lambda: draw.randint(-3, 300),
        lambda: draw.choice(["small", "stop", prompt_of(draw.randint(0, 9)), "<|endoftext|>", "user"]),
        lambda: [draw.randint(-1, 320) for _ in range(draw.randint(0, 6))],
    ]  # fmt: skip
    nested = [
        lambda: [random_value(draw, depth + 1) for _ in range(draw.randint(0, 4))],
        lambda: {draw.choice([*NAMES, "role", "content", "id", "text", "retrieval", "include_usage"]): random_value(draw, depth + 1) for _ in range(draw.randint(0, 4))},
    ]  # fmt: skip
    return draw.choice(simple + (nested if depth < 3 else []))()


def random_body(draw: random.Random) -> bytes:
    if draw.random() < 0.05:
        return draw.randbytes(draw.randint(0, 40))
    if draw.random() < 0.02:
        return b"[" * 5000
    good = {"prompt": prompt_of(1), "max_tokens": 1, "messages": [{"role": "user", "content": "a"}], "query": "a"}
    body = {name: good[name] for name in draw.sample(sorted(good), draw.randint(0, 2))}
    body |= {draw.choice(NAMES): random_value(draw) for _ in range(draw.randint(0, 4))}
    text = json.dumps(body, ensure_ascii=draw.random() < 0.9).encode("utf-8", "surrogatepass")
    return text[: draw.randint(0, len(text))] if draw.random() < 0.05 else text


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])])
def test_no_body_makes_a_server_fail(tmp_path, database_folder, count: int) -> None:
    """Whatever is sent is answered, or refused with a reason; the server goes on."""
    import shutil

    shutil.copytree(database_folder, tmp_path / "db")
    service = Service(
        open_model(Database.open(tmp_path / "db")), name="small", keys=Keys(None, WRITE_KEY),
        options=ServerOptions(max_new_tokens=4, max_prompt_tokens=64, max_waiting=8),
    )  # fmt: skip
    draw = random.Random(count)
    paths = (
        ["/v1/completions"] * 5
        + ["/v1/chat/completions"] * 2
        + [f"/v1/retrieval/{verb}" for verb in ("search", "add", "remove")]
    )
    headers, statuses = {"Authorization": f"Bearer {WRITE_KEY}"}, set()
    with TestClient(make_app(service), base_url="http://127.0.0.1", raise_server_exceptions=True) as client:
        for _ in range(count):
            path, body = draw.choice(paths), random_body(draw)
            answer = client.post(path, content=body, headers=headers)
            statuses.add(answer.status_code)
            assert answer.status_code in (200, 400, 404), (path, body, answer.text)
            if answer.status_code != 200:
                assert answer.json()["error"]["message"]
        assert statuses >= {200, 400}
        assert client.post("/v1/completions", json=GOOD).status_code == 200
