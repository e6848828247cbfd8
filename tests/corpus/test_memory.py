"""Memory does not follow the corpus: peaks of fresh processes, over corpora of one and of ten sizes."""

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

# Not getrusage: its peak is never below what the parent had at the fork.
STATUS = Path("/proc/self/status")
PEAK = f"""
print(next(line.split()[1] for line in open("{STATUS}") if line.startswith("VmHWM")))
"""

pytestmark = pytest.mark.skipif(not STATUS.exists(), reason="the peak of a process is read from /proc")

READ = """
import sys
from retroflow.corpus.{source} import {name}
from retroflow.corpus.chunking import chunk_document
from retroflow.corpus.tokenizer import train_tokenizer
corpus = {name}(path=sys.argv[1], valid_share=0.1)
tokenizer = train_tokenizer((document.text for document in corpus.documents()), 300, train_bytes=200_000)
for document in corpus.documents():
    chunk_document(tokenizer.encode(document.text[:2000]), chunk_length=64, end_of_text=tokenizer.end_of_text)
corpus.fingerprint()
"""

REFUSE = """
import sys
from retroflow.corpus.{source} import {name}
from retroflow.errors import DamagedDataError
try:
    list({name}(path=sys.argv[1], max_document_bytes=1_000_000).documents())
except DamagedDataError as error:
    assert "a document of 104,857,600 bytes, allowed are 1,000,000" in str(error), error
else:
    raise SystemExit("it was read")
"""


def peak(program: str, path: Path) -> int:
    """Run a program in a process of its own; returns its peak resident memory in bytes."""
    command = [sys.executable, "-c", program + PEAK, str(path)]
    return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout) * 1024


def documents(number: int) -> list[str]:
    draw = random.Random(number)
    pool = "".join(draw.choices("abcdefghij \n", k=100_000))
    return [f"{i} " + pool[(start := draw.randrange(80_000)) : start + 20_000] for i in range(number)]


@pytest.mark.parametrize(("source", "name"), [("jsonl", "JsonlCorpus"), ("text", "TextCorpus")])
def test_ten_times_the_corpus_takes_no_more_memory(tmp_path: Path, source: str, name: str) -> None:
    peaks = []
    for number in (50, 500):  # 1 MB and 10 MB
        texts = documents(number)
        folder = tmp_path / str(number)
        folder.mkdir()
        if source == "jsonl":
            lines = "".join(json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(texts))
            (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode(), compresslevel=1))
        else:
            for i, text in enumerate(texts):
                (folder / f"{i}.txt").write_text(text)
        peaks.append(peak(READ.format(source=source, name=name), folder))
    assert peaks[1] < peaks[0] + 4_000_000


@pytest.mark.parametrize(("source", "name"), [("jsonl", "JsonlCorpus"), ("text", "TextCorpus")])
def test_a_line_of_100_mb_is_refused_without_being_held(tmp_path: Path, source: str, name: str) -> None:
    path = tmp_path / ("a.jsonl" if source == "jsonl" else "a.txt")
    path.write_bytes(b"x")
    small = peak(f"import retroflow.corpus.{source}", path)
    with path.open("r+b") as file:
        file.truncate(104_857_600)  # a hole: NUL bytes without disk space
    assert peak(REFUSE.format(source=source, name=name), path) < small + 16_000_000
