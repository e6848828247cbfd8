"""`retroflow prepare` end to end: lines, JSON, exit codes."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from retroflow.cli.main import run
from retroflow.pipeline import fingerprint
from tests.pipeline.recipes import small_recipe


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    values = small_recipe(tmp_path).to_yaml()
    file = tmp_path / "small.yaml"
    file.write_text("recipe_version: 1\nmodel: {name: retro}\n" + values)
    return file


def test_one_line_a_stage_and_json(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prepare", "--recipe", str(recipe_file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["chunks:", "embeddings:", "index:", "neighbours:"]
    assert all("built" in line for line in lines)
    assert run(["prepare", "--recipe", str(recipe_file), "--json", "neighbours.k=3"]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert [stage["built"] for stage in stages] == [False, False, False, True]
    assert stages[3]["info"]["k"] == 3


def test_what_is_left_out_of_the_corpus_is_told(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = recipe_file.with_name("corpus.jsonl")
    first, *_ = corpus.read_text().splitlines()
    corpus.write_text(f'{corpus.read_text()}{first}\n{{"text": " "}}\n')
    assert run(["prepare", "--recipe", str(recipe_file)]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("corpus: ")]
    assert line.endswith("; left out: 1 exact duplicate, 1 empty")


def test_a_tilde_is_the_home_folder(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert run(["prepare", "--recipe", str(recipe_file), "data.artifacts_folder=~/artifacts"]) == 0
    assert list((tmp_path / "home" / "artifacts").glob("neighbours-*")) and not (tmp_path / "~").exists()


@pytest.mark.parametrize(
    ("override", "code", "message"),
    [
        ("retriever={name: hnsw}", 4, 'pip install "retroflow[hnsw]"'),
        ("embedder.dimension=0", 2, "embedder.dimension"),
        ("retriever={name: faiss, build: {factory: PQ7}}", 2, "retriever.build.factory"),
    ],
)
def test_components_are_made_before_anything_is_prepared(
    recipe_file: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, override: str, code: int, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "hnswlib", None)
    assert run(["prepare", "--recipe", str(recipe_file), override]) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "artifacts").exists()


def test_damage_and_a_small_corpus_have_their_exit_codes(recipe_file: Path, capsys) -> None:
    assert run(["prepare", "--recipe", str(recipe_file), "neighbours.k=100000"]) == 2
    assert "neighbours.k=100000 needs" in capsys.readouterr().err
    (chunks,) = (recipe_file.parent / "artifacts").glob("chunks-*")
    with (chunks / "train" / "tokens.npy").open("r+b") as stream:
        stream.seek(200)
        stream.write(b"\xff\xff")
    assert run(["prepare", "--recipe", str(recipe_file)]) == 3
    assert "tokens.npy" in capsys.readouterr().err


SLOW = """
import signal, sys, time
from retroflow.cli.main import main
from retroflow.embedding.lexical import LexicalEmbedder
# A shell's background jobs, the tests among them, are started with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
def slow(self, texts):
    print("embedding", file=sys.stderr, flush=True)
    time.sleep(60)
LexicalEmbedder.embed = slow
main()
"""


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 75, "stopped")]
)
def test_an_interrupt_says_that_the_same_command_goes_on(
    recipe_file: Path, number: signal.Signals, code: int, word: str
) -> None:
    command = [sys.executable, "-c", SLOW, "prepare", "--recipe", str(recipe_file)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root) as process:
        try:
            assert process.stderr is not None and any(line == "embedding\n" for line in process.stderr)
            process.send_signal(number)
            _, errors = process.communicate(timeout=300)
        finally:
            process.kill()
    assert process.returncode == code
    assert errors.splitlines()[-1] == (
        f"error: {word}; finished work is kept, and the same command continues from there."
    )
    assert run(["prepare", "--recipe", str(recipe_file)]) == 0


def test_a_trained_tokenizer_is_known_by_the_library_that_trained_it(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["prepare", "--recipe", str(recipe_file)]) == 0
    monkeypatch.setattr(fingerprint, "TRAINED_BY", "tokenizers 99.0")
    assert run(["prepare", "--recipe", str(recipe_file)]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["built,"] * 8
    (tokenizer, *_) = (recipe_file.parent / "artifacts").glob("chunks-*/tokenizer")
    command = ["prepare", "--recipe", str(recipe_file), f"data.tokenizer={tokenizer}"]
    assert run(command) == 0
    monkeypatch.setattr(fingerprint, "TRAINED_BY", "tokenizers 100.0")
    capsys.readouterr()
    assert run(command) == 0  # a given one is known by its content
    assert "built" not in capsys.readouterr().out
