"""Limits of size. To exceed one, write a decision page and name it in EXCEPTIONS."""

import ast

from tests.house.tree import files, functions, library, parse, relative

MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 400
MAX_PARAMETERS = 8

# file or file::function -> decision page
EXCEPTIONS: dict[str, str] = {}


def test_files_are_short() -> None:
    lengths = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in library()}
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_FILE_LINES and name not in EXCEPTIONS}


def test_functions_are_short() -> None:
    lengths = {
        f"{relative(path)}::{node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for path in library()
        for node in functions(path)
    }
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES and name not in EXCEPTIONS}


def test_functions_take_few_parameters() -> None:
    """Constructors are not counted, nor are commands: a component's and a command's parameters are its options."""
    counts = {}
    for path in library():
        for node in functions(path):
            arguments = node.args
            names = {one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
            counts[f"{relative(path)}::{node.name}"] = len(names - {"self", "cls"})
    options = {name for name in counts if name.endswith("::__init__")}
    options |= {f"{relative(path)}::{path.stem}" for path in files("retroflow/cli", "*.py")}  # decision 0042
    options |= {"retroflow/integrations/transformers_model.py::forward"}  # transformers' own (decision 0080)
    assert not {name: count for name, count in counts.items() if count > MAX_PARAMETERS and name not in options}


def test_public_signatures_are_written_out() -> None:
    """`**kwargs` hides options from readers and from recipe checks, unless a TypedDict names them.

    Derived values of `create` have no fixed names, nor have the options of a component that is asked for by name.
    """
    allowed = {"retroflow/components.py::create", "retroflow/api.py::retriever", "retroflow/api.py::embedder"}
    hidden = {
        f"{relative(path)}::{node.name}"
        for path in library()
        for node in functions(path)
        if node.args.kwarg is not None
        and not ast.unparse(node.args.kwarg).partition(": ")[2].startswith("Unpack[")
        and not (node.name.startswith("_") and node.name != "__init__")
    }
    assert hidden <= allowed


def test_modules_say_what_they_are_for() -> None:
    silent = [relative(path) for path in library() if parse(path).body and not ast.get_docstring(parse(path))]
    assert not silent, "a file starts with what it is and why"
