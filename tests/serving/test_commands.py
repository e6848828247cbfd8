"""`retroflow serve` and `retroflow chat`, as far as they do not run for ever."""

import io
import sys
from pathlib import Path

import pytest

from retroflow.cli.main import run
from retroflow.database.database import Database
from retroflow.errors import GenerationError
from retroflow.serving import server
from retroflow.serving.conversation import Conversation
from retroflow.serving.opening import open_served
from retroflow.serving.service import Service
from tests.database.small import build, documents_of
from tests.pretrained.bases import make_base
from tests.serving.small import open_model, prompt_of


@pytest.fixture(scope="module")
def exported(database_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    open_model(Database.open(database_folder)).save(folder)
    return folder


@pytest.fixture
def command(capfd):
    def go(*words):
        capfd.readouterr()
        return run([str(word) for word in words]), *capfd.readouterr()

    return go


def test_serve_opens_what_flags_say(command, exported, database_folder, tmp_path, monkeypatch) -> None:
    served: list[tuple[Service, dict]] = []
    monkeypatch.setattr(server, "serve", lambda service, **where: served.append((service, where)))
    monkeypatch.setenv("RETROFLOW_API_KEY", "from-environment")
    (tmp_path / "write").write_text("of-a-file\n")
    words = (
        "--port",
        0,
        "--max-running",
        3,
        "--max-seconds",
        7,
        "--neighbours",
        1,
        "--write-key-file",
        tmp_path / "write",
        "--precision",
        "bf16",
    )
    code, _, err = command("serve", exported, "--database", database_folder, "--name", "mine", *words)
    ((service, where),) = served
    assert code == 0 and where == {"host": "127.0.0.1", "port": 0, "without_key": False}, err
    assert (service.name, service.options.max_running, service.options.max_seconds) == ("mine", 3, 7.0)
    assert (service.keys.read, service.keys.write) == ("from-environment", "of-a-file")
    assert service.worker.batch.decoding.options.num_neighbours == 1 and service.worker.batch.decoding.narrow


def test_serve_refuses_in_one_line(command, exported, database_folder, monkeypatch) -> None:
    monkeypatch.delenv("RETROFLOW_API_KEY", raising=False)
    for words, expected in [
        ((exported, "--host", "0.0.0.0"), '--host is "0.0.0.0", which other machines reach, and there is no key'),
        ((exported,), "--database: an exported model has no database of its own"),
        (("nowhere",), 'there is no folder "nowhere"; give a run, an exported folder, or with a database a pretrained'),
        (
            (exported, "--database", database_folder, "--host", "203.0.113.9", "--without-key"),
            "--port 8000: cannot be used",
        ),
        ((exported, "--database", database_folder, "--retrieval-step", 99), "--retrieval-step is 99; allowed"),
        (
            (exported, "--database", database_folder, "--precision", "int8"),
            '--precision is "int8" (text); allowed: "auto"',
        ),
        ((exported, "--database", database_folder, "--max-running", 0), "--max-running is 0; allowed: a whole number"),
        ((exported, "--database", database_folder, "--neighbours", 999), "--neighbours is 999; allowed: 1 to"),
    ]:
        code, out, err = command("serve", *words)
        lines = [line for line in err.splitlines() if not line.startswith("database ")]
        assert (code, out, len(lines)) == (2, "", 1) and expected in lines[0]


def test_serve_without_its_extra_says_what_to_install(command, exported, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "retroflow.serving.server")
    code, _, err = command("serve", exported)
    assert code == 4 and 'serve: needs uvicorn, which is not installed. Install it with: pip install "retroflow[' in err


def test_chat_continues_lines_shows_sources_and_obeys(command, exported, database_folder, monkeypatch) -> None:
    lines = [
        prompt_of(1),
        "/off",
        prompt_of(1),
        "/" + prompt_of(1),
        "//" + prompt_of(1),
        "",
        "/on",
        "/quit",
        prompt_of(2),
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    code, out, err = command("chat", exported, "--database", database_folder, "--max-new-tokens", 9)
    opened = open_model(Database.open(database_folder))
    on = opened.generate(prompt_of(1), max_new_tokens=9).text
    off = opened.with_database(None).generate(prompt_of(1), max_new_tokens=9).text
    path = opened.with_database(None).generate("/" + prompt_of(1), max_new_tokens=9).text
    assert code == 0 and out == f"{on}\n{off}\n{path}\n{path}\n"
    assert err.count("sources of prompt 1") == 1 and "retrieval is off\n" in err
    assert "has no chat template and continues each line" in err


def test_chat_keeps_the_conversation_in_the_template(database_folder) -> None:
    opened, out = open_model(Database.open(database_folder)), io.StringIO()
    opened.tokenizer.chat_template = (
        "{% for message in messages %}<{{ message.role }}>{{ message.content }}<|endoftext|>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    conversation = Conversation(opened, {"max_new_tokens": 6})
    conversation.run(["abc", "<|endoftext|>", "def"], out)
    assert [message["role"] for message in conversation._messages] == ["user", "assistant"] * 2
    answers = [message["content"] for message in conversation._messages if message["role"] == "assistant"]
    assert out.getvalue() == "".join(f"{answer}\n" for answer in answers)
    conversation.run(["/new"], out)
    assert conversation._messages == []


def test_a_pretrained_base_is_served_with_a_database(command, database_folder, tmp_path, monkeypatch) -> None:
    """It reads as recipes/attach_smollm2.yaml says; the database must have its tokenizer."""
    tokenizer = Database.open(database_folder).snapshot.tokenizer
    base = make_base("llama", vocab_size=tokenizer.vocabulary_size, max_position_embeddings=512)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save(tmp_path / "base")
    wanted = {"retrieval": True, "device": "cpu", "checkpoint": None}
    opened = open_served(str(tmp_path / "base"), database=database_folder, **wanted)
    assert opened.origin.recipe == "base" and opened.model.lookups_read == 16
    generation = opened.generate(prompt_of(1), max_new_tokens=4, retrieval_step=8)
    assert generation.sources and len(generation.tokens) == 4
    monkeypatch.setattr(sys, "stdin", io.StringIO(prompt_of(1)))
    code, out, err = command("chat", tmp_path / "base", "--database", database_folder, "--max-new-tokens", 4)
    assert (code, out) == (0, f"{generation.text}\n") and "sources of prompt 1" in err
    other = build(tmp_path / "other", documents_of(1, 2, 3), vocabulary_size=290)
    with pytest.raises(GenerationError, match="was made with another tokenizer"):
        open_served(str(tmp_path / "base"), database=other.folder, **wanted)
    with pytest.raises(GenerationError, match="is a pretrained base, which is served with a database"):
        open_served(str(tmp_path / "base"), database=None, **wanted)
