"""What a model takes and gives is told where it is defined: every public function, with the shape of every tensor."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.house.tree import files, parse, relative

ROOMS = ("retroflow/model", "retroflow/generation", "retroflow/pretrained")


def is_overload(function: ast.FunctionDef) -> bool:
    return any(ast.unparse(decorator) == "overload" for decorator in function.decorator_list)


def public_functions(path: Path) -> Iterator[ast.FunctionDef]:
    """Functions and members of classes that no leading underscore keeps for their own file."""
    scopes: list[ast.AST] = [parse(path)]
    while scopes:
        for node in ast.iter_child_nodes(scopes.pop()):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                scopes.append(node)
            elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and not is_overload(node):
                yield node


def all_public() -> list[tuple[str, ast.FunctionDef]]:
    return [
        (f"{relative(path)}:{function.lineno} {function.name}", function)
        for room in ROOMS
        for path in files(room, "*.py")
        for function in public_functions(path)
    ]


def test_every_public_function_has_a_docstring() -> None:
    assert len(all_public()) > 100
    assert not [place for place, function in all_public() if not ast.get_docstring(function)]


def test_tensors_have_shapes() -> None:
    def takes_tensors(function: ast.FunctionDef) -> bool:
        return "Tensor" in ast.unparse(function.args) + (ast.unparse(function.returns) if function.returns else "")

    assert not [
        place
        for place, function in all_public()
        if takes_tensors(function) and "[" not in (ast.get_docstring(function) or "")
    ]
