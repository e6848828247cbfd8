"""`retroflow db` as it is typed, and models that read a database."""

import json
from pathlib import Path

import pytest

import retroflow as rf
from retroflow.evaluation.stored_report import read_report
from retroflow.testing.tiny_corpus import write_tiny_corpus

BUILD = ("embedder.name=lexical", "embedder.dimension=32", "retriever.name=exact", "data.vocabulary_size=300")


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / f"{name}.md").write_text(f"The {name} manual says what {name} does. " * 6)
    return folder


@pytest.fixture
def kb(tmp_path: Path, docs: Path, retroflow) -> Path:
    words = ("corpus.name=text", f"corpus.path={docs}", "corpus.include=*.md", "data.chunk_length=8")
    code, out, err = retroflow("db", "build", tmp_path / "kb", *words, *BUILD)
    assert code == 0, err
    assert out.startswith("3 added, 0 changed, 0 removed, 0 the same; version 1: 3 documents, ")
    return tmp_path / "kb"


def test_a_folder_is_followed(kb: Path, docs: Path, retroflow) -> None:
    (docs / "a.md").unlink()
    (docs / "b.md").write_text("The manual of b is another.")
    (docs / "d.md").write_text("A sentinel sentence stands here.")
    assert retroflow("db", "sync", kb, "--dry-run")[1].startswith(
        "1 added, 1 changed, 1 removed, 1 the same; nothing was"
    )
    assert retroflow("db", "sync", kb, docs)[1].startswith("1 added, 1 changed, 1 removed, 1 the same; version")
    assert retroflow("db", "sync", kb)[1].startswith("0 added, 0 changed, 0 removed, 3 the same; version")
    assert [line.split()[0] for line in retroflow("db", "list", kb)[1].splitlines()] == ["id", "b.md", "c.md", "d.md"]
    assert retroflow("db", "show", kb, "d.md")[1] == "A sentinel sentence stands here.\n"
    out = retroflow("db", "search", kb, "sentinel sentence", "-k", 2, "--json")[1]
    found = json.loads(out)
    assert set(found["neighbours"][0]) >= {"document", "text", "continuation", "score", "source"}
    assert found["query"] == "sentinel sentence" and found["neighbours"][0]["document"] == "d.md"
    assert "1. d.md, chunk 1, score" in retroflow("db", "search", kb, "sentinel sentence")[1]
    assert "a.md" in retroflow("db", "list", f"{kb}@1")[1]
    assert retroflow("db", "tag", kb, "first", 1)[1] == 'version 1 is "first"\n'
    assert "first" in retroflow("db", "versions", kb)[1]
    assert retroflow("db", "tag", kb, "first", "--delete")[0] == 0
    assert json.loads(retroflow("db", "info", kb, "--json")[1])["documents"] == 3


def test_a_document_is_erased_and_it_is_shown(kb: Path, retroflow) -> None:
    sentinel = "An unheard quetzal sentence of nine zebras is only here and nowhere else."
    assert retroflow("db", "add", kb, "--id", "s", "--text", sentinel)[0] == 0
    assert retroflow("db", "verify", kb, "--erased", "s")[0] == 2
    assert retroflow("db", "remove", kb, "s")[0] == 0
    code, _, err = retroflow("db", "verify", kb, "--erased", "s")
    assert code == 1 and "tokens.npy: tokens" in err and "embeddings.npy: vectors" in err
    for verb in ("compact", "purge"):
        assert retroflow("db", verb, kb)[0] == 0
    code, out, err = retroflow("db", "verify", kb, "--erased", "s")
    assert code == 0 and out.startswith('nothing is left of "s"'), err
    assert retroflow("db", "verify", kb)[1].startswith("no damage: versions 1, ")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("add", "kb"), 2, "nothing to read is given"),
        (("add", "kb", "docs", "more"), 2, '"more": a second path'),
        (("add", "kb", "--id", "x"), 2, "--id and --text belong together"),
        (("add", "kb", "docs", "corpus.includ=x"), 2, 'Did you mean "include"'),
        (("remove", "kb"), 2, "no document is named"),
        (("remove", "kb", "--ids-file", "nowhere"), 2, '"nowhere": cannot be read'),
        (("sync", "kb", "empty"), 2, "no file"),
        (("search", "kb", " "), 2, "the text is blank"),
        (("verify", "kb", "--erased", "never"), 2, "nothing is known of a document"),
        (("list", "nowhere"), 2, "there is no such folder"),
        (("build", "new", "corpus.name=text"), 2, "corpus.path is missing"),
        (("build", "new", "--like", "kb", "--from", "kb"), 2, "exclude each other"),
        (("build", "new", "--like", "kb", "retriever.name=faiss"), 2, "give corpus options only"),
        (("build", "kb", *BUILD, "corpus.name=text", "corpus.path=docs"), 2, "is a database already"),
    ],
)
def test_wrong_words(kb: Path, docs: Path, retroflow, monkeypatch, words, code, message) -> None:
    monkeypatch.chdir(kb.parent)
    (kb.parent / "empty").mkdir()
    found, _, err = retroflow("db", *words)
    assert (found, "Traceback" in err) == (code, False) and message in err


def test_models_read_databases(trained: Path, tmp_path: Path, retroflow) -> None:
    """Generated text has sources from it; a loss is the same with a synced and with a fresh one."""
    old, new = (
        write_tiny_corpus(tmp_path / name, 14, seed=seed)
        for name, seed in (("old", 5), ("new", 6))
        if not (tmp_path / name).mkdir()
    )
    for name, corpus in (("synced", old), ("fresh", new)):
        words = ("corpus.name=jsonl", f"corpus.path={corpus}")
        code, _, err = retroflow("db", "build", tmp_path / name, "--like", trained, *words)
        assert code == 0, err
    assert retroflow("db", "sync", tmp_path / "synced", new)[0] == 0
    databases = [rf.Database.open(tmp_path / name) for name in ("synced", "fresh")]
    assert databases[0].fingerprint == databases[1].fingerprint and databases[0].version.number > 1
    reports = [
        rf.evaluate(trained, f"database={tmp_path / name}", output=tmp_path / f"{name}.json")
        for name in ("synced", "fresh")
    ]
    for mode, measure in reports[0].measures.items():
        assert measure.nats == pytest.approx(reports[1].measures[mode].nats, abs=1e-6)
    prompt = json.loads(new.read_text().splitlines()[0])["text"][:80]
    answers = [rf.load(trained, database=each).generate(prompt, max_new_tokens=9) for each in databases]
    assert answers[0].sources and answers[0].text == answers[1].text
    code, _, err = retroflow(
        "generate", trained, "--prompt", prompt, "--database", tmp_path / "synced", "--show-sources"
    )
    assert code == 0 and f"database synced@{databases[0].version.number}" in err
    other = rf.Database.build(tmp_path / "other", new, embedder="lexical", vocabulary_size=300, chunk_length=8)
    code, _, err = retroflow("generate", trained, "--prompt", "x", "--database", other.folder)
    assert code == 2 and "was made with another tokenizer" in err and "retroflow db build DB data.tokenizer=" in err


def test_a_runs_artifacts_become_a_database_and_a_recipe_may_name_it(
    trained: Path, tmp_path: Path, retroflow, monkeypatch
) -> None:
    monkeypatch.setattr("retroflow.embedding.checked.CheckedEmbedder.embed", None)
    assert retroflow("db", "build", tmp_path / "kb", "--from", trained)[0] == 0
    monkeypatch.undo()
    recipe = trained.parents[2] / "tiny.yaml"
    words = (f"database={tmp_path / 'kb'}", "corpus.valid_share=0.3", f"trainer.runs_folder={tmp_path / 'runs'}")
    monkeypatch.setattr("retroflow.embedding.checked.CheckedEmbedder.embed", None)
    code, _, err = retroflow("prepare", "--recipe", recipe, *words, f"data.artifacts_folder={tmp_path / 'artifacts'}")
    assert code == 0, err
    monkeypatch.undo()
    code, _, err = retroflow(
        "fit", "--recipe", recipe, *words, "trainer.max_steps=1", f"data.artifacts_folder={tmp_path / 'artifacts'}"
    )
    assert code == 0, err
    run = tmp_path / "runs" / "tiny" / "0001"
    assert read_report(run).values["training"]["steps"] == 1
    assert "database kb@1" in repr(rf.load(run)) and rf.load(run).generate("Notes", max_new_tokens=9).sources
    code, _, err = retroflow("recipe", "check", "--recipe", recipe, words[0], "corpus.path=x", "retriever.name=bm25")
    assert code == 2 and err.count("which decides it; remove one of the two.") == 2
    assert "there is no such folder" in retroflow("recipe", "check", "--recipe", recipe, "database=nowhere")[2]
