"""`retroflow chat`: write with a model at a terminal, and see what it read."""

import sys
from typing import Annotated

import typer

from retroflow.cli.flags import Checkpoint, Database, Device, Retrieval, Served
from retroflow.cli.streams import only_results_on_stdout


@only_results_on_stdout()
def chat(  # a command's parameters are its options (docs/decisions/0042)
    *,
    folder: Served,
    database: Database = None,
    retrieval: Retrieval = True,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Of an answer.")] = 256,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="0: the most likely tokens.")] = 0.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the drawn tokens.")] = 0,
    device: Device = "auto",
    checkpoint: Checkpoint = None,
) -> None:
    """Write with a model line by line: /off and /on switch retrieval, /new forgets what was said, /quit ends."""
    from retroflow.cli.streams import result_stream
    from retroflow.generation.prompts import telling_in_flags
    from retroflow.serving.conversation import Conversation
    from retroflow.serving.opening import open_served

    with telling_in_flags([]):
        opened = open_served(folder, database=database, retrieval=retrieval, device=device, checkpoint=checkpoint)
        options = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
        conversation = Conversation(opened, options)
    lines = iter(_prompted, None) if sys.stdin.isatty() else (line.rstrip("\n") for line in sys.stdin)
    conversation.run(lines, result_stream())


def _prompted() -> str | None:
    try:
        return input("> ")
    except EOFError:
        return None
