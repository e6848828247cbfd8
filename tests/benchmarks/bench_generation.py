"""Tokens/s of generation beside retro-pytorch's own generate, and beside this project's without a cache.

    (retro-pytorch in an environment of its own: the lines at the head of bench_training_step.py)
    python tests/benchmarks/bench_generation.py                  # 512 new tokens after a prompt of 64, on the CPU
    python tests/benchmarks/bench_generation.py --device cuda

The model is that of bench_training_step.py, untrained, on both sides. Both draw with top-k (the peer's default tenth
of the vocabulary) and get random neighbours at once, so that what is timed is decoding and neither search nor
embedding. The contenders take turns. The peer's generate belongs to its TrainingWrapper, which wants a folder of
documents and a BERT; here it is called on an object with the attributes that it uses.
"""

import argparse
import contextlib
import io
import statistics
import string
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import numpy as np
import torch

from retroflow.corpus.tokenizer import train_tokenizer
from retroflow.generation.decoding import generate
from retroflow.generation.options import GenerationOptions
from retroflow.generation.retrieved import Retrieved
from tests.benchmarks.bench_training_step import CHUNK, NEIGHBOURS, SIZES, VOCABULARY, Task, make_peer

PROMPT = 64


class RandomNeighbours:
    """A live retriever that answers at once."""

    def __init__(self) -> None:
        self._generator = np.random.default_rng(0)

    def retrieve(self, queries: Sequence[Sequence[int]], num_neighbours: int) -> Retrieved:
        shape = (len(queries), num_neighbours, 2 * CHUNK)
        tokens = self._generator.integers(1, VOCABULARY, shape)
        return Retrieved(tokens, np.ones(shape, dtype=bool), [()] * len(queries))


class PeerWrapper(torch.nn.Module):
    """What TrainingWrapper.generate uses of a TrainingWrapper."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.retro, _ = make_peer(task)
        self.chunk_size, self.max_seq_len, self.device = CHUNK, task.length - 1, task.device

    def fetch_knn_chunks_fn(self, chunks: torch.Tensor) -> torch.Tensor:
        return torch.randint(1, VOCABULARY, (chunks.shape[0], NEIGHBOURS, 2 * CHUNK), device=self.device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=tuple(SIZES), default="bench")
    parser.add_argument("--new-tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    task = Task(SIZES[arguments.size], PROMPT + arguments.new_tokens, 1, arguments.device, arguments.threads)
    contenders = {
        "retroflow generate": ours(task, arguments.new_tokens, batch=1),
        "retroflow generate, 8 prompts": ours(task, arguments.new_tokens, batch=8),
        "retroflow without a cache": uncached(task),
    }
    if arguments.size == "bench" and find_spec("retro_pytorch"):
        contenders["retro-pytorch generate"] = peer(task)
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(arguments.rounds):
        for name, run in contenders.items():
            torch.manual_seed(turn)
            started = time.perf_counter()
            speeds[name].append(run() / (time.perf_counter() - started))
    print(
        f"{arguments.new_tokens} new tokens after {PROMPT}, {arguments.device}, {arguments.threads} threads, torch {torch.__version__}"
    )
    baseline_name = list(contenders)[-1]
    baseline = statistics.median(speeds[baseline_name])
    for name, values in speeds.items():
        middle = statistics.median(values)
        print(
            f"{name:32} {middle:9.1f} tokens/s ({min(values):.1f} to {max(values):.1f}), {middle / baseline:6.1f} x "
            f"{baseline_name}"
        )


def peer(task: Task) -> Callable[[], int]:
    from retro_pytorch.training import TrainingWrapper

    wrapper = PeerWrapper(task).to(task.device)

    def run() -> int:
        start = torch.randint(1000, VOCABULARY, (1, PROMPT))
        with contextlib.redirect_stdout(io.StringIO()):  # it prints at every chunk
            out = TrainingWrapper.generate(wrapper, start)
        return out.shape[1] - PROMPT

    return run


def ours(task: Task, new_tokens: int, *, batch: int) -> Callable[[], int]:
    model = task.config.build().to(task.device).eval()
    tokenizer = train_tokenizer([string.printable], 300)
    options = GenerationOptions(
        max_new_tokens=new_tokens, temperature=1.0, top_k=VOCABULARY // 10, stop_at_end_of_text=False, batch_size=batch
    )

    def run() -> int:
        prompts = torch.randint(1, tokenizer.vocabulary_size, (batch, PROMPT)).tolist()
        answers = generate(model, tokenizer, prompts, retriever=RandomNeighbours(), options=options)
        return sum(len(answer.tokens) for answer in answers)

    return run


def uncached(task: Task) -> Callable[[], int]:
    """Decode as the peer does, the whole sequence again for every token, with this project's model: 64 tokens."""
    model = task.config.build().to(task.device).eval()
    random = RandomNeighbours()

    @torch.inference_mode()
    def run() -> int:
        tokens = torch.randint(1, VOCABULARY, (1, task.length - CHUNK), device=task.device)
        count = tokens.shape[1] // CHUNK
        found = torch.from_numpy(random.retrieve([[]] * (count + 1), NEIGHBOURS).tokens).to(task.device)[None]
        for _ in range(CHUNK):
            logits = model(tokens, found[:, : tokens.shape[1] // CHUNK])[:, -1]
            tokens = torch.cat((tokens, logits.argmax(-1, keepdim=True)), dim=1)
        return CHUNK

    return run


if __name__ == "__main__":
    main()
