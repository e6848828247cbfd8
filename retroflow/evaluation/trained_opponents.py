"""Opponents of trained reading: the base, and in-context retrieval, with as many weights trained for as long.

Part of what training gains is the style of the text, which any weights learn. Here low-rank maps on the base learn it
(retroflow/pretrained/low_rank.py), at least as many weights as reading has, from the run's own sequences in their
order, with the run's own optimizer, until they have trained as many seconds as the run. The learning rate follows these
seconds. On a CPU they are those that the process has computed for, so that other work there takes nothing from anyone.

    base_trained          the loss of the whole sequence, without retrieval
    in_context_trained    [passages for chunk u] [the sequence's tokens up to chunk u + 1], and the loss of chunk u + 1

The prompt is what is measured afterwards (retroflow/evaluation/prompted.py). The seed draws u for every sequence: one
pass costs about as much as reading a sequence, and all chunks of a sequence would cost seven times that.

Shapes: b sequences, n tokens of a sequence, m tokens of a chunk.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from retroflow.console import progress
from retroflow.data import Batch, StepBatches
from retroflow.data.batch import NOT_PREDICTED
from retroflow.evaluation.measuring import Measurable, prompted_sequences, random_neighbours, refuse_not_finite
from retroflow.evaluation.measuring import token_losses as losses_of
from retroflow.evaluation.opponents import TRAINED, Opponents, Sample, intervals_of
from retroflow.evaluation.perplexity import Measure, measure
from retroflow.evaluation.prompted import Prompting, padded, prompt_of
from retroflow.model.loss import token_losses
from retroflow.planning.options import OptimizerOptions
from retroflow.planning.schedule import learning_rate_factor
from retroflow.protocols import Int64Array

_CHUNK_STREAM = 3
"""Separates the random stream of the predicted chunks from the others of the recipe's seed."""

_MAPS_STREAM = 4
"""The same of the maps' initial weights."""

Nats = Callable[[Any, Batch, int], Tensor]
"""Of a model with maps on its base, a batch and the step: the loss in nats per position, with gradients."""


def add_trained(
    job: Measurable,
    found: Opponents,
    *,
    seconds: float,
    num_weights: int,
    stop: Callable[[], None],
) -> Opponents:
    """Train the opponents one after the other, and measure them on the tokens that the others were measured on.

    Nothing of the job changes, nor does torch's generator.

    Args:
        job: its module's model is on the placement's device.
        found: the opponents that were not trained.
        seconds: of the run's training; on a CPU those of its process, summed over threads.
        num_weights: that the run trained.
        stop: called between steps and chunks; may raise to stop.

    Raises:
        RetroflowError: a loss is not finite.
    """
    from retroflow.pretrained.low_rank import with_low_rank_maps

    sample = Sample(job.splits, prompted_sequences(job), job.placement, job.options.eval_batch_size, lambda _: stop())
    known, trained = dict(found.measures), {}
    devices = [] if job.placement.device.type == "cpu" else [job.placement.device]
    for name, nats in ((TRAINED[0], _nats_alone), (TRAINED[1], _nats_in_context(job.seed))):
        with torch.random.fork_rng(devices):
            torch.manual_seed(int(np.random.SeedSequence([job.seed, _MAPS_STREAM]).generate_state(1)[0]))
            with torch.autocast(job.placement.accelerator, torch.bfloat16, enabled=job.placement.uses_bf16):
                model = with_low_rank_maps(job.module.model, num_weights)
        trained[name] = _train(model, job, name, nats, seconds, stop)
        known |= _measure(model.eval(), sample, name, random_neighbours(job))
        del model
    return replace(
        found, measures=known, trained=trained, intervals=intervals_of(known, sample.documents, seed=job.seed)
    )


def _train(
    model: Any, job: Measurable, name: str, nats: Nats, seconds: float, stop: Callable[[], None]
) -> dict[str, float]:
    """Train the maps of a model's base, changed in place.

    Returns:
        "weights" (of the maps), "steps", "seconds" and "cpu_seconds".
    """
    clock = time.process_time if job.placement.device.type == "cpu" else time.perf_counter
    options: OptimizerOptions = job.module.optimizer_options
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        weights,
        lr=options.learning_rate,
        betas=(options.beta1, options.beta2),
        eps=options.epsilon,
        weight_decay=options.weight_decay,
        fused=True,
    )
    clocks = time.perf_counter(), time.process_time()
    splits, step, passed, began = job.splits, 0, 0.0, clock()
    sequences = splits.training(retrieval=True)
    batches = StepBatches(
        num_chunks=len(splits.train_chunks),
        sequence_chunks=splits.sequence_chunks,
        batch_size=job.options.batch_size,
        seed=job.seed,
    )
    with progress(f"training {name}", max(1, round(seconds)), "seconds") as show:
        while passed < seconds:
            factor = learning_rate_factor(
                int(passed / seconds * job.options.max_steps),
                warmup_steps=options.warmup_steps,
                max_steps=job.options.max_steps,
                final_share=options.final_share,
            )
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate * factor
            for starts in np.split(batches.starts(step), job.options.accumulate):
                batch = sequences.assemble(starts, splits.sequence_chunks).to(job.placement.device)
                with torch.autocast(job.placement.accelerator, torch.bfloat16, enabled=job.placement.uses_bf16):
                    loss = nats(model, batch, step) / job.options.accumulate
                loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(weights, options.clip_norm or float("inf"))
            optimizer.step()
            optimizer.zero_grad()
            refuse_not_finite(float(loss.detach()), name)
            stop()
            step, before, passed = step + 1, passed, clock() - began
            show(min(round(passed), round(seconds)) - round(before))
    wall, cpu = time.perf_counter() - clocks[0], time.process_time() - clocks[1]
    count = sum(weight.numel() for weight in weights)
    return {"weights": count, "steps": step, "seconds": round(wall, 3), "cpu_seconds": round(cpu, 3)}


def _nats_alone(model: Any, batch: Batch, step: int) -> Tensor:
    total: Tensor = model.loss(batch.tokens, batch.targets).sum()
    return total / batch.targets.numel()


def _nats_in_context(seed: int) -> Nats:
    def nats(model: Any, batch: Batch, step: int) -> Tensor:
        m, num_rows = model.config.chunk_length, len(batch.tokens)
        drawn = np.random.default_rng([seed, step, _CHUNK_STREAM])
        chunks = drawn.integers(1, batch.tokens.shape[1] // m, size=num_rows).tolist()
        inputs = [
            prompt_of(batch, row, chunk, m, Prompting(), model.context_length) for row, chunk in enumerate(chunks)
        ]
        of_chunks = [batch.targets[row, chunk * m - 1 : (chunk + 1) * m - 1] for row, chunk in enumerate(chunks)]
        tokens, targets = padded(inputs, torch.stack(of_chunks))
        wanted = targets != NOT_PREDICTED  # passages need no logits
        hidden = model.base.base_model(input_ids=tokens, use_cache=False).last_hidden_state[wanted]
        losses = token_losses(hidden, model.output_weights(), targets[wanted])
        return losses.sum() / (num_rows * m)

    return nats


def _measure(model: Any, sample: Sample, name: str, random: Int64Array) -> dict[str, Measure]:
    """Measure a trained opponent; in-context retrieval with `random` passages, too."""
    splits = sample.splits
    if name == TRAINED[0]:
        whole = measure(
            losses_of(model, sample.placement),
            splits.validation().in_order(sample.batch_size, sample.sequences),
            num_chunks=len(splits.valid_chunks),
            chunk_length=splits.valid_chunks.chunk_length,
            advance=sample.advance,
            starts=sample.starts,
        )
        found = {name: sample.restricted(whole)}
    else:
        tables = {TRAINED[1]: splits.validation_neighbours, TRAINED[2]: random}
        found = {mode: sample.prompted(model, table, Prompting()) for mode, table in tables.items()}
    for mode, measured in found.items():
        refuse_not_finite(measured.nats, mode)
    return found
