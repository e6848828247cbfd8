"""Values that cannot be carried out are refused with key, value and what is allowed."""

import pytest

from retroflow.errors import RecipeError
from retroflow.training.options import OptimizerOptions, TrainerOptions


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": 0}, "trainer.max_steps: 0 given; it must be at least 1"),
        ({"retrieval_dropout": 1.5}, "trainer.retrieval_dropout: 1.5 given; it must be from 0.0 to 1.0"),
        ({"keep_checkpoints": 0}, "trainer.keep_checkpoints: 0 given"),
        ({"final_sequences": 0}, "trainer.final_sequences: 0 given"),
        ({"max_seconds": -1.0}, "trainer.max_seconds: -1.0 given"),
        ({"batch_size": 4, "accumulate": 3}, "trainer.accumulate: 3 does not divide trainer.batch_size 4"),
        ({"runs_folder": ""}, "trainer.runs_folder is empty"),
    ],
)
def test_trainer_options_refuse(changes, message):
    with pytest.raises(RecipeError, match=message):
        TrainerOptions(**changes)


@pytest.mark.parametrize(
    "changes", [{"learning_rate": -1.0}, {"final_share": 2.0}, {"beta2": -0.1}, {"beta1": 1.0}, {"warmup_steps": -1}]
)
def test_optimizer_options_refuse(changes):
    key, value = next(iter(changes.items()))
    with pytest.raises(RecipeError, match=f"optimizer.{key}: {value} given"):
        OptimizerOptions(**changes)
