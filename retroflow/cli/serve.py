"""`retroflow serve`: answer requests with a trained model, in the shapes of OpenAI's API."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from retroflow.cli.flags import Checkpoint, Database, Device, Retrieval, Served, with_flags
from retroflow.errors import MissingExtraError

Neighbours = Annotated[
    int | None, typer.Option("--neighbours", min=1, help="Chunks retrieved per window. Default: as trained.")
]
Step = Annotated[
    int | None, typer.Option("--retrieval-step", min=1, help="Tokens between two retrievals. Default: as evaluated.")
]


@with_flags("retroflow.serving.options:ServerOptions")
def serve(  # noqa: PLR0913  # a command's parameters are its options (docs/decisions/0042)
    *,
    folder: Served,
    database: Database = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free.")] = 8000,
    name: Annotated[str | None, typer.Option("--name", help="Of the model in answers. Default: the recipe's.")] = None,
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", help="File with the key that clients send. Or: RETROFLOW_API_KEY.")
    ] = None,
    write_key_file: Annotated[
        Path | None,
        typer.Option(
            "--write-key-file", help="File with the key that may change the database. Or: RETROFLOW_WRITE_KEY."
        ),
    ] = None,
    without_key: Annotated[bool, typer.Option("--without-key", help="Let other machines in without a key.")] = False,
    options: Mapping[str, Any],
    checkpoint: Checkpoint = None,
    retrieval: Retrieval = True,
    neighbours: Neighbours = None,
    retrieval_step: Step = None,
    device: Device = "auto",
) -> None:
    """Serve a model: OpenAI's completions and chat with sources, the database, metrics and a page (docs/serving.md)."""
    from retroflow.generation.prompts import telling_in_flags
    from retroflow.serving.opening import open_served
    from retroflow.serving.options import Keys, ServerOptions, check_host, read_key

    keys = Keys(
        read_key(api_key_file, "RETROFLOW_API_KEY", os.environ, "--api-key-file"),
        read_key(write_key_file, "RETROFLOW_WRITE_KEY", os.environ, "--write-key-file"),
    )
    check_host(host, keys, without_key=without_key)
    try:
        from retroflow.serving.server import serve as serve_model
        from retroflow.serving.service import Service
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f'serve: needs {error.name}, which is not installed. Install it with: pip install "retroflow[serve]"'
        ) from error
    with telling_in_flags([]):
        limits = ServerOptions(**options)
        opened = open_served(folder, database=database, retrieval=retrieval, device=device, checkpoint=checkpoint)
        service = Service(
            opened,
            name=name or opened.origin.recipe,
            options=limits,
            keys=keys,
            num_neighbours=neighbours,
            retrieval_step=retrieval_step,
        )
    serve_model(service, host=host, port=port, without_key=without_key)
