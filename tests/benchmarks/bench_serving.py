"""Throughput of a server with 8 requests at once against 1: tokens per second, interleaved, and per second of CPU.

    python tests/benchmarks/bench_serving.py            # a Retro of the size of recipes/retro_small.yaml, random weights
    python tests/benchmarks/bench_serving.py RUN        # any run or exported folder with a database of its own

Measured 2026-11-27 on two busy cores (load 8), medians of 9 interleaved pairs, 128 new tokens after 60, retro_small's
size: 8 requests give 4.4 times the tokens per second of one, and 4.8 without influence (4.4 and 4.8 per second of CPU).
SmolLM2, which reads by its own attention, one thread, 64 new tokens, per second of CPU: in bfloat16, which a server
chooses, 3.6 and 4.3 times with neighbours that nobody had read before, 4.7 and 5.2 with kept ones; in float32 2.2 and 2.7.
"""

import argparse
import statistics
import tempfile
import threading
import time
from pathlib import Path

import torch

import retroflow as rf
from retroflow.generation import GenerationOptions, RetrievalDatabase
from retroflow.generation.language_model import LanguageModel
from retroflow.model.config import RetroConfig
from retroflow.runs.origin import Origin
from retroflow.serving.running import Event, Job
from retroflow.serving.service import Service
from tests.database.small import build, documents_of, text_of

PROMPT_TOKENS = 60
RETRO_SMALL = {
    "vocabulary_size": 8192, "chunk_length": 64, "width": 128, "num_layers": 3, "num_heads": 2, "cca_layers": (2,),
    "cca_heads": 1, "cca_positions": False, "encoder_width": 64, "encoder_layers": 1, "encoder_heads": 1,
    "share_encoder_embeddings": True, "smear": True, "next_token_values": True, "copy_initialisation": True,
}  # fmt: skip


def retro_small(folder: Path) -> LanguageModel:
    database = build(folder / "db", documents_of(*range(60)), chunk_length=64)
    tokenizer = database.snapshot.tokenizer
    torch.manual_seed(0)
    model = RetroConfig(**RETRO_SMALL).build().eval()
    origin = Origin("retro_small", 0, 2, 64, 512, tokenizer.fingerprint(), {}, "benchmark")
    reader = RetrievalDatabase.of(database, tokenizer=tokenizer, chunk_length=64)
    return LanguageModel(model, tokenizer, origin, reader)


def seconds(service: Service, count: int, seed: int, words: argparse.Namespace) -> tuple[float, float]:
    """Wall-clock and CPU seconds of `count` requests that arrive together."""
    ended = threading.Semaphore(0)

    def report(event: Event) -> None:
        assert event.error is None, event.error
        if event.is_last:
            ended.release()

    jobs = []
    for number in range(count):
        text = text_of(seed * 100 + number, 60)
        tokens = service.opened.tokenizer.encode(text).ids.tolist()[:PROMPT_TOKENS]
        options = GenerationOptions(max_new_tokens=words.tokens, stop_at_end_of_text=False)
        wanted = {"retrieves": not words.off, "measures_influence": not words.no_influence}
        jobs.append(Job(text, tokens, options, report, max_new_tokens=words.tokens, **wanted))
    wall, cpu = time.perf_counter(), time.process_time()
    service.worker.submit(jobs)
    for _ in jobs:
        ended.acquire()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--off", action="store_true", help="without retrieval")
    parser.add_argument("--no-influence", action="store_true")
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    with tempfile.TemporaryDirectory() as folder:
        opened = rf.load(words.run) if words.run else retro_small(Path(folder))
        service = Service(opened, name="benchmark")
        service.worker.start()
        seconds(service, 8, 999, words)
        ratios = []
        for repeat in range(words.repeats):
            one, eight = (seconds(service, count, repeat * 2 + count, words) for count in (1, 8))
            ratios.append([8 * a / b for a, b in zip(one, eight, strict=True)])
            rates = words.tokens / one[0], 8 * words.tokens / eight[0]
            print(
                f"1: {rates[0]:.0f} tokens/s, 8: {rates[1]:.0f} tokens/s, times {ratios[-1][0]:.2f} (CPU {ratios[-1][1]:.2f})"
            )
        wall, cpu = (statistics.median(each) for each in zip(*ratios, strict=True))
        print(f"median: 8 requests give {wall:.2f} times the tokens per second of 1, {cpu:.2f} times per second of CPU")
        service.worker.close()


if __name__ == "__main__":
    main()
