"""What a change of a database costs beside building it again, how fast it opens, and what memory adding takes.

    python tests/benchmarks/bench_database.py --documents 400
    python tests/benchmarks/bench_database.py --documents 10000 --embedder bert

Documents of 550 words are drawn from a vocabulary of 20,000 by Zipf's law: with the tokenizer that is trained on them
about 10 chunks each. A hundredth of them is changed. Rounds are interleaved: one synchronisation there and back, then
one build of the new documents, then the next round. Memory is the peak of a process of its own that adds 20 documents,
to this database and to one of a tenth of the documents. Set OMP_NUM_THREADS before.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from retroflow.database.database import Database
from retroflow.embedding.checked import CheckedEmbedder

WORDS = 550
CHANGED = 0.01
ADD = """
import json, sys
from retroflow.database.database import Database
Database.open(sys.argv[1]).add(json.load(open(sys.argv[2])))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def documents_of(count: int, seed: int, first: int = 0) -> list[dict[str, str]]:
    """Documents of random words with a long tail."""
    draw = np.random.default_rng(seed)
    names = ["".join(random.Random(number).choices("abcdefghijklmnop", k=3 + number % 6)) for number in range(20_000)]
    weights = 1.0 / np.arange(1, len(names) + 1)
    drawn = draw.choice(len(names), size=(count, WORDS), p=weights / weights.sum())
    return [
        {"id": f"d{first + row:07d}", "text": " ".join(names[word] for word in words)}
        for row, words in enumerate(drawn.tolist())
    ]


def main() -> None:
    """Measure and print."""
    options = _options()
    embedded = [0]
    embed = CheckedEmbedder.embed

    def counted(self: CheckedEmbedder, texts: list[str]) -> object:
        embedded[0] += len(texts)
        return embed(self, texts)

    CheckedEmbedder.embed = counted  # type: ignore[assignment, method-assign]
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        print(json.dumps(_measured(Path(name), options, embedded), indent=2))


def _measured(folder: Path, options: argparse.Namespace, embedded: list[int]) -> dict[str, object]:
    old = documents_of(options.documents, 0)
    changed = max(1, int(CHANGED * len(old)))
    new = [*documents_of(changed, 1), *old[changed:]]
    made_with = {"embedder": options.embedder, "retriever": options.retriever}
    database = Database.build(folder / "db", old, **made_with)
    syncs, builds, work = [], [], []
    for number in range(options.rounds):
        for given in (new, old):
            embedded[0], started = 0, time.perf_counter()
            database.sync(given)
            syncs.append(time.perf_counter() - started)
            work.append(embedded[0])
        embedded[0], started = 0, time.perf_counter()
        fresh = Database.build(folder / f"fresh{number}", new, like=database)
        builds.append(time.perf_counter() - started)
        built = embedded[0]
        assert len(fresh) > 0
    opens = []
    for _ in range(20):
        started = time.perf_counter()
        Database.open(folder / "db")
        opens.append(time.perf_counter() - started)
    small = Database.build(folder / "small", old[: len(old) // 10], like=database)
    more = folder / "more.json"
    more.write_text(json.dumps(documents_of(20, 2, first=len(old))))
    memory = [_memory_of_add(each.folder, more) for each in (small, database)]
    return {
        "chunks": len(database),
        "documents": len(old),
        "changed": changed,
        "sync_seconds": round(statistics.median(syncs), 2),
        "build_seconds": round(statistics.median(builds), 2),
        "time_share": round(statistics.median(syncs) / statistics.median(builds), 4),
        "embedding_share": round(max(work) / built, 4),
        "open_milliseconds": round(1e3 * statistics.median(opens), 1),
        "add_megabytes_at_a_tenth": memory[0],
        "add_megabytes": memory[1],
        "memory_ratio": round(memory[1] / memory[0], 3),
    }


def _memory_of_add(database: Path, documents: Path) -> int:
    command = [sys.executable, "-c", ADD, str(database), str(documents)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(run.stdout.split()[-1]) // 1024


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--embedder", default="lexical")
    parser.add_argument("--retriever", default="exact")
    parser.add_argument("--folder", type=Path, help="Where to make the databases. Default: a temporary folder.")
    return parser.parse_args()


if __name__ == "__main__":
    main()
