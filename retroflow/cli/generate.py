"""`retroflow generate`: continue prompts with a trained model and live retrieval."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retroflow.cli.streams import only_results_on_stdout, result_stream
from retroflow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from retroflow.generation import Piece
    from retroflow.generation.prompts import PlacedPrompt

Folder = Annotated[Path, typer.Argument(help="Run folder, or one that `retroflow export` wrote.", show_default=False)]
Checkpoint = Annotated[
    str | None, typer.Option("--checkpoint", metavar="STEP|PATH", help="Of a run: which one. Default: the newest.")
]
Prompt = Annotated[
    list[str] | None, typer.Option("--prompt", help="Text to continue; may be given several times. -: standard input.")
]
PromptsFile = Annotated[
    str | None,
    typer.Option("--prompts-file", help='A prompt a line, or a JSON object with "prompt" a line. -: standard input.'),
]
Database = Annotated[
    Path | None,
    typer.Option("--database", help="Where neighbours come from: index folder or run folder. Default: the run's own."),
]
Retrieval = Annotated[bool, typer.Option(" /--no-retrieval", help="Read no neighbours.", show_default=False)]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", help="Most tokens added to a prompt.")]
Temperature = Annotated[float, typer.Option("--temperature", help="0 takes the likeliest token; 1 draws as trained.")]
TopK = Annotated[int, typer.Option("--top-k", help="Draw from so many of the likeliest tokens; 0: all.")]
TopP = Annotated[float, typer.Option("--top-p", help="Draw from the likeliest tokens that have this mass.")]
RepetitionPenalty = Annotated[float, typer.Option("--repetition-penalty", help="Above 1: said tokens are less likely.")]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="Text that ends it; may be given several times.")]
IgnoreEnd = Annotated[bool, typer.Option("--ignore-end-of-text", help="Go on after an end of text.")]
Neighbours = Annotated[int | None, typer.Option("--neighbours", help="Chunks for a window. Default: as trained.")]
RetrievalStep = Annotated[
    int | None, typer.Option("--retrieval-step", help="Tokens between two retrievals. Default: the chunk length.")
]
Align = Annotated[
    bool, typer.Option(" /--no-align", help="Retrieve only once a whole chunk is known.", show_default=False)
]
Seed = Annotated[int, typer.Option("--seed", help="Prompt i draws from seed + i.")]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Most prompts computed together.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
ShowSources = Annotated[bool, typer.Option("--show-sources", help="List document, text and score of what was read.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object a prompt, sources included.")]


@only_results_on_stdout()
def generate(  # noqa: PLR0913  # a command's parameters are its options (docs/decisions/0042)
    folder: Folder,
    checkpoint: Checkpoint = None,
    prompt: Prompt = None,
    prompts_file: PromptsFile = None,
    database: Database = None,
    retrieval: Retrieval = True,
    max_new_tokens: MaxNewTokens = 128,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    stop: Stop = None,
    ignore_end_of_text: IgnoreEnd = False,
    neighbours: Neighbours = None,
    retrieval_step: RetrievalStep = None,
    align: Align = True,
    seed: Seed = 0,
    batch_size: BatchSize = 8,
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
        options = GenerationOptions(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            stop=tuple(stop or ()),
            stop_at_end_of_text=not ignore_end_of_text,
            num_neighbours=1 if neighbours is None else neighbours,
            retrieval_step=retrieval_step,
            align=align,
            seed=seed,
            batch_size=batch_size,
        )
        opened = open_language_model(
            folder, database=database, retrieval=retrieval, device=device, checkpoint=checkpoint
        )
        retriever = opened.database
        if retriever and neighbours and neighbours > len(retriever):
            raise UsageError(f"--neighbours: {neighbours} given; the database has {len(retriever):,} chunks.")
        options = replace(options, num_neighbours=neighbours or opened.origin.num_neighbours)
        texts, reading = [each.text for each in prompts], ReadingLines(say)
        pieces = stream(opened.model, opened.tokenizer, texts, retriever=retriever, options=options, reading=reading)
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
