import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from retroflow.cli import doctor, main
from retroflow.cli.main import run
from retroflow.errors import RankEnded

ROOT = Path(__file__).resolve().parents[2]
RECIPE = str(ROOT / "recipes" / "retro_small.yaml")
HEAVY = ("torch", "numpy", "lightning", "transformers", "tokenizers", "faiss", "scann", "wandb", "datasets")


def retroflow(*words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", "from retroflow.cli.main import main; main()", *words]
    environ = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | environment
    return subprocess.run(command, capture_output=True, text=True, env=environ, timeout=300, check=False)


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["fit", "--help"],
        ["generate", "--help"],
        ["--version"],
        ["recipe", "check", "--recipe", RECIPE],
        ["components"],
        ["runs", str(ROOT / "recipes")],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_looking_around_is_fast_and_loads_nothing_heavy(words: list[str]) -> None:
    program = (
        "import sys, time; started = time.process_time()\n"
        "from retroflow.cli.main import run; code = run(sys.argv[1:])\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "print(code, loaded, time.process_time() - started, file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, *words]
    # The processor's time, of one in three: other work on the machine is not what is measured.
    for _ in range(3):
        result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        code, *loaded, seconds = result.stderr.splitlines()[-1].split()
        assert code == "0"
        assert loaded == ["[]"]
        if float(seconds) < 0.5:
            break
    assert float(seconds) < 0.5


@pytest.mark.parametrize("given", [None, "0"])
def test_torch_is_asked_for_huge_pages_unless_the_user_says_otherwise(monkeypatch, given: str | None) -> None:
    seen: list[str] = []
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", given or "")
    if given is None:
        monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")
    monkeypatch.setattr(main, "ready_streams", lambda: None)
    monkeypatch.setattr(main, "run", lambda words: seen.append(os.environ["THP_MEM_ALLOC_ENABLE"]) or 0)
    monkeypatch.setattr(main, "end_within", seen.append)
    main.main()
    assert seen == [given or "1", 0]


def test_every_command_is_listed_and_has_a_sentence() -> None:
    listed = retroflow("--help").stdout
    for name in (
        "fit",
        "prepare",
        "evaluate",
        "compare",
        "curve",
        "recipe",
        "generate",
        "score",
        "export",
        "runs",
        "clean",
        "components",
        "--traceback",
    ):
        assert name in listed


def test_a_mistyped_command_offers_the_nearest() -> None:
    result = retroflow("fitt")
    assert result.returncode == 2
    assert result.stderr == "error: No such command 'fitt'. Did you mean 'fit'? Try: retroflow --help\n"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["fit"], 2, "error: Missing option '--recipe'. Write: --recipe FILE, or --resume RUN for the recipe of a run"),
        (["fit", RECIPE], 2, f"Write: --recipe {RECIPE}"),
        (["doctor", "--recipe", RECIPE], 2, "No such option: --recipe. Try: retroflow doctor --help"),
        (["fit", "--recipe", "nowhere.yaml"], 2, "error: There is no recipe at nowhere.yaml."),
        (["fit", "--recipe", RECIPE, "--trainer.max_steps", "5"], 2, "set without dashes: trainer.max_steps=5."),
        (["prepare", "--recipe", RECIPE, "trainer.max_stepz=5"], 2, 'Did you mean "max_steps"?'),
        (["recipe", "check", "--recipe", RECIPE, "retriever.name=fais"], 2, 'Did you mean "faiss"?'),
        (["recipe", "chek"], 2, "No such command 'chek'"),
        (["components", "x"], 2, "No such command 'x'. Try: retroflow components --help"),
    ],
)
def test_a_mistake_is_one_message_without_a_traceback(words: list[str], code: int, message: str) -> None:
    result = retroflow(*words)
    assert result.returncode == code
    assert result.stdout == ""
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("error: ")


def test_traceback_is_shown_on_request_wherever_the_flag_stands() -> None:
    for words in (["--traceback", "fit", "--recipe", "x.yaml"], ["fit", "--recipe", "x.yaml", "--traceback"]):
        result = retroflow(*words)
        assert result.returncode == 2
        assert "Traceback" in result.stderr
        assert result.stderr.splitlines()[-1].startswith("error: There is no recipe at x.yaml.")


def test_overrides_may_stand_before_and_after_options() -> None:
    result = retroflow("recipe", "show", "neighbours.k=4", "--json", "--recipe", RECIPE, "seed=7")
    shown = json.loads(result.stdout)
    assert shown["values"]["neighbours"]["k"] == 4
    assert shown["origins"]["seed"] == "command line"


def test_a_closed_pipe_is_silent() -> None:
    program = "import sys; sys.argv = ['retroflow', 'components']; from retroflow.cli.main import main; main()"
    command = f'{sys.executable} -c "{program}" | true'
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300, check=False)
    assert result.stderr == ""


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    shown = capsys.readouterr()
    assert "Usage: retroflow" in shown.out
    assert shown.err == ""


@pytest.mark.parametrize(("columns", "kept"), [("0", None), ("00", None), ("", None), ("60", "60")])
def test_tables_have_a_width_whatever_the_terminal_says(
    monkeypatch: pytest.MonkeyPatch, columns: str, kept: str | None
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert run(["--version"]) == 0
    assert os.environ.get("COLUMNS") == kept
    assert Console(file=io.StringIO()).width > 0


def test_no_color_is_honoured() -> None:
    result = retroflow("--help", NO_COLOR="1", FORCE_COLOR="1")
    assert "\x1b[3" not in result.stdout


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (SystemExit(0), 1, "the command was ended from inside (SystemExit: 0)"),
        (SystemExit(), 1, "the command was ended from inside"),
        (type("Odd", (BaseException,), {})("odd"), 1, "this is a bug"),
        (RankEnded(3), 3, ""),
        (KeyboardInterrupt(), 130, "error: interrupted.\n"),
    ],
    ids=repr,
)
def test_no_way_out_of_a_command_is_a_success(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def leave() -> None:
        raise error

    monkeypatch.setattr(doctor, "doctor", leave)
    assert run(["doctor"]) == code
    assert said in capsys.readouterr().err


def test_help_and_version_are_still_successes(capsys: pytest.CaptureFixture[str]) -> None:
    assert [run(words) for words in (["--help"], ["fit", "--help"], ["--version"])] == [0, 0, 0]
    assert capsys.readouterr().err == ""
