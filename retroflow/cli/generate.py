"""`retroflow generate`: continue prompts with a trained model and live retrieval."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retroflow.cli.flags import Checkpoint, Database, Device, Folder, Retrieval, with_flags
from retroflow.cli.streams import only_results_on_stdout, result_stream
from retroflow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from retroflow.generation import Piece
    from retroflow.generation.prompts import PlacedPrompt

Prompt = Annotated[
    list[str] | None, typer.Option("--prompt", help="Text to continue; may be repeated. -: standard input.")
]
PromptsFile = Annotated[
    str | None,
    typer.Option("--prompts-file", help='One prompt, or one JSON object with "prompt", per line. -: standard input.'),
]
ShowSources = Annotated[
    bool, typer.Option("--show-sources", help="List document, text and score of every retrieved chunk.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per prompt, with sources.")]

_FLAGS = {"num_neighbours": "--neighbours", "stop_at_end_of_text": "--stop-at-end-of-text/--ignore-end-of-text"}
_SHOWN = {"num_neighbours": "as trained", "retrieval_step": "as evaluated", "stop": ""}
"""Shown for flags that are not passed on unless they are given."""


@only_results_on_stdout()
@with_flags("retroflow.generation.options:GenerationOptions", names=_FLAGS, shown=_SHOWN)
def generate(  # noqa: PLR0913  # a command's parameters are its options (docs/decisions/0042)
    *,
    folder: Folder,
    checkpoint: Checkpoint = None,
    prompt: Prompt = None,
    prompts_file: PromptsFile = None,
    database: Database = None,
    retrieval: Retrieval = True,
    options: Mapping[str, Any],
    device: Device = "auto",
    show_sources: ShowSources = False,
    as_json: AsJson = False,
) -> None:
    """Continue prompts: the text goes to stdout as it is made, sources and notes to stderr."""
    from retroflow.console import say
    from retroflow.generation import GenerationOptions, stream
    from retroflow.generation.opening import open_language_model
    from retroflow.generation.prompts import telling_in_flags
    from retroflow.generation.session import ReadingLines, notes_on_length

    prompts = _prompts(prompt or [], prompts_file)
    with telling_in_flags(prompts):
        chosen = GenerationOptions(**options)
        opened = open_language_model(
            folder, database=database, retrieval=retrieval, device=device, checkpoint=checkpoint
        )
        retriever = opened.database
        if "num_neighbours" not in options:
            chosen = replace(chosen, num_neighbours=opened.origin.num_neighbours)
        elif retriever and chosen.num_neighbours > len(retriever):
            allowed = f"1 to {len(retriever):,}, the chunks of the database"
            raise UsageError(f"--neighbours is {chosen.num_neighbours}; allowed: {allowed}.")
        if "retrieval_step" not in options:
            chosen = replace(chosen, retrieval_step=opened.origin.retrieval_step)
        texts, reading = [each.text for each in prompts], ReadingLines(say)
        pieces = stream(opened.model, opened.tokenizer, texts, retriever=retriever, options=chosen, reading=reading)
    for note in notes_on_length(prompts, opened.tokenizer, opened.origin.sequence_length):
        say(note)
    if show_sources and not retriever:
        say("no sources: nothing is retrieved")
    _print(pieces, metric=retriever.metric if show_sources and retriever else None, as_json=as_json)


def _prompts(words: list[str], file: str | None) -> "list[PlacedPrompt]":
    from retroflow.generation.prompts import prompts_of_words, read_prompts

    if bool(words) == (file is not None):
        given = "is given twice" if words else "is not given"
        raise UsageError(f"generate: what to continue {given}; give either --prompt or --prompts-file.")
    return prompts_of_words(words) if file is None else read_prompts(file)


def _print(pieces: "Iterable[Piece]", *, metric: str | None, as_json: bool) -> None:
    """Print texts in the order of their prompts, the text of the prompt whose turn it is while it is made.

    Args:
        pieces: of all prompts.
        metric: what scores mean, None if sources are not to be shown.
        as_json: print each generation whole instead.
    """
    from retroflow.console import say
    from retroflow.generation.session import describe_sources, in_turn, to_json

    for piece in in_turn(pieces):
        if not as_json:
            print(piece.text, end="" if piece.generation is None else "\n", file=result_stream(), flush=True)
        elif piece.generation is not None:
            print(json.dumps(to_json(piece.generation), ensure_ascii=False), file=result_stream(), flush=True)
        if piece.generation is not None and metric is not None:
            say(describe_sources(piece.generation, metric))
