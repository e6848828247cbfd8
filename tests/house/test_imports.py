"""What importing may cost and where a name may be compared. import-linter holds the rooms apart (pyproject.toml)."""

import ast
import subprocess
import sys

from tests.house.tree import files, library, parse, relative

BACKENDS = {"exact", "faiss", "scann", "hnsw", "bm25", "usearch", "hybrid", "rerank"}
LIGHT = {
    "typer",
    "retroflow.cli.console",
    "retroflow.cli.flags",
    "retroflow.cli.streams",
    "retroflow.console",
    "retroflow.distributions",
    "retroflow.errors",
    "retroflow.version",
}


def test_importing_retroflow_is_fast_and_loads_nothing_heavy() -> None:
    program = (
        "import time; started = time.process_time(); import retroflow; took = time.process_time() - started\n"
        "import sys; print(took, [name for name in ('torch', 'numpy', 'omegaconf', 'transformers', 'typer') if name in sys.modules])"
    )
    results = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True).stdout
        for _ in range(3)
    ]
    assert results[0].split()[1:] == ["[]"]
    assert min(float(result.split()[0]) for result in results) < 0.3


def test_the_model_loads_torch_and_nothing_of_ours_but_options_protocols_and_errors() -> None:
    program = (
        "import sys; import retroflow.model.retro\n"
        "rooms = {name.split('.')[1] for name in sys.modules if name.startswith('retroflow.')}\n"
        "print(sorted(rooms), [name for name in ('lightning', 'omegaconf', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert result.stdout.strip() == "['errors', 'integrations', 'model', 'options', 'protocols', 'version'] []"


def test_no_code_asks_which_backend_it_has() -> None:
    """Capabilities say what a retriever can do; its name is known to its own file and to the table of names."""
    asked = [
        f"{relative(path)}:{node.lineno}"
        for path in library()
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Compare)
        for operand in (node.left, *node.comparators)
        if isinstance(operand, ast.Constant) and operand.value in BACKENDS
    ]
    assert not asked


def test_a_missing_library_is_not_hidden() -> None:
    """`try: import x except ImportError: x = None` turns a clear message into a strange one later."""
    hidden = [
        f"{relative(path)}:{node.lineno}"
        for path in files("retroflow", "*.py")
        for node in parse(path).body
        if isinstance(node, ast.Try)
        for inner in ast.walk(node)
        if isinstance(inner, ast.Import | ast.ImportFrom)
    ]
    assert not hidden


def test_command_files_load_rooms_inside_functions() -> None:
    eager = [
        f"{relative(path)}:{node.lineno}: {name}"
        for path in files("retroflow/cli", "*.py")
        for node in parse(path).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
        if name not in LIGHT and name.partition(".")[0] not in sys.stdlib_module_names
    ]
    assert not eager
