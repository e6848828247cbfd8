"""Facts about a model before it is built, from the meta device."""

from dataclasses import dataclass
from typing import Any

import torch

from retroflow.console import saying_if_slow
from retroflow.errors import UsageError
from retroflow.planning.options import TrainerOptions
from retroflow.protocols import ModelConfig


@dataclass(frozen=True)
class ModelOutline:
    """Facts about a model before it is built.

    Attributes:
        sizes: numbers in each parameter, by name.
        retrieval: names of the trained parameters that get no gradient without retrieved text.
        frozen: names of the parameters that are not trained, such as those of a RETRO-fitted base.
        can_recompute: whether activation checkpointing has layers to recompute.
    """

    sizes: dict[str, int]
    retrieval: frozenset[str]
    frozen: frozenset[str] = frozenset()
    can_recompute: bool = True

    @property
    def num_parameters(self) -> int:
        return sum(self.sizes.values())

    @property
    def num_trained_parameters(self) -> int:
        return sum(size for name, size in self.sizes.items() if name not in self.frozen)

    @property
    def num_retrieval_parameters(self) -> int:
        return sum(self.sizes[name] for name in self.retrieval)


def outline(config: ModelConfig) -> ModelOutline:
    """Build a model on the meta device and return its outline; no memory, and slow only for thousands of layers."""
    with saying_if_slow("still counting the model's parameters, layer by layer"), torch.device("meta"):
        model: Any = config.build()
        retrieval = model.retrieval_parameters()
    parameters = dict(model.named_parameters())
    return ModelOutline(
        sizes={name: parameter.numel() for name, parameter in parameters.items()},
        retrieval=frozenset(retrieval),
        frozen=frozenset(name for name, parameter in parameters.items() if not parameter.requires_grad),
        can_recompute=bool(model.blocks_to_recompute),
    )


def check_trainable(outline: ModelOutline, trainer: TrainerOptions, *, strategy: str = "single") -> None:
    """Check that there is something to train, unless nothing is to be trained.

    Args:
        outline: of the model.
        trainer: how it is trained.
        strategy: of the placement.

    Raises:
        UsageError: all weights are frozen that these options would train; or several processes would train nothing.
    """
    untrained = outline.frozen if trainer.retrieval else outline.frozen | outline.retrieval
    if untrained != outline.sizes.keys():
        return
    if not trainer.max_steps:
        if strategy != "single":
            raise UsageError(
                f'trainer.strategy: "{strategy}" for a model without a weight to train; one process evaluates it. '
                "Leave trainer.strategy and trainer.devices out."
            )
    elif trainer.retrieval:
        raise UsageError(
            f"trainer.max_steps: {trainer.max_steps} given; all of this model's weights are frozen (model.unfreeze), "
            "so that nothing is left to train. Name what to train (model.trained, with model.reader: inherit), or set "
            "trainer.max_steps: 0 to evaluate it as it is."
        )
    else:
        raise UsageError(
            "trainer.retrieval: false given; everything that works without retrieval is frozen (model.unfreeze), so "
            "that nothing is left to train. Leave retrieval on, or set model.unfreeze: true."
        )
