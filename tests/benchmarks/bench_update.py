"""Change the database, not the model: passages that changed, scored with the old and with the new documents.

    RETROFLOW_TEST_DATA=FOLDER python tests/benchmarks/bench_update.py powershell_docs --work work [--substantive 150] [--others 50]

Takes recipes/attach_smollm2.yaml: a model attached to the old documents, nothing trained, and an index of the new ones.
FOLDER holds, for each corpus, old.train, old.valid, new.train, new.valid and update_probe (.jsonl.gz); a probe is a
`text` of the new documents with `meta`: context, old_text, doc, split and substantive. All are scored, or as many of
the substantive ones and of the others, evenly spaced, as are asked for. Probes of documents that are in neither database, those of
the valid and test splits, are a group of their own: there a gain can only come from related documents.
"""

import argparse
import gzip
import json
import os
from pathlib import Path
from typing import Any

import retroflow as rf

RECIPE = Path(__file__).parents[2] / "recipes" / "attach_smollm2.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", help="powershell_docs or peps")
    parser.add_argument("overrides", nargs="*", help="of the recipe, such as retriever.name=faiss")
    parser.add_argument("--work", type=Path, required=True, help="folder for artifacts, the run and the report")
    parser.add_argument("--substantive", type=int, help="substantive probes; all without it")
    parser.add_argument("--others", type=int, help="other probes; all without it")
    parser.add_argument("--context", type=int, default=1200, help="characters before a passage, at most")
    parser.add_argument("--retrieval-step", type=int)
    parser.add_argument("--neighbours", type=int)
    arguments = parser.parse_args()
    data, work = Path(os.environ["RETROFLOW_TEST_DATA"]) / arguments.corpus, arguments.work
    recipes = {version: recipe_of(data, work, version, arguments.overrides) for version in ("old", "new")}
    run = rf.fit(recipes["old"], resume="last" if (work / "runs").exists() else None)
    index = work / "new" / f"index-{rf.prepare(recipes['new']).fingerprints['index']}"
    passages = work / f"{arguments.corpus}.jsonl"
    counts = arguments.substantive, arguments.others
    write_passages(data / "update_probe.jsonl.gz", passages, counts, arguments.context)
    number = len(list(work.glob("report-*.json")))
    report = rf.score(
        run,
        passages,
        databases=[index],
        num_neighbours=arguments.neighbours,
        retrieval_step=arguments.retrieval_step,
        output=work / f"report-{arguments.corpus}-{number}.json",
    )
    from rich.console import Console

    Console(width=160).print(report.render())


def recipe_of(data: Path, work: Path, version: str, overrides: list[str]) -> Any:
    """The recipe for the old or the new documents; what `fit` measures is kept short."""
    return rf.load_recipe(
        RECIPE,
        "corpus.name=jsonl",
        f"corpus.path={data / version}.train.jsonl.gz",
        f"corpus.valid_path={data / version}.valid.jsonl.gz",
        f"data.artifacts_folder={work / version}",
        f"trainer.runs_folder={work / 'runs'}",
        "trainer.final_sequences=1",
        "trainer.in_context_sequences=0",
        *overrides,
    )


def write_passages(probes: Path, passages: Path, counts: tuple[int | None, int | None], characters: int) -> None:
    """Write what `retroflow score` reads: so many substantive probes and others, evenly spaced; None for all."""
    with gzip.open(probes, "rt", encoding="utf-8") as file:
        every = [json.loads(line) for line in file]
    kept: list[Any] = []
    for is_substantive, wanted in zip((True, False), counts, strict=True):
        found = [probe for probe in every if probe["meta"]["substantive"] == is_substantive]
        count = len(found) if wanted is None else min(wanted, len(found))
        kept += [found[round((place + 0.5) * len(found) / count - 0.5)] for place in range(count)]
    with passages.open("w", encoding="utf-8") as file:
        for probe in kept:
            meta = probe["meta"]
            is_in = meta["split"] == "train"
            groups = ["substantive" if meta["substantive"] else "small edits", "in the new" if is_in else "in neither"]
            # Context and text are separate lines of the document.
            line = {
                "text": probe["text"],
                "context": f"{meta['context'].rstrip()[-characters:]}\n",
                "old_text": meta["old_text"],
            }
            file.write(json.dumps(line | {"document": meta["doc"], "groups": groups}) + "\n")


if __name__ == "__main__":
    main()
