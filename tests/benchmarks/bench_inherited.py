"""How much of in-context retrieval's gain an inherited reader has: losses, and seconds, by the same retriever.

    python tests/benchmarks/bench_inherited.py corpus.path=old.jsonl corpus.valid_path=new.jsonl --sequences 12

Takes recipes/attach_smollm2.yaml, with any overrides, and a sample of validation sequences. In-context retrieval
writes the k passages of chunk u before the tokens up to its end and predicts chunk u + 1, anew for every chunk. Scored
are chunks 2 to l of each sequence, for which something was retrieved, by every opponent:

    off           the base
    on            inherited reading; once with nothing kept of the neighbours (cold) and once with everything (warm)
    random        inherited reading of random chunks
    in-context k  k neighbours in the prompt

recovered k = (off - on) / (off - in-context k). Seconds are CPU-seconds of the process, so that a busy machine counts
less; lookups are not part of them.
"""

import argparse
import copy
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from retroflow.components import MODELS, create, recipe_schema
from retroflow.data import Batch
from retroflow.data.windows import WindowTable
from retroflow.evaluation.attribution import random_windows
from retroflow.pipeline.lookups import LiveSearch, look_up, open_search
from retroflow.pipeline.options import NeighbourOptions
from retroflow.pipeline.prepare import prepare
from retroflow.pipeline.splits import Splits, open_splits
from retroflow.pretrained.retrofit import RetrofitModel
from retroflow.recipe import load

RECIPE = Path(__file__).parents[2] / "recipes" / "attach_smollm2.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of the recipe, such as neighbours.k=4")
    parser.add_argument("--sequences", type=int, default=12)
    parser.add_argument("--in-context", type=int, nargs="*", default=[2, 8], help="neighbours in the prompt")
    parser.add_argument("--fp32", action="store_true", help="not bfloat16")
    arguments = parser.parse_args()
    recipe = load(str(RECIPE), ["corpus.name=jsonl", *arguments.overrides], schema=recipe_schema())
    data = recipe.section("data")
    prepared = prepare(recipe)
    splits = open_splits(prepared, sequence_chunks=data["sequence_chunks"])
    options = NeighbourOptions(**recipe.section("neighbours"))
    config = create(
        MODELS,
        recipe.section("model"),
        vocabulary_size=splits.train_chunks.vocabulary_size,
        chunk_length=data["chunk_length"],
    )
    model = config.build().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=not arguments.fp32):
        compare(model, splits, open_search(recipe, prepared), options, arguments)


def compare(
    model: RetrofitModel, splits: Splits, search: LiveSearch, options: NeighbourOptions, arguments: argparse.Namespace
) -> None:
    """Print the numbers of all opponents as they come."""
    m, count = splits.valid_chunks.chunk_length, arguments.sequences
    whole = len(splits.valid_chunks) // splits.sequence_chunks
    sequences = np.array([round((i + 0.5) * whole / count - 0.5) for i in range(count)], dtype=np.int64)

    def looked_up(step: int, k: int) -> WindowTable:
        return look_up(search, splits, sequences, step=step, k=k, advance=lambda windows: None)

    step = options.step_for(m)
    found = looked_up(step, options.k)
    random = random_windows(found, database_chunks=len(splits.database), seed=1)
    prompts = {k: looked_up(m, k) for k in arguments.in_context}
    sums: dict[str, list[float]] = {}

    def measure(name: str, losses: Tensor, seconds: float) -> None:
        row = sums.setdefault(name, [0.0, 0.0, 0.0])
        for place, value in enumerate((float(losses.sum()), float((losses != 0).sum()), seconds)):
            row[place] += value

    for number, start in enumerate((sequences * splits.sequence_chunks).tolist(), 1):

        def batch(table: WindowTable, start: int = start) -> Batch:
            return splits.validation(table).assemble([start], splits.sequence_chunks)

        model.retrieval.states = copy.deepcopy(model.retrieval.states)  # a copy keeps nothing
        runs = (("off", found), ("on, cold", found), ("on, warm", found), ("random", random))
        for name, table in runs:
            given, began = batch(table), time.process_time()
            retrieved = () if name == "off" else (given.retrieved, given.retrieved_mask)
            losses = losses_of(model(given.tokens, *retrieved, retrieval_step=step), given.targets)
            measure(name, losses[:, m - 1 : -1], time.process_time() - began)
        for k, table in prompts.items():
            given, began = batch(table), time.process_time()
            measure(f"in-context {k}", in_context(model, given, m), time.process_time() - began)
        mean = {name: nats / tokens for name, (nats, tokens, _) in sums.items()}
        shown = [f"{name} {mean[name]:.4f} ({sums[name][2] / number:.2f} s)" for name in mean]
        gain = mean["off"] - mean["on, cold"]
        shown += [f"recovered {k} {gain / (mean['off'] - mean[f'in-context {k}']):.1%}" for k in prompts]
        print(f"{number}/{count} sequences", *shown, sep="  ", flush=True)


def losses_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Nats of each position, float32 [b, n]; 0 where nothing is predicted."""
    flat = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none")
    return flat.view(targets.shape)


def in_context(model: RetrofitModel, batch: Batch, m: int) -> Tensor:
    """The base with each chunk's neighbours before the text; the losses of the chunks after it, float32 [1, *]."""
    assert batch.retrieved is not None and batch.retrieved_mask is not None
    losses = []
    for chunk in range(batch.retrieved.shape[1] - 1):
        passages = batch.retrieved[0, chunk][batch.retrieved_mask[0, chunk]]
        end = (chunk + 1) * m
        stop = end - 1 + m
        prompt = torch.cat((passages, batch.tokens[0, :stop]))[None]
        with model.retrieval.states.narrow.running(model.base) as base:  # with the weights that reading runs with
            logits = base(input_ids=prompt, use_cache=False, logits_to_keep=stop - (end - 1)).logits
        losses.append(losses_of(logits, batch.targets[:, end - 1 : stop]))
    return torch.cat(losses, dim=1)


if __name__ == "__main__":
    main()
