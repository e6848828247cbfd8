"""What each reading aid is worth, and what the same decoder reaches without retrieval: 3 seeds of a recipe.

    python tests/benchmarks/ablate_reading_aids.py --folder ablation --seeds 1 2 3 --jobs 2

Every run is `retroflow fit` with overrides, one thread each so that runs side by side take equal time; artifacts are
shared. The equal-time opponent gets as many steps as the time of `all aids` allows, by the measured step times of
the first seed. Prints one line a variant: mean and spread of bits per byte over the seeds, steps and seconds.
"""

import argparse
import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

RECIPE = Path(__file__).parents[2] / "recipes" / "retro_small.yaml"
VARIANTS = {
    "all aids": ["model.cca_scale=25.0"],
    "without smear": ["model.smear=false", "model.cca_scale=25.0"],
    "without next_token_values": ["model.next_token_values=false", "model.cca_scale=25.0"],
    "without copy_initialisation": ["model.copy_initialisation=false", "model.cca_scale=25.0"],
    "without cca_scale": [],
    "none (plain RETRO)": [
        "model.smear=false", "model.next_token_values=false", "model.copy_initialisation=false",
        "model.cca_positions=true",
    ],
    "no retrieval, same tokens": ["trainer.retrieval=false"],
}  # fmt: skip
SAME_TIME = "no retrieval, same time"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where artifacts, runs and results.jsonl go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--only", nargs="*", help="names of variants")
    parser.add_argument("overrides", nargs="*", default=[], help="for every run, such as trainer.max_steps=400")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    prepare(arguments)
    variants = {name: words for name, words in VARIANTS.items() if not arguments.only or name in arguments.only}
    results = run_all(arguments, variants)
    if {"all aids", "no retrieval, same tokens"} <= set(results):
        results |= run_all(
            arguments, {SAME_TIME: ["trainer.retrieval=false", f"trainer.max_steps={equal_time_steps(results)}"]}
        )
    for name, reports in results.items():
        print(line(name, reports))


def prepare(arguments: argparse.Namespace) -> None:
    """Make the shared artifacts once, with all cores."""
    subprocess.run([*command("prepare"), *arguments.overrides, *folders(arguments)], check=True)


def run_all(arguments: argparse.Namespace, variants: dict[str, list[str]]) -> dict[str, list[dict]]:
    """Run every variant with every seed; returns variant -> reports."""
    tasks = [(name, words, seed) for seed in arguments.seeds for name, words in variants.items()]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        reports = list(pool.map(lambda task: run(arguments, *task), tasks))
    results: dict[str, list[dict]] = {name: [] for name in variants}
    for (name, _, _), report in zip(tasks, reports, strict=True):
        results[name].append(report)
    return results


def run(arguments: argparse.Namespace, name: str, words: list[str], seed: int) -> dict:
    """Run one variant with one seed; its report is appended to results.jsonl."""
    shared = [f"seed={seed}", "trainer.num_threads=1", *arguments.overrides, *folders(arguments)]
    done = subprocess.run([*command("fit"), "--json", *shared, *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}, seed {seed}: exit {done.returncode}\n{done.stderr[-2000:]}")
    report = json.loads(done.stdout)
    with (arguments.folder / "results.jsonl").open("a") as file:
        file.write(json.dumps({"variant": name, "seed": seed, **report}) + "\n")
    print(line(name, [report]), f"(seed {seed})", flush=True)
    return report


def command(verb: str) -> list[str]:
    return [str(Path(sys.executable).with_name("retroflow")), verb, "--recipe", str(RECIPE)]


def folders(arguments: argparse.Namespace) -> list[str]:
    return [
        f"data.artifacts_folder={arguments.folder / 'artifacts'}",
        f"trainer.runs_folder={arguments.folder / 'runs'}",
    ]


def equal_time_steps(results: dict[str, list[dict]]) -> int:
    """Steps the opponent makes in the time that the first seed of `all aids` took."""
    with_retrieval, without = results["all aids"][0]["training"], results["no retrieval, same tokens"][0]["training"]
    return round(with_retrieval["seconds"] / (without["seconds"] / without["steps"]))


def line(name: str, reports: list[dict]) -> str:
    """One row: bits per byte of each way of retrieving, mean and half the range over seeds."""
    cells = []
    for mode in ("on", "shuffled", "off"):
        values = [r["validation"][mode]["bits_per_byte"] for r in reports if mode in r["validation"]]
        if values:
            cells.append(f"{mode} {statistics.mean(values):.4f} +- {(max(values) - min(values)) / 2:.4f}")
    training = [r["training"] for r in reports]
    steps, seconds = training[0]["steps"], statistics.mean(t["seconds"] for t in training)
    return f"{name:32} {'  '.join(cells)}  {steps} steps  {seconds:.0f} s"


if __name__ == "__main__":
    main()
