"""Where the files of the tasks are looked for. The library comes without them."""

import os
from pathlib import Path

from retroflow.generation.arguments import unfit

VARIABLE = "RETROFLOW_TASK_DATA"
"""Environment variable that names the folder of the files, where no folder is given."""

_ENDINGS = ("", ".gz", ".zst")


def find_file(task: str, names: tuple[str, ...], lines: str, folder: Path | None) -> Path:
    """Find the file of a task: the first of its names, in the folder or one directly below it.

    Args:
        task: its name.
        names: of the file, without .gz or .zst; "lambada/test.jsonl" is a file in a folder of that name.
        lines: an example of a line, for the error.
        folder: None for the one that the environment names.

    Raises:
        ArgumentError: there is no such file.
    """
    if folder is None and os.environ.get(VARIABLE):
        folder = Path(os.environ[VARIABLE])
    wanted = f"{names[0]} (or .gz, .zst) with lines such as {lines}"
    if folder is None:
        raise unfit("task_data", f"is not given, and {VARIABLE} is not set; {task} needs a folder with {wanted}.")
    for name in names:
        for place in (folder, *sorted(path for path in folder.glob("*") if path.is_dir())):
            for ending in _ENDINGS:
                if (file := place / (name + ending)).is_file():
                    return file
    raise unfit("task_data", f'"{folder}" has no file of the task {task}; put {wanted} there.')
