"""How much of the way from a language model to a RETRO a RETRO-fit of it goes: base, RETRO-fit, RETRO from scratch.

    python tests/benchmarks/retrofit_gap.py --folder retrofit_gap

Trains a tokenizer and a GPT-2 of about the size of retro_small on its corpus (the base), RETRO-fits it with
recipes/retrofit_small.yaml, and trains recipes/retro_small.yaml from scratch with the same tokenizer; one thread each, one
after the other. What is finished in the folder is not made again. Prints validation bits per byte of each.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

from retroflow.components import CORPORA, create, recipe_schema
from retroflow.corpus.tokenizer import train_tokenizer
from retroflow.data import SequenceDataset, StepBatches
from retroflow.pipeline.prepare import prepare
from retroflow.pipeline.splits import open_splits
from retroflow.planning.options import OptimizerOptions
from retroflow.recipe import load
from retroflow.training.optimizers import make_optimizer, make_schedule

RECIPES = Path(__file__).parents[2] / "recipes"
BATCH_SIZE, SEQUENCE_CHUNKS, CHUNK_LENGTH = 2, 8, 64
SIZES = {"n_embd": 128, "n_layer": 3, "n_head": 2, "n_positions": SEQUENCE_CHUNKS * CHUNK_LENGTH}
# GPT-2's 0.02 is made for its own width; this is the rule of retroflow/model/initialisation.py, sqrt(0.4 / 128).
INITIAL_DEVIATION = 0.056
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where tokenizer, base, artifacts and runs go")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--base-steps", type=int, default=3000, help="steps of 1,024 tokens that the base is trained for"
    )
    parser.add_argument("--fit-steps", type=int, default=1000, help="steps of the RETRO-fit")
    parser.add_argument(
        "--scratch-steps", type=int, nargs="+", default=[1000, 3000], help="steps of RETROs from scratch, one run each"
    )
    arguments = parser.parse_args()
    base = arguments.folder / "base"
    make_tokenizer(base)
    if not (base / "model.safetensors").exists():
        train_base(base, arguments)
    fitted = fit(arguments, "retrofit_small.yaml", arguments.fit_steps, f"model.base={base}")
    scratch = {
        steps: fit(arguments, "retro_small.yaml", steps, f"data.tokenizer={base}") for steps in arguments.scratch_steps
    }
    print_results(arguments, fitted, scratch)


def make_tokenizer(base: Path) -> None:
    """Train the recipe's tokenizer into the base's folder, so that all three models share the artifacts."""
    if (base / "tokenizer.json").exists():
        return
    recipe = load(RECIPES / "retro_small.yaml", [], schema=recipe_schema())
    corpus = create(CORPORA, recipe.section("corpus"))
    texts = (document.text for document in corpus.documents() if document.split == "train")
    base.mkdir(parents=True, exist_ok=True)
    train_tokenizer(texts, recipe.section("data")["vocabulary_size"]).save(base)


def train_base(base: Path, arguments: argparse.Namespace) -> None:
    """Train a GPT-2 on the corpus, in the order that `fit` would take, and save it as transformers does."""
    overrides = [f"data.artifacts_folder={arguments.folder / 'artifacts'}", f"data.tokenizer={base}"]
    splits = open_splits(
        prepare(load(RECIPES / "retro_small.yaml", overrides, schema=recipe_schema())), sequence_chunks=SEQUENCE_CHUNKS
    )
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    vocabulary = splits.train_chunks.vocabulary_size
    ends = {"bos_token_id": splits.train_chunks.end_of_text, "eos_token_id": splits.train_chunks.end_of_text}
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=vocabulary, initializer_range=INITIAL_DEVIATION, **SIZES, **NO_DROPOUT, **ends)
    )
    with torch.no_grad():
        model.transformer.wpe.weight.mul_(0.2)
        for name, parameter in model.named_parameters():
            if name.endswith("c_proj.weight"):  # residual updates start at zero, as in retro_small
                parameter.zero_()
    train_steps(model, splits.training(retrieval=False), arguments)
    logging.disable_progress_bar()
    model.save_pretrained(base)


def train_steps(model: GPT2LMHeadModel, dataset: SequenceDataset, arguments: argparse.Namespace) -> None:
    options = OptimizerOptions(learning_rate=3e-3, warmup_steps=50)
    optimizer = make_optimizer(model, options)
    schedule = make_schedule(optimizer, options, max_steps=arguments.base_steps)
    batches = iter(
        StepBatches(
            num_chunks=len(dataset.chunks),
            sequence_chunks=SEQUENCE_CHUNKS,
            batch_size=BATCH_SIZE,
            accumulate=1,
            seed=arguments.seed,
            rank=0,
            world_size=1,
            start_step=0,
        )
    )
    began = time.time()
    for step in range(1, arguments.base_steps + 1):
        batch = dataset.__getitems__(next(batches))
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(batch.tokens, use_cache=False).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), batch.targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip_norm)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(
                f"base: step {step}, loss {loss.item():.3f}, {time.time() - began:.0f} s", file=sys.stderr, flush=True
            )


def fit(arguments: argparse.Namespace, recipe: str, steps: int, *overrides: str) -> dict:
    """Run `retroflow fit` once and keep its report beside the runs."""
    kept = arguments.folder / f"{Path(recipe).stem}_{steps}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    words = [
        f"data.artifacts_folder={arguments.folder / 'artifacts'}",
        f"trainer.runs_folder={arguments.folder / 'runs'}",
        "trainer.num_threads=1",
        f"trainer.max_steps={steps}",
        f"seed={arguments.seed}",
        *overrides,
    ]
    command = [
        str(Path(sys.executable).with_name("retroflow")),
        "fit",
        "--recipe",
        str(RECIPES / recipe),
        "--json",
        *words,
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    kept.write_text(done.stdout)
    return json.loads(done.stdout)


def print_results(arguments: argparse.Namespace, fitted: dict, scratch: dict[int, dict]) -> None:
    """One line a model; the base is the RETRO-fit with retrieval off, to the bit."""
    training = fitted["training"]
    share = training["num_trained_parameters"] / training["num_parameters"]
    on, off = bits(fitted, "on"), bits(fitted, "off")
    print(f"weights trained by the RETRO-fit: {training['num_trained_parameters']:,} ({share:.1%} of all)")
    print(f"{'base (= RETRO-fit, off)':34} {off:.4f}  after {arguments.base_steps} steps")
    print(
        f"{'RETRO-fit, frozen base':34} {on:.4f}  shuffled {bits(fitted, 'shuffled'):.4f}  after {arguments.fit_steps} more"
    )
    for steps, report in scratch.items():
        modes = "  ".join(f"{mode} {bits(report, mode):.4f}" for mode in ("shuffled", "off"))
        closed = (off - on) / (off - bits(report, "on"))
        print(
            f"{'RETRO from scratch':34} {bits(report, 'on'):.4f}  {modes}  after {steps} steps; gap closed {closed:.0%}"
        )


def bits(report: dict, mode: str) -> float:
    return report["validation"][mode]["bits_per_byte"]


if __name__ == "__main__":
    main()
