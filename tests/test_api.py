"""The front door: its names are frozen, its page is true, and it gives what the commands give."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

import retroflow as rf
from retroflow.cli.main import run as command
from retroflow.errors import GenerationError, UsageError
from tests.cli.conftest import write_recipe
from tests.house.tree import ROOT

NAMES = [
    "Capabilities", "Corpus", "Database", "Document", "Embedder", "LanguageModel", "ModelConfig", "Neighbours",
    "RetrievalModel", "Retriever", "Retro", "RetroConfig", "Run", "Tracker", "__version__", "bench", "compare", "curve", "embedder", "evaluate", "evaluate_tasks", "fit", "inspect",
    "load", "load_recipe", "open_run", "prepare", "report_page", "retriever", "retroflow_generate", "score", "training_curves",
]  # fmt: skip


def test_the_names_are_frozen() -> None:
    """A new name is a promise: add it here, to docs/index.md and to CHANGELOG.md."""
    assert rf.__all__ == NAMES
    assert all(getattr(rf, name) is not None for name in NAMES)
    assert dir(rf) == sorted(NAMES)
    with pytest.raises(AttributeError, match="module 'retroflow' has no attribute 'nothing'"):
        _ = rf.nothing


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> "rf.Run":
    return rf.fit(rf.load_recipe(write_recipe(tmp_path_factory.mktemp("api"), "tiny")))


def test_a_run_knows_its_files(run: "rf.Run") -> None:
    assert (run.step, run.is_finished, run.folder.name) == (6, True, "0001")
    assert run.report is not None and set(run.report["validation"]) == {"on", "shuffled", "random", "off"}
    assert run.metrics[-1]["step"] == 6
    assert rf.open_run(run.folder) == run
    with pytest.raises(GenerationError, match="nowhere"):
        rf.open_run(run.folder / "nowhere")
    assert rf.fit(rf.load_recipe(run.folder.parents[2] / "tiny.yaml"), resume="last") == run


def test_evaluating_again_gives_the_same_losses(run: "rf.Run") -> None:
    assert run.report is not None
    measures = rf.evaluate(run).measures
    for mode, stored in run.report["validation"].items():
        assert measures[mode].nats == pytest.approx(stored["nats"])


def test_it_writes_as_the_command_does(run: "rf.Run", capfd: pytest.CaptureFixture[str]) -> None:
    lm = rf.load(run)
    capfd.readouterr()
    words = (
        "generate",
        str(run.folder),
        "--prompt",
        "Notes",
        "--max-new-tokens",
        "12",
        "--ignore-end-of-text",
        "--json",
    )
    assert command(list(words)) == 0
    said = json.loads(capfd.readouterr().out)
    answer = lm.generate("Notes", max_new_tokens=12, stop_at_end_of_text=False)
    assert (answer.text, list(answer.tokens)) == (said["text"], said["tokens"]) and answer.sources
    pieces = list(lm.stream("Notes", max_new_tokens=12, stop_at_end_of_text=False))
    assert "".join(piece.text for piece in pieces) == answer.text
    both = lm.generate(["Notes", "keeps"], max_new_tokens=2)
    assert [each.prompt for each in both] == ["Notes", "keeps"]


def test_errors_speak_python(run: "rf.Run") -> None:
    lm = rf.load(run)
    for wrong, message in (
        (lambda: rf.load(run, device="tpu"), '^device is "tpu"; allowed: "auto", "cpu" or "cuda".$'),
        (lambda: rf.load(run, database="nowhere"), r'^database: there is no folder "nowhere"'),
        (lambda: rf.load(run, database=run.folder, retrieval=False), r"^retrieval: it is switched off, and a database"),
        (lambda: lm.generate("", max_new_tokens=2), r"^prompts\[0\]: '' has no token"),
        (lambda: lm.generate("a", max_new_tokens=0), r"^max_new_tokens is 0; allowed: a whole number"),
        (
            lambda: lm.generate("a", temprature=1.0),
            '^temprature is not a known key. Did you mean "temperature"\\? Known: max_new_tokens, ',
        ),
        (lambda: lm.score(""), "has no token"),
    ):
        with pytest.raises(GenerationError, match=message):
            wrong()
    with pytest.raises(UsageError, match="run: int given; a Run or the path"):
        rf.evaluate(3)


def test_a_run_to_resume_that_is_not_there_is_refused_before_anything_is_prepared(tmp_path) -> None:
    recipe = rf.load_recipe(write_recipe(tmp_path, "tiny"), f"data.artifacts_folder={tmp_path / 'artifacts'}")
    with pytest.raises(UsageError, match="nowhere"):
        rf.fit(recipe, resume=tmp_path / "nowhere")
    assert not (tmp_path / "artifacts").exists()


def test_a_recipe_that_is_not_loaded_is_refused() -> None:
    for call in (rf.fit, rf.prepare):
        with pytest.raises(UsageError, match="^recipe: str given; a Recipe is needed, as load_recipe returns it"):
            call("retro_small")  # type: ignore[arg-type]


def test_a_text_is_better_predicted_with_its_database_than_with_another_loss(run: "rf.Run") -> None:
    lm = rf.load(run)
    text = "Notes keep the names of things. " * 4
    on, off = lm.score(text), lm.with_database(None).score(text)
    assert on.tokens == off.tokens and on.nats != off.nats and on.retrievals and not off.retrievals
    assert on.nats[:6] == pytest.approx(off.nats[:6])  # nothing is read before the first chunk has ended
    assert on.loss == pytest.approx(sum(on.nats) / (len(on.tokens) - 1))
    assert on.bits_per_byte == pytest.approx(sum(on.nats) / 0.6931471805599453 / len(text.encode()))


def test_a_saved_model_is_the_same_and_needs_a_database(run: "rf.Run", tmp_path: Path) -> None:
    lm = rf.load(run)
    lm.save(tmp_path / "exported")
    with pytest.raises(GenerationError, match="^database: an exported model has no database of its own"):
        rf.load(tmp_path / "exported")
    again = rf.load(tmp_path / "exported", database=run.folder)
    assert again.score("Notes keep names").nats == lm.score("Notes keep names").nats
    assert again.card == lm.card and "retrieval-enhanced" in lm.card
    again.save(tmp_path / "twice")
    files = sorted(path.name for path in (tmp_path / "exported").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "twice").iterdir())
    for name in files:
        assert (tmp_path / "exported" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()


def test_a_model_is_shown_in_one_line(run: "rf.Run") -> None:
    lm = rf.load(run)
    assert repr(lm).startswith("LanguageModel(tiny, step 6, ") and " parameters, database index-" in repr(lm)
    assert repr(lm.with_database(None)).endswith("no database)") and "\n" not in repr(lm)


def test_components_by_name() -> None:
    import numpy as np

    vectors = np.eye(4, dtype=np.float32)
    retriever = rf.retriever("exact", build={"metric": "inner_product"})
    retriever.build(vectors)
    assert retriever.search(vectors, 1).ids.ravel().tolist() == [0, 1, 2, 3]
    assert rf.embedder("lexical", dimension=32).dimension == 32
    with pytest.raises(UsageError, match='There is no retriever "exat"'):
        rf.retriever("exat")


def test_a_retriever_of_texts_takes_them_as_they_are() -> None:
    pytest.importorskip("bm25s")
    retriever = rf.retriever("bm25", build={"b": 0.5})
    retriever.build(["a red fox", "two red foxes", "a bird"])
    assert retriever.search(["the fox", "birds"], 1).ids.tolist() == [[0], [-1]]


def test_the_page_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The Python of docs/index.md, as it stands there, on a small recipe."""
    page = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    recipe = write_recipe(tmp_path, "tiny")
    assert 'rf.load_recipe("retro_small", "trainer.max_steps=200")' in code
    code = code.replace('"retro_small", "trainer.max_steps=200"', repr(str(recipe)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger("retroflow"), "level", logging.WARNING)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/index.md", "exec"), names)
    shown = capsys.readouterr()
    on, off = shown.out.splitlines()[-1].split()
    assert on != off
    assert '# rf.load("exported", database=run.folder)' in code
    assert rf.load("exported", database=names["run"].folder).score("Notes").tokens
    assert shown.err == "" and len(shown.out.splitlines()) >= 3
    assert (tmp_path / "exported" / "model.safetensors").exists()
    assert len(code.strip().splitlines()) <= 15
