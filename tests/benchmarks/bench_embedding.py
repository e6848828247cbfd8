"""Chunks per second of the embedders against a plain transformers loop, interleaved in one run.

    python tests/benchmarks/bench_embedding.py --threads 2 --seconds 40

Texts are chunks of 64 tokens of a byte-level BPE of 8,192 entries, cut from transformers' modelling files. The plain
loop is what one would write first: the same model in bfloat16, batches of 256 sorted by length, padded, masked mean.
Rounds of all contenders take turns, so that a busy machine slows them alike; ratios are of the rounds' medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModel, AutoTokenizer

from retroflow.corpus.tokenizer import train_tokenizer
from retroflow.embedding.bert import BertEmbedder
from retroflow.embedding.lexical import LexicalEmbedder

CHUNK_LENGTH = 64
PLAIN_BATCH = 256


def main() -> None:
    """Measure and print one line a contender."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=40.0, help="stop after this long")
    parser.add_argument(
        "--chunks", type=int, default=1024, help="chunks of a round; fewer than 256 would make the plain loop pad more"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    chunks = code_chunks()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads")
    exact, rounded, lexical = BertEmbedder(precision="float32"), BertEmbedder(precision="bfloat16"), LexicalEmbedder()
    lexical.fit(chunks[:2000])
    contenders: dict[str, Callable[[list[str]], np.ndarray]] = {
        "plain loop, bfloat16": plain_loop(exact, torch.bfloat16),
        "plain loop, float32": plain_loop(exact, torch.float32),
        "bert, bfloat16": rounded.embed,
        "bert, float32": exact.embed,
        "lexical": lexical.embed,
    }
    rates = measure(contenders, chunks, options.chunks, options.seconds)
    sample = chunks[:: len(chunks) // 200]
    truth = contenders["plain loop, float32"](sample)
    reference = statistics.median(rates["plain loop, bfloat16"])
    print(f"{'':22}{'chunks/s':>9}{'best':>9}{'x plain':>9}  cosine to float32: least, mean")
    for name, values in rates.items():
        median = statistics.median(values)
        cosines = (contenders[name](sample) * truth).sum(axis=1) if name != "lexical" else np.array([np.nan])
        print(
            f"{name:22}{median:9.1f}{max(values):9.1f}{median / reference:9.2f}"
            f"  {cosines.min():.5f}, {cosines.mean():.5f}  ({len(values)} rounds)"
        )


def measure(
    contenders: dict[str, Callable[[list[str]], np.ndarray]], chunks: list[str], size: int, seconds: float
) -> dict[str, list[float]]:
    """Rounds of `size` chunks until the time is up, the contenders taking turns; chunks per second of each round."""
    for embed in contenders.values():
        embed(chunks[:16])
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    rounds = 0
    end = time.perf_counter() + seconds
    while rounds < 1 or time.perf_counter() < end:
        stride = len(chunks) // size
        block = chunks[rounds % stride :: stride][:size]
        for name, embed in contenders.items():
            start = time.perf_counter()
            embed(block)
            rates[name].append(len(block) / (time.perf_counter() - start))
        rounds += 1
    return rates


def plain_loop(embedder: BertEmbedder, dtype: torch.dtype) -> Callable[[list[str]], np.ndarray]:
    """The loop to beat, on the embedder's own model files."""
    folder = embedder.source.split()[-1]
    network = AutoModel.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.inference_mode()
    def embed(texts: list[str]) -> np.ndarray:
        token_ids = tokenizer(texts)["input_ids"]
        order = np.argsort([len(ids) for ids in token_ids])[::-1]
        vectors = np.zeros((len(texts), embedder.dimension), dtype=np.float32)
        for start in range(0, len(order), PLAIN_BATCH):
            rows = order[start : start + PLAIN_BATCH]
            batch = tokenizer.pad({"input_ids": [token_ids[row] for row in rows]}, return_tensors="pt")
            states = network(**batch).last_hidden_state.float()
            mask = batch["attention_mask"][:, :, None]
            pooled = (states * mask).sum(dim=1) / mask.sum(dim=1)
            vectors[rows] = torch.nn.functional.normalize(pooled, dim=1).numpy()
        return vectors

    return embed


def code_chunks() -> list[str]:
    """Chunks of a tenth of transformers' modelling files."""
    files = sorted(Path(transformers.__file__).parent.glob("models/*/modeling_*.py"))[::10]
    texts = [file.read_text(encoding="utf-8") for file in files]
    tokenizer = train_tokenizer(texts, 8192)
    chunks = []
    for text in texts:
        ids = tokenizer.encode(text).ids
        chunks += [tokenizer.decode(ids[start : start + CHUNK_LENGTH]) for start in range(0, len(ids), CHUNK_LENGTH)]
    return chunks


if __name__ == "__main__":
    main()
