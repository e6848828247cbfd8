"""A full training step (forward, loss, backward, AdamW) beside retro-pytorch's, interleaved in one run.

    python -m venv peer && source peer/bin/activate        # its own: the peer's dependencies ask for numpy 1
    pip install -c constraints.txt -e ".[faiss,parquet]" einops einops-exts fire pandas sentencepiece
    pip install --no-deps retro-pytorch==0.3.9 autofaiss==2.18.0 embedding-reader==1.8.1
    python tests/benchmarks/bench_training_step.py                       # CPU: sequences of 1,024 and 2,048 tokens
    python tests/benchmarks/bench_training_step.py --device cuda --lengths 2048 --batch 8
    python tests/benchmarks/bench_training_step.py --device cuda --size 425m --lengths 2048 --batch 8

Every contender is a process of its own, so that its peak memory is its own; all are made ready first, then they take
turns, `--steps` steps at a time, one running while the others wait. Printed: tokens/s (median and best over the
turns), CPU-seconds per step, peak memory, parameters; the floor, the step's matrix products at the measured matrix rate
of this machine, and the share of it that was reached; and the ratios to the peer in the same precision.

The peer has one head width and number of heads for decoder and encoder, so that only `--size bench` is equal to the
weight; of the others it has other numbers of parameters, which are printed.

FLOPs of a step are counted by the formula of retroflow/planning/costs.py; MFU = FLOPs / (seconds * peak), with the
device's published dense bf16 peak (retroflow/planning/throughput.py).
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from retroflow.model.config import RetroConfig
from retroflow.planning.costs import training_flops
from retroflow.planning.throughput import peak_flops_of

CHUNK, NEIGHBOURS, VOCABULARY = 64, 2, 32_000
SIZES = {
    "bench": RetroConfig(
        vocabulary_size=VOCABULARY, chunk_length=CHUNK, width=512, num_layers=12, num_heads=8, head_width=64,
        cca_layers=(6, 9, 12), encoder_width=512, encoder_layers=2, encoder_heads=8,
        encoder_cross_attention_layers=(1, 2), tie_embeddings=False, share_encoder_embeddings=True,
    ),
    "425m": RetroConfig(
        vocabulary_size=VOCABULARY, chunk_length=CHUNK, width=1536, num_layers=12, num_heads=12, head_width=128,
        cca_layers=(6, 9, 12), encoder_width=896, encoder_layers=2, encoder_heads=14, encoder_cross_attention_layers=(1,),
    ),
    "toy": RetroConfig(
        vocabulary_size=VOCABULARY, chunk_length=CHUNK, width=64, num_layers=4, num_heads=2, head_width=32, cca_layers=(3, 4),
        encoder_width=64, encoder_layers=1, encoder_heads=2, encoder_cross_attention_layers=(1,),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Contender:
    """One way to take a training step."""

    name: str
    is_peer: bool = False
    retrieval: bool = True
    bf16: bool = False
    compiled: bool = False
    checkpointed: bool = False

    @property
    def peer(self) -> str:
        """The peer's contender in the same precision: nothing else is a fair comparison."""
        return f"retro-pytorch {'bf16' if self.bf16 else 'fp32'}"


CONTENDERS = (
    Contender("retro-pytorch fp32", is_peer=True),
    Contender("retro-pytorch bf16", is_peer=True, bf16=True),
    Contender("retroflow fp32"),
    Contender("retroflow fp32 compiled", compiled=True),
    Contender("retroflow fp32 checkpointed", checkpointed=True),
    Contender("retroflow bf16", bf16=True),
    Contender("retroflow bf16 compiled", bf16=True, compiled=True),
    Contender("decoder alone fp32", retrieval=False),
    Contender("decoder alone bf16 compiled", retrieval=False, bf16=True, compiled=True),
)


@dataclass(frozen=True)
class Task:
    """What is trained: the model's size and the shape of a batch."""

    config: RetroConfig
    length: int
    batch: int
    device: str
    threads: int


def main() -> None:
    arguments = parse()
    for length in arguments.lengths:
        task = Task(SIZES[arguments.size], length, arguments.batch, arguments.device, arguments.threads)
        chosen = [each for each in CONTENDERS if not arguments.only or each.name in arguments.only]
        if find_spec("retro_pytorch") is None:
            print("without the peer: it is not installed")
            chosen = [each for each in chosen if not each.is_peer]
        results, rates = race(task, chosen, rounds=arguments.rounds, steps=arguments.steps)
        print(report(task, results, rates), flush=True)
        if arguments.json:
            with open(arguments.json, "a", encoding="utf-8") as file:
                file.write(json.dumps({"length": length, "results": results, "rates": rates}) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=tuple(SIZES), default="bench")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="names of contenders")
    parser.add_argument("--json", help="append the figures to this file")
    return parser.parse_args()


def race(
    task: Task, contenders: list[Contender], *, rounds: int, steps: int
) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
    """Let the contenders take turns; returns name -> figures, and the best matrix rates of all rounds."""
    context = multiprocessing.get_context("spawn")
    lanes = {}
    for contender in contenders:
        here, there = context.Pipe()
        process = context.Process(target=run_contender, args=(contender, task, there), daemon=True)
        process.start()
        lanes[contender.name] = (process, here)
        print(f"ready: {contender.name}, {here.recv()}", flush=True)
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in lanes}
    rates: dict[str, float] = {}
    for _ in range(rounds):
        rates = {name: max(rate, rates.get(name, 0.0)) for name, rate in matrix_rates(task).items()}
        for name, (_, pipe) in lanes.items():
            pipe.send(steps)
            turns[name].append(pipe.recv())
    results = {}
    for name, (process, pipe) in lanes.items():
        pipe.send(0)
        results[name] = summary(task, turns[name], pipe.recv())
        process.join()
    return results, rates


def summary(task: Task, turns: list[dict[str, float]], end: dict[str, float]) -> dict[str, Any]:
    tokens = task.length * task.batch
    return {
        "tokens_per_second": tokens / statistics.median(turn["seconds"] for turn in turns),
        "best_tokens_per_second": tokens / min(turn["seconds"] for turn in turns),
        "cpu_seconds": statistics.median(turn["cpu_seconds"] for turn in turns),
        "seconds": statistics.median(turn["seconds"] for turn in turns),
        **end,
    }


def run_contender(contender: Contender, task: Task, pipe: Connection) -> None:
    """Take as many steps as the pipe asks for, until it asks for none."""
    torch.set_num_threads(task.threads)
    torch.manual_seed(0)
    started = time.perf_counter()
    model, loss_of = make(contender, task)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=not contender.is_peer)
    batch = make_batch(task)
    for _ in range(2):
        loss = step(optimizer, loss_of, batch, contender, task)
    pipe.send(f"loss {loss:.3f}, first steps {time.perf_counter() - started:.0f} s")
    while count := pipe.recv():
        synchronise(task)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(count):
            step(optimizer, loss_of, batch, contender, task)
        synchronise(task)
        seconds = (time.perf_counter() - wall) / count
        pipe.send({"seconds": seconds, "cpu_seconds": (time.process_time() - cpu) / count})
    pipe.send({"peak_mib": peak_mib(task), "parameters": sum(each.numel() for each in model.parameters())})


def step(optimizer: torch.optim.Optimizer, loss_of: Any, batch: Any, contender: Contender, task: Task) -> float:
    with torch.autocast(task.device, dtype=torch.bfloat16, enabled=contender.bf16):
        loss = loss_of(*batch)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach() if task.device == "cuda" else float(loss.detach())


def make(contender: Contender, task: Task) -> tuple[torch.nn.Module, Any]:
    """Make a model and the function (tokens [b, n + 1], retrieved) -> mean loss."""
    if contender.is_peer:
        return make_peer(task)
    model = task.config.build().to(task.device).train()
    if contender.checkpointed:  # as `trainer.activation_checkpointing` does
        for block in model.blocks_to_recompute:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    loss = torch.compile(model.loss, dynamic=False) if contender.compiled else model.loss

    def loss_of(tokens: torch.Tensor, retrieved: torch.Tensor) -> torch.Tensor:
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        total = loss(inputs, targets, retrieved) if contender.retrieval else loss(inputs, targets)
        return total.sum() / targets.numel()

    return model, loss_of


def make_peer(task: Task) -> tuple[torch.nn.Module, Any]:
    from retro_pytorch import RETRO

    c = task.config
    model = RETRO(
        num_tokens=VOCABULARY, max_seq_len=task.length, enc_dim=c.encoder_width, enc_depth=c.encoder_layers,
        dec_dim=c.width, dec_depth=c.num_layers, dec_cross_attn_layers=c.cca_layers, heads=c.num_heads,
        dim_head=c.head_width, chunk_size=CHUNK,
    )  # fmt: skip
    model = model.to(task.device).train()
    return model, lambda tokens, retrieved: model(tokens, retrieved, return_loss=True)


def make_batch(task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    # From 1: the peer takes 0 for padding.
    tokens = torch.randint(1, VOCABULARY, (task.batch, task.length + 1), generator=generator)
    shape = (task.batch, task.length // CHUNK, NEIGHBOURS, 2 * CHUNK)
    retrieved = torch.randint(1, VOCABULARY, shape, generator=generator)
    return tokens.to(task.device), retrieved.to(task.device)


def synchronise(task: Task) -> None:
    if task.device == "cuda":
        torch.cuda.synchronize()


def peak_mib(task: Task) -> float:
    if task.device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def step_flops(task: Task, *, retrieval: bool = True) -> float:
    """Floating-point operations of the matrix products of one step."""
    return float(task.batch * training_flops(task.config, task.length, NEIGHBOURS if retrieval else 0))


def matrix_rates(task: Task) -> dict[str, float]:
    """Measure FLOP/s of the feed-forward's product, [n, d] x [d, 4d], in both precisions: the best of 20."""
    torch.set_num_threads(task.threads)
    rates = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        left = torch.randn(task.batch * task.length, task.config.width, device=task.device, dtype=dtype)
        right = torch.randn(task.config.width, 4 * task.config.width, device=task.device, dtype=dtype)
        seconds = []
        for _ in range(20):
            synchronise(task)
            started = time.perf_counter()
            left @ right
            synchronise(task)
            seconds.append(time.perf_counter() - started)
        rates[name] = 2.0 * left.shape[0] * right.numel() / min(seconds)
    return rates


def report(task: Task, results: dict[str, dict[str, Any]], rates: dict[str, float]) -> str:
    lines = [
        f"\n{task.batch} x {task.length} tokens on {task.device}, {task.threads} threads, torch {torch.__version__}",
        "| contender | tokens/s | best | to peer | CPU-s/step | peak MiB | to peer | step s | floor s | of floor | params |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for contender in (each for each in CONTENDERS if each.name in results):
        figures, peer = results[contender.name], results.get(contender.peer)
        flops = step_flops(task, retrieval=contender.retrieval)
        floor = flops / rates["bf16" if contender.bf16 else "fp32"]
        faster = f"{figures['tokens_per_second'] / peer['tokens_per_second']:.2f}" if peer else "-"
        smaller = f"{figures['peak_mib'] / peer['peak_mib']:.2f}" if peer else "-"
        lines.append(
            f"| {contender.name} | {figures['tokens_per_second']:,.0f} | {figures['best_tokens_per_second']:,.0f} | "
            f"{faster} | {figures['cpu_seconds']:.2f} | {figures['peak_mib']:,.0f} | {smaller} | "
            f"{figures['seconds']:.3f} | {floor:.3f} | {floor / figures['seconds']:.0%} | "
            f"{figures['parameters'] / 1e6:.1f} M |"
        )
        if task.device == "cuda" and (peak := peak_flops_of(torch.cuda.get_device_name())):
            lines.append(f"  MFU {flops / figures['seconds'] / peak:.1%}")
    measured = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in rates.items())
    lines.append(f"matrix rate: {measured}; FLOPs of a step {step_flops(task):.3g}, without retrieval "
                 f"{step_flops(task, retrieval=False):.3g}")  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()
