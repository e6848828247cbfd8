"""How much of in-context retrieval's gain an untrained inherited reader has: losses, and seconds, on the same neighbours.

    python tests/benchmarks/bench_inherited.py corpus.path=old.jsonl corpus.valid_path=new.jsonl --sequences 12

Takes recipes/attach_smollm2.yaml, with any overrides, and a sample of validation sequences. In-context retrieval
writes the k passages of chunk u before the tokens up to its end and predicts chunk u + 1, anew for every chunk. Scored
are chunks 2 to l of each sequence, for which something was retrieved, by every opponent:

    off           the base
    on            inherited reading; once with nothing kept of the neighbours (cold) and once with everything (warm)
    random        inherited reading of random chunks
    in-context    the same neighbours in the prompt

recovered = (off - on) / (off - in-context).
"""

import argparse
import copy
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from retroflow.components import MODELS, create, recipe_schema
from retroflow.data import Batch
from retroflow.evaluation.attribution import at_random
from retroflow.integrations.inherited_reader import sink_of
from retroflow.integrations.retrofit import RetrofitModel
from retroflow.pipeline.prepare import prepare
from retroflow.pipeline.splits import Splits, open_splits
from retroflow.recipe import load

RECIPE = Path(__file__).parents[2] / "recipes" / "attach_smollm2.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of the recipe, such as neighbours.k=4")
    parser.add_argument("--sequences", type=int, default=12)
    parser.add_argument("--fp32", action="store_true", help="not bfloat16")
    arguments = parser.parse_args()
    recipe = load(str(RECIPE), ["corpus.name=jsonl", *arguments.overrides], schema=recipe_schema())
    data = recipe.section("data")
    splits = open_splits(prepare(recipe), sequence_chunks=data["sequence_chunks"])
    config = create(
        MODELS,
        recipe.section("model"),
        vocabulary_size=splits.train_chunks.vocabulary_size,
        chunk_length=data["chunk_length"],
    )
    model = config.build().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=not arguments.fp32):
        compare(model, splits, arguments.sequences, recipe.values["seed"])


def compare(model: RetrofitModel, splits: Splits, num_sequences: int, seed: int) -> None:
    """Print a row for each opponent as its numbers come."""
    found = splits.validation_neighbours
    random = at_random(found.shape, database_chunks=len(splits.database), seed=seed)
    whole = len(splits.valid_chunks) // splits.sequence_chunks
    starts = [round((i + 0.5) * whole / num_sequences - 0.5) * splits.sequence_chunks for i in range(num_sequences)]
    sums: dict[str, list[float]] = {}

    def measure(name: str, losses: Tensor, seconds: float) -> None:
        row = sums.setdefault(name, [0.0, 0.0, 0.0])
        for place, value in enumerate((float(losses.sum()), float((losses != 0).sum()), seconds)):
            row[place] += value

    for number, start in enumerate(starts, 1):
        batch, other = (splits.validation(table).assemble([start], splits.sequence_chunks) for table in (found, random))
        model.retrieval.states = copy.deepcopy(model.retrieval.states)  # a copy keeps nothing
        runs = (("off", batch, False), ("on, cold", batch, True), ("on, warm", batch, True), ("random", other, True))
        for name, of, retrieves in runs:
            began = time.perf_counter()
            retrieved = (of.retrieved, of.retrieved_mask) if retrieves else ()
            losses = losses_of(model(of.tokens, *retrieved), of.targets)
            measure(name, losses[:, splits.valid_chunks.chunk_length - 1 :], time.perf_counter() - began)
        began = time.perf_counter()
        losses = in_context(model, batch, splits.valid_chunks.chunk_length)
        measure("in-context", losses, time.perf_counter() - began)
        mean = {name: nats / tokens for name, (nats, tokens, _) in sums.items()}
        recovered = (mean["off"] - mean["on, cold"]) / (mean["off"] - mean["in-context"])
        listed = "  ".join(f"{name} {mean[name]:.4f} ({sums[name][2] / number:.2f} s)" for name in mean)
        print(f"{number}/{num_sequences} sequences  {listed}  recovered {recovered:.1%}", flush=True)


def losses_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Nats of each position, float32 [b, n]; 0 where nothing is predicted."""
    flat = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none")
    return flat.view(targets.shape)


def in_context(model: RetrofitModel, batch: Batch, m: int) -> Tensor:
    """The base with each chunk's neighbours before the text; the losses of the chunks after it, float32 [1, *]."""
    assert batch.retrieved is not None and batch.retrieved_mask is not None
    sink, losses = torch.tensor([sink_of(model.base.config)]), []
    for chunk in range(batch.retrieved.shape[1]):
        passages = batch.retrieved[0, chunk][batch.retrieved_mask[0, chunk]]
        end = (chunk + 1) * m
        stop = min(end - 1 + m, batch.tokens.shape[1])
        prompt = torch.cat((sink, passages, batch.tokens[0, :stop]))[None]
        logits = model.base(input_ids=prompt, use_cache=False, logits_to_keep=stop - (end - 1)).logits
        losses.append(losses_of(logits, batch.targets[:, end - 1 : stop]))
    return torch.cat(losses, dim=1)


if __name__ == "__main__":
    main()
