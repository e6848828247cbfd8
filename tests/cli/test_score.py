"""`retroflow score`: passages with a run's own database and with another; the model stays as it is."""

import json
from pathlib import Path

import pytest

import retroflow as rf
from retroflow.cli.main import run
from retroflow.testing.tiny_corpus import write_tiny_corpus


@pytest.fixture(scope="module")
def changed(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The index of other documents, and passages of them."""
    folder = tmp_path_factory.mktemp("changed")
    corpus = write_tiny_corpus(folder, 12, seed=5)
    recipe = trained.parents[2] / "tiny.yaml"
    tokenizer = next((trained.parents[2] / "tiny" / "artifacts").glob("chunks-*")) / "tokenizer"
    words = [f"corpus.path={corpus}", f"data.artifacts_folder={folder / 'artifacts'}", f"data.tokenizer={tokenizer}"]
    assert run(["prepare", "--recipe", str(recipe), *words]) == 0
    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()][:6]
    lines = [
        {
            "text": text[100:130],
            "context": text[:100],
            "old_text": text[200:230],
            "document": place // 2,
            "groups": ["g"],
        }
        for place, text in enumerate(texts)
    ]
    (folder / "passages.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return next((folder / "artifacts").glob("index-*")), folder / "passages.jsonl"


def test_the_report_is_printed_written_and_what_single_scores_give(trained, changed, retroflow, tmp_path):
    index, passages = changed
    output = tmp_path / "report.json"
    words = ("score", trained, "--passages", passages, "--database", index, "--output", output)
    code, out, err = retroflow(*words)
    assert code == 0, err
    assert "all, text: 6 passages of 3 documents" in out and f"report: {output}" in out
    report = json.loads(output.read_text())
    ways = report["groups"]["all"]["text"]["ways"]
    own, other = [way for way in ways if way != "off"]
    assert other == index.name and set(report["groups"]) == {"all", "g"}
    lm = rf.load(trained, device="cpu")
    for way, model in {"off": lm.with_database(None), own: lm, other: lm.with_database(index)}.items():
        lines = map(json.loads, passages.read_text().splitlines())
        scores = [model.score(line["text"], context=line["context"]) for line in lines]
        loss = sum(sum(one.nats) for one in scores) / sum(len(one.nats) for one in scores)
        assert ways[way]["loss"] == pytest.approx(loss, abs=0.02)  # the report's may be in bfloat16
    code, _, err = retroflow(*words)
    assert code == 2 and "it exists; give a new file" in err
    code, out, err = retroflow(*words[:-2], "--json")
    assert code == 0 and json.loads(out)["groups"] == report["groups"]


def test_a_mistake_is_one_line(trained, changed, retroflow, tmp_path):
    _, passages = changed
    for words, message in (
        ((trained, "--passages", tmp_path / "none"), "--passages: there is no file"),
        ((trained, "--passages", passages, "--database", trained), "--database: "),
        ((trained, "--passages", passages, "--neighbours", 10_000), "--neighbours is 10000; allowed: 1 to"),
        ((trained, "--passages", passages, "--retrieval-step", 9), "--retrieval-step is 9; allowed"),
        ((trained, "--passages", passages, "--output", tmp_path / "no" / "r.json"), "there is no folder"),
    ):
        code, _, err = retroflow("score", *words)
        assert code == 2 and message in err and "Traceback" not in err, err
