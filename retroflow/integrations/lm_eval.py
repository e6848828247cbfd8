"""Models of this library in lm-evaluation-harness; the only file that imports lm_eval.

    retroflow evaluate RUN --tasks hellaswag,arc_easy
    lm_eval.simple_evaluate("retroflow", {"model": "runs/x/0001"}, tasks=["hellaswag"])  # after importing this module

The harness scores continuations of contexts. Each is scored as a part of the whole text, whose first window is its
first chunk: that is what a server can do, which does not learn where a context ends, so both give equal numbers. With
lookups="context" a window ends where a context ends, as in `LanguageModel.score`, and neighbours are read from the
continuation's first token on. `retroflow evaluate --tasks` does that.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, handle_non_serializable, make_disjoint_window

from retroflow.console import progress
from retroflow.generation.arguments import unfit
from retroflow.generation.decoding import generate
from retroflow.generation.language_model import LanguageModel
from retroflow.generation.opening import open_language_model
from retroflow.generation.options import GenerationOptions
from retroflow.generation.scoring import score_after, score_within

AUTO_BATCH = 8
"""Contexts computed together where the harness leaves the choice to the model."""

_Pair = tuple[list[int], list[int]]


@register_model("retroflow")
class RetroflowLM(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """A run or an exported model, with live retrieval.

    Args:
        model: an open `LanguageModel`, or the folder of a run or of an exported model.
        database: its folder; None for the run's own.
        retrieval: False switches retrieval off.
        checkpoint: of a run, a step or a path; None for the newest.
        num_neighbours: chunks to retrieve for a window; None for as many as in training.
        retrieval_step: tokens between two retrievals; None for those of the run's evaluation.
        lookups: "text" to look up as the server does, "context" to look up where each context ends, too.
        max_gen_toks: new tokens where a task names no limit.
        batch_size: contexts computed together; "auto" for 8. Scores with lookups="text" and retrieval are computed one
            by one.
        max_batch_size: not used; the harness passes it to every model.
        device: "auto", "cpu" or "cuda".

    Raises:
        RetroflowError: as `open_language_model`.
    """

    def __init__(  # noqa: PLR0913  # the harness' words for a model (docs/decisions/0042)
        self,
        model: LanguageModel | Path | str,
        *,
        database: Path | str | None = None,
        retrieval: bool = True,
        checkpoint: str | None = None,
        num_neighbours: int | None = None,
        retrieval_step: int | None = None,
        lookups: str = "text",
        max_gen_toks: int = 256,
        batch_size: int | str = AUTO_BATCH,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(model, LanguageModel):
            place = "auto" if device is None else str(device).partition(":")[0]
            wanted = None if checkpoint is None else str(checkpoint)
            model = open_language_model(
                Path(model), database=database, retrieval=retrieval, device=place, checkpoint=wanted
            )
        if lookups not in ("text", "context"):
            raise unfit("lookups", f'is "{lookups}"; allowed: "text" or "context".')
        self.opened, self.max_gen_toks = model, _num_tokens(max_gen_toks)
        self._score = score_within if lookups == "text" and model.database is not None else score_after
        self._options = GenerationOptions(
            num_neighbours=model.origin.num_neighbours if num_neighbours is None else num_neighbours,
            retrieval_step=model.origin.retrieval_step if retrieval_step is None else retrieval_step,
            batch_size=AUTO_BATCH if str(batch_size).startswith("auto") else int(batch_size),
        )

    @property
    def eot_token_id(self) -> int:
        """The end of text, which also stands before a text that has no context."""
        return self.opened.tokenizer.end_of_text

    @property
    def tokenizer_name(self) -> str:
        """Identifies the tokenizer in the harness' caches."""
        return self.opened.origin.tokenizer

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        """Return the tokens of a text; this library's tokenizers add no special ones."""
        return self.opened.tokenizer.encode(string).ids.tolist() if string else []

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        found = self._scored([self._windows_after(context, tokens) for _, context, tokens in requests], "requests")
        for (texts, _, _), answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, answer)
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of whole texts, in nats, each token predicted once."""
        texts = [request.args[0] for request in requests]
        windows = [self._windows_after([self.prefix_token_id], self.tok_encode(text)) for text in texts]
        found = [nats for nats, _ in self._scored(windows, "texts")]
        for text, answer in zip(texts, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), answer)
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue contexts up to a stop text, greedily unless the task samples."""
        together: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            together.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(place)
        answers = [""] * len(requests)
        with progress("generate", len(requests), "requests") as advance:
            for places in together.values():
                options = self._generation_options(requests[places[0]].args[1])
                prompts = [self._prompt(requests[place].args[0], options.max_new_tokens) for place in places]
                for first in range(0, len(places), options.batch_size):
                    part = places[first : first + options.batch_size]
                    batch = prompts[first : first + options.batch_size]
                    opened = self.opened
                    found = generate(opened.model, opened.tokenizer, batch, retriever=opened.database, options=options)
                    for place, generation in zip(part, found, strict=True):
                        answers[place] = generation.text
                        self.cache_hook.add_partial("generate_until", requests[place].args, generation.text)
                    advance(len(part))
        return answers

    def _windows_after(self, context: list[int], tokens: list[int]) -> list[_Pair]:
        """Cut tokens after a context into parts that the model can read; one part if they fit."""
        longest = self.opened.longest_input
        if len(tokens) <= longest:
            return [(self.opened.cut_context(context, tokens), tokens)] if tokens else []
        windows = get_rolling_token_windows(tokens, prefix_token=context[-1], max_seq_len=longest, context_len=1)
        return [make_disjoint_window(window) for window in windows]

    def _scored(self, requests: Sequence[Sequence[_Pair]], unit: str) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each request's windows, and whether every token is the likeliest."""
        opened, every = self.opened, [pair for pairs in requests for pair in pairs]
        with progress("score", len(every), unit) as advance:
            scores = iter(
                self._score(
                    opened.model,
                    opened.tokenizer,
                    every,
                    retriever=opened.database,
                    options=self._options,
                    advance=advance,
                )
            )
        found = []
        for pairs in requests:
            parts = [next(scores) for _ in pairs]
            found.append((-sum(sum(part.nats) for part in parts), all(all(part.likeliest) for part in parts)))
        return found

    def _prompt(self, context: str, new_tokens: int) -> list[int]:
        tokens = self.tok_encode(context) or [self.eot_token_id]
        return self.opened.cut_context(tokens, range(new_tokens + self.opened.model.config.chunk_length))

    def _generation_options(self, given: dict[str, Any]) -> GenerationOptions:
        values = normalize_gen_kwargs(given, self.max_gen_toks)
        draws = float(values.get("temperature") or 0.0) > 0
        return GenerationOptions(
            max_new_tokens=_num_tokens(values["max_gen_toks"]),
            temperature=float(values["temperature"]) if draws else 0.0,
            top_k=int(values.get("top_k") or 0) if draws else 0,
            top_p=float(values.get("top_p") or 1.0) if draws else 1.0,
            stop=tuple(stop for stop in values.get("until") or () if stop),
            num_neighbours=self._options.num_neighbours,
            retrieval_step=self._options.retrieval_step,
            batch_size=self._options.batch_size,
        )


def _num_tokens(given: Any) -> int:
    """Check the harness' word for the number of new tokens."""
    if not str(given).isdecimal() or int(given) < 1:
        raise unfit("max_gen_toks", f"is {given!r}; allowed: a whole number of at least 1.")
    return int(given)


def run_harness(
    ways: dict[str, LanguageModel], tasks: Sequence[str], *, limit: int | None, options: GenerationOptions
) -> dict[str, dict[str, Any]]:
    """Run tasks of the harness on the same model with several databases.

    Args:
        ways: name -> the model with a database, or with none.
        tasks: names of the harness, files, or folders of files (YAML).
        limit: the first examples of each task; None for all of them.
        options: num_neighbours, retrieval_step and batch_size.

    Returns:
        name -> what `lm_eval.simple_evaluate` returns, as JSON values.

    Raises:
        ArgumentError: there is no such task.
    """
    paths = [Path(task) for task in tasks if Path(task).exists()]
    names = [task for task in tasks if not Path(task).exists()]
    files = [file for path in paths for file in (sorted(path.glob("*.yaml")) if path.is_dir() else [path])]
    manager = TaskManager(
        include_path=[path if path.is_dir() else path.parent for path in paths], include_defaults=bool(names)
    )
    unknown = [name for name in names if not manager.match_tasks([name])]
    if unknown:
        raise unfit(
            "tasks",
            f"{', '.join(unknown)}: neither ours nor of the installed lm-eval, nor a file or folder of tasks; "
            "`lm-eval ls tasks` lists its own.",
        )
    chosen = partial(
        simple_evaluate, tasks=[*names, *map(str, files)], task_manager=manager, limit=limit, bootstrap_iters=2000
    )
    found = {}
    for way, opened in ways.items():
        model = RetroflowLM(
            opened,
            num_neighbours=options.num_neighbours,
            retrieval_step=options.retrieval_step,
            lookups="context",
            batch_size=options.batch_size,
        )
        found[way] = json.loads(json.dumps(chosen(model), default=handle_non_serializable))
    return found
