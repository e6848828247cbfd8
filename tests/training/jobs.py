"""Tiny jobs on made-up chunks: the parts of `make_job` without artifacts on disk."""

from dataclasses import replace
from pathlib import Path

import torch

from retroflow.distributed.ranks import ALONE
from retroflow.model.config import RetroConfig
from retroflow.pipeline.splits import Splits
from retroflow.planning.options import OptimizerOptions, TrainerOptions
from retroflow.planning.placement import place
from retroflow.recipe import Recipe
from retroflow.runs.checkpoint_files import list_checkpoints
from retroflow.runs.checkpoints import read_checkpoint
from retroflow.runs.record import facts_of
from retroflow.tracking.background import GuardedTracker, NoTracker
from retroflow.training.job import Job
from retroflow.training.lightning_module import RetroModule
from tests.data.fakes import make_chunks, random_neighbours

VOCABULARY = 50


def tiny_config(**changes):
    options = {
        "vocabulary_size": VOCABULARY,
        "chunk_length": 4,
        "width": 16,
        "num_layers": 2,
        "num_heads": 2,
        "head_width": 8,
        "cca_layers": (2,),
        "encoder_width": 8,
        "encoder_layers": 1,
        "encoder_heads": 2,
        "dropout": 0.1,
    }
    return RetroConfig(**(options | changes))


def tiny_splits(documents=30):
    lengths = [5 + (7 * number) % 23 for number in range(documents)]
    train = make_chunks(lengths, vocabulary_size=VOCABULARY)
    valid = make_chunks([9, 16, 3, 22], first_document=documents, vocabulary_size=VOCABULARY, seed=5)
    return Splits(
        train_chunks=train,
        valid_chunks=valid,
        train_neighbours=random_neighbours(len(train), train),
        validation_neighbours=random_neighbours(len(valid), train, seed=2),
        sequence_chunks=3,
    )


def tiny_job(runs_folder, *, tracker=None, model=None, splits=None, seed=1, optimizer=None, **trainer):
    """A job whose runs lie in `runs_folder`; `trainer` changes TrainerOptions."""
    torch.set_num_threads(1)
    options = TrainerOptions(
        **(
            {
                "max_steps": 12,
                "batch_size": 4,
                "precision": "fp32",
                "device": "cpu",
                "log_every": 3,
                "checkpoint_every": 4,
                "retrieval_dropout": 0.3,
                "runs_folder": str(runs_folder),
            }
            | trainer
        )
    )
    module = RetroModule(
        model=model or tiny_config(),
        optimizer=optimizer or OptimizerOptions(warmup_steps=3, learning_rate=0.01),
        trainer=options,
        seed=seed,
    )
    values = {
        "seed": seed,
        "model": {"name": "retro", "width": 16},
        "retriever": {"name": "exact"},
        "neighbours": {"k": 2},
        "trainer": {"max_steps": options.max_steps},
    }
    options, placement = replace(options, retrieval=module.retrieves), place(options, ALONE)
    return Job(
        name="tiny",
        seed=seed,
        options=options,
        num_workers=0,
        placement=placement,
        splits=splits or tiny_splits(),
        module=module,
        tracker=GuardedTracker(tracker or NoTracker()),
        identity={
            "recipe": "seed: 1\n",
            "values": values,
            "fingerprints": {"chunks": "abc", "neighbours": "def"},
            "version": "test",
            "training": facts_of(options, placement, module.outline, seed),
        },
    )


def tiny_recipe(**trainer):
    """What `choose_start` and the plan before preparing ask of a recipe."""
    values = {
        "seed": 1,
        "model": {
            "name": "retro",
            "width": 16,
            "num_layers": 2,
            "num_heads": 2,
            "cca_layers": [2],
            "encoder_width": 8,
            "encoder_layers": 1,
            "encoder_heads": 2,
        },
        "data": {"chunk_length": 4, "sequence_chunks": 3, "num_workers": 0},
        "neighbours": {"k": 2},
        "optimizer": {},
        "trainer": {"device": "cpu"} | trainer,
    }
    return Recipe(values=values, origins={}, path=Path("tiny.yaml"))


def weights(run_folder):
    newest = list_checkpoints(Path(run_folder) / "checkpoints")[0]
    return read_checkpoint(newest)


def read(run_folder):
    return (Path(run_folder) / "metrics.jsonl").read_text().splitlines()


def assert_same_run(first, second):
    """Weights, optimizer state and metric files are equal bit for bit."""
    one, two = weights(first), weights(second)
    assert one["global_step"] == two["global_step"]
    for name, value in one["state_dict"].items():
        assert torch.equal(value, two["state_dict"][name]), name
    for key, state in one["optimizer_states"][0]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, two["optimizer_states"][0]["state"][key][name]), (key, name)
    for name in ("metrics.jsonl", "metrics.csv"):
        assert (Path(first) / name).read_bytes() == (Path(second) / name).read_bytes()


class Killed(BaseException):
    """Stands for a kill: nothing of ours catches it."""


def kill():
    raise Killed
