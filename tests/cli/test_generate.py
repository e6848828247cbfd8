"""`retroflow generate` and `retroflow export`, end to end on a run of six steps."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from retroflow.cli.main import build_app, run
from retroflow.generation import GenerationOptions, RetrievalDatabase, generate
from retroflow.generation.exported import load_exported
from retroflow.model.retro import Retro
from retroflow.retrieval.checked import CheckedRetriever
from retroflow.runs.checkpoint_files import list_checkpoints
from tests.cli.conftest import write_recipe


@pytest.fixture(scope="module")
def exported(trained: Path) -> Path:
    folder = trained.parents[2] / "exported"
    assert run(["export", str(trained), str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def other_index(trained: Path, exported: Path) -> Path:
    """A database over other documents, made with the tokenizer of the model."""
    recipe = write_recipe(trained.parents[2], "other", seed=5)
    assert run(["prepare", "--recipe", str(recipe), f"data.tokenizer={exported}"]) == 0
    return next((trained.parents[2] / "other" / "artifacts").glob("index-*"))


def test_a_run_continues_a_prompt_with_its_own_database(retroflow, trained: Path) -> None:
    words = ("generate", trained, "--prompt", "Notes, part 7.", "--max-new-tokens", "20", "--ignore-end-of-text")
    code, text, notes = retroflow(*words)
    assert code == 0 and text.endswith("\n") and len(text) > 5 and notes == ""
    assert retroflow(*words)[1] == text
    code, same_text, sources = retroflow(*words, "--show-sources")
    assert (code, same_text) == (0, text)
    lines = sources.splitlines()
    assert lines[0].startswith("sources of prompt 1") and ", for: Notes" in lines[1]
    assert len([line for line in lines if ", notes/" in line and "tiny.jsonl:" in line]) == 2 * len(
        [line for line in lines if line.startswith("  after ")]
    )


@pytest.mark.parametrize("corpus", ["tiny", "other"])
def test_every_source_named_holds_the_text_shown(
    retroflow, trained: Path, exported: Path, other_index: Path, corpus: str
) -> None:
    model = [trained] if corpus == "tiny" else [exported, "--database", other_index]
    lines = (trained.parents[2] / corpus / "tiny.jsonl").open()
    documents = {f"tiny.jsonl:{i}": json.loads(line) for i, line in enumerate(lines, start=1)}
    words = ("--prompt", "Notes, part 3.", "--max-new-tokens", "60", "--neighbours", "6", "--ignore-end-of-text")
    code, out, _ = retroflow("generate", *model, *words, "--json")
    sources = [source for retrieval in json.loads(out)["retrievals"] for source in retrieval["sources"]]
    assert code == 0 and len({source["document"] for source in sources}) > 5
    for source in sources:
        document = documents[source["source"]]
        assert (source["document"], source["title"]) == (document["id"], document["meta"]["title"])
        assert source["text"] in document["text"]


def test_the_exported_model_says_the_same_as_the_run(
    retroflow, trained: Path, exported: Path, other_index: Path
) -> None:
    words = ("--prompt", "Notes", "--max-new-tokens", "24", "--database", other_index)
    run_answer, export_answer = (retroflow("generate", folder, *words) for folder in (trained, exported))
    assert run_answer == export_answer and run_answer[0] == 0
    assert f"database {other_index.name}; the model was trained with index-" in run_answer[2]
    words = ("--prompt", "Notes", "--no-retrieval", "--show-sources")
    off = [retroflow("generate", folder, *words) for folder in (trained, exported)]
    assert off[0] == off[1] and off[0][0] == 0 and off[0][2] == "no sources: nothing is retrieved\n"


def test_json_has_everything_and_follows_the_order_of_the_file(retroflow, trained: Path, tmp_path: Path) -> None:
    prompts = ["A much longer prompt than the others, which is read last", "b", "Notes"]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    words = ("--max-new-tokens", "9", "--temperature", "1", "--top-p", "0.9", "--seed", "3", "--batch-size", "2")
    code, out, _ = retroflow("generate", trained, "--prompts-file", file, *words, "--json", "--ignore-end-of-text")
    answers = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [answer["prompt"] for answer in answers] == prompts
    assert all(len(answer["tokens"]) == 9 and answer["retrievals"] for answer in answers)
    assert all(len(retrieval["sources"]) == 2 for answer in answers for retrieval in answer["retrievals"])
    for number, prompt in enumerate(prompts):
        alone = retroflow(
            "generate", trained, "--prompt", prompt, *words[:-3], 3 + number, "--ignore-end-of-text", "--json"
        )
        assert json.loads(alone[1])["tokens"] == answers[number]["tokens"]
    _, text, _ = retroflow("generate", trained, "--prompts-file", file, *words, "--ignore-end-of-text")
    assert text == "".join(answer["text"] + "\n" for answer in answers)


def test_what_a_retriever_prints_is_not_part_of_the_text(
    retroflow, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = CheckedRetriever.search

    def search(self: CheckedRetriever, queries: object, k: int) -> object:
        print("a plugin says hello")
        return original(self, queries, k)

    monkeypatch.setattr(CheckedRetriever, "search", search)
    code, out, err = retroflow("generate", trained, "--prompt", "in the", "--max-new-tokens", 4, "--json")
    assert code == 0 and json.loads(out)["prompt"] == "in the"
    assert "a plugin says hello\n" in err


def test_prompts_given_one_by_one_from_standard_input_and_through_a_pipe_are_one_and_the_same(
    retroflow, trained: Path, tmp_path: Path, monkeypatch
) -> None:
    words = ("--max-new-tokens", "9", "--json", "--ignore-end-of-text")
    lines = b'{"prompt": "Notes"}\n{"prompt": "keeps"}\n'
    given = retroflow("generate", trained, "--prompt", "Notes", "--prompt", "keeps", *words)
    assert given[0] == 0 and [json.loads(line)["prompt"] for line in given[1].splitlines()] == ["Notes", "keeps"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    assert retroflow("generate", trained, "--prompts-file", "-", *words) == given
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"keeps\n")))
    assert retroflow("generate", trained, "--prompt", "Notes", "--prompt", "-", *words) == given
    reading, writing = os.pipe()  # what a shell makes of <(cat prompts.jsonl)
    os.write(writing, lines)
    os.close(writing)
    assert retroflow("generate", trained, "--prompts-file", f"/dev/fd/{reading}", *words) == given
    os.close(reading)


def test_a_prompt_much_longer_than_those_of_training_is_noted_for_run_and_export(
    retroflow, trained: Path, exported: Path, tmp_path: Path
) -> None:
    (tmp_path / "long.txt").write_text("notes keep " * 200 + "\nNotes\n")
    words = ("--prompts-file", tmp_path / "long.txt", "--max-new-tokens", "2", "--no-retrieval")
    for folder in (trained, exported):
        code, _, notes = retroflow("generate", folder, *words)
        assert code == 0 and notes.startswith(f"{tmp_path / 'long.txt'}:1: ") and len(notes.splitlines()) == 1
        assert "times the 32 of a training sequence" in notes


def test_retrieval_step_neighbours_stop_and_align_reach_the_model(retroflow, trained: Path) -> None:
    def answer(*words):
        code, out, _ = retroflow(
            "generate", trained, "--prompt", "No", "--max-new-tokens", "12", "--ignore-end-of-text", "--json", *words
        )
        assert code == 0
        return json.loads(out)

    plain = answer()
    ends = [retrieval["end"] for retrieval in plain["retrievals"]]
    length = ends[0]
    assert ends == list(range(length, length + 12, 8)) and plain["finish_reason"] == "length"
    assert [r["end"] for r in answer("--retrieval-step", "3")["retrievals"]] == list(range(length, length + 12, 3))
    assert answer("--no-align")["retrievals"][0]["end"] == 8
    assert {len(r["sources"]) for r in answer("--neighbours", "3")["retrievals"]} == {3}
    letter = plain["text"].strip()[2]
    stopped = answer("--stop", letter, "--stop", "no such text")
    assert stopped["finish_reason"] == "stop" and stopped["text"] == plain["text"][: plain["text"].index(letter)]


def test_of_a_damaged_run_an_earlier_checkpoint_is_taken_when_it_is_asked_for(
    retroflow, trained: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "runs" / "tiny" / "0001"
    shutil.copytree(trained, copy)
    newest, before = list_checkpoints(copy / "checkpoints")
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    code, out, notes = retroflow("export", copy, tmp_path / "out")
    assert code == 3 and out == "" and "take one before it: --checkpoint 3" in notes and not (tmp_path / "out").exists()
    code, out, notes = retroflow("export", copy, tmp_path / "out", "--checkpoint", "3")
    assert (code, out, notes) == (0, f"{tmp_path / 'out'}: tiny, step 3\n", "")
    before.write_bytes(b"")
    code, _, notes = retroflow("generate", copy, "--prompt", "a")
    assert code == 3 and "no other one is intact" in notes


def test_the_losses_of_a_changed_report_are_not_exported(retroflow, trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "runs" / "tiny" / "0001"
    shutil.copytree(trained, copy)
    report = (copy / "report.json").read_text()
    (copy / "report.json").write_text(report.replace('"loss": 5.', '"loss": 4.'))
    licence = ("--license", "Acme 1", "--license-link", "LICENSE", "--database-license", "cc-by-4.0")
    code, _, notes = retroflow("export", copy, tmp_path / "out", *licence)
    assert code == 0 and "report.json" in notes and "The exported README has no losses" in notes
    assert 'licence "Acme 1": not one that the hub knows' in notes
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "nats/token" not in readme and "license_name: acme-1\nlicense_link: LICENSE" in readme
    code, _, notes = retroflow("export", copy, tmp_path / "never", "--base-model", "org/base")
    assert code == 2 and 'base_model: "org/base" given for a model that has no base' in notes


def test_the_exported_folder_is_whole_and_says_what_it_is(trained: Path, exported: Path) -> None:
    names = {path.name for path in exported.iterdir()}
    assert names == {
        "README.md", "SHA256SUMS", "config.json", "generation_config.json", "model.safetensors", "retroflow.json", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    if sys.platform == "linux":
        subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=exported, check=True, timeout=60)
    described = json.loads((exported / "retroflow.json").read_text())
    assert described["recipe"] == "tiny" and described["step"] == 6 and described["num_neighbours"] == 2
    readme = (exported / "README.md").read_text()
    assert all(f"`{kind}-{value}`" in readme for kind, value in described["fingerprints"].items())
    report = json.loads((trained / "report.json").read_text())
    assert f"| on | {report['validation']['on']['loss']:.4f} |" in readme
    assert str(trained.parents[2]) not in readme + json.dumps(described)  # no path of the machine


def test_python_reads_the_folder_too(exported: Path, other_index: Path) -> None:
    opened = load_exported(exported)
    database = RetrievalDatabase.open(
        other_index, tokenizer=opened.tokenizer, chunk_length=opened.model.config.chunk_length
    )
    options = GenerationOptions(max_new_tokens=5, stop_at_end_of_text=False)
    answers = generate(opened.model, opened.tokenizer, ["Notes", "part"], retriever=database, options=options)
    assert [len(answer.tokens) for answer in answers] == [5, 5] and len(answers[0].sources) == 2
    weights = Retro.from_pretrained(exported).state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in opened.model.state_dict().items())


def test_nothing_waits_for_lightning_and_no_terminal_s_encoding_matters(trained: Path) -> None:
    program = (
        "import sys; from retroflow.cli.main import run; code = run(sys.argv[1:])\n"
        "import retroflow.runs.trained_model\n"
        "sys.exit(code or 'lightning' in sys.modules)"
    )
    words = ["generate", str(trained), "--prompt", "é", "--no-retrieval", "--max-new-tokens", "4"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LC_")} | {"LANG": "C"}
    result = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, env=environment, timeout=120)
    assert result.returncode == 0, result.stderr
    result.stdout.decode()


def test_every_option_is_on_the_page_and_no_other() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "generation.md").read_text(encoding="utf-8")
    table = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `--")]
    documented = {option for cell in table for option in re.findall(r"--[a-z-]+", cell)}
    application: Any = typer.main.get_command(build_app(["generate"]))
    named = {
        word for option in application.commands["generate"].params for word in (*option.opts, *option.secondary_opts)
    }
    assert documented == {word for word in named if word.startswith("--")} - {"--help"}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["{run}"], 2, "is not given; give either --prompt or --prompts-file"),
        (["{run}", "--prompt", "a", "--prompts-file", "b"], 2, "is given twice; give either --prompt or"),
        (["{run}", "--prompt", ""], 2, "error: --prompt: '' has no token; give at least one"),
        (["{run}", "--prompt", "a", "--prompt", ""], 2, "error: --prompt (number 2): '' has no token"),
        (
            ["{run}", "--prompt", "a", "--max-new-tokens", "0"],
            2,
            "error: --max-new-tokens is 0; allowed: a whole number of at least 1.",
        ),
        (["nowhere", "--prompt", "a"], 2, 'there is no folder "nowhere"; give a run folder'),
        (["{run}/checkpoints", "--prompt", "a"], 2, "not a run folder (it has no run.json); did you mean {run}?"),
        (["{exported}", "--prompt", "a", "--checkpoint", "6"], 2, "is an exported model, which has only one"),
        (["{run}", "--prompt", "a", "--database", "nowhere"], 2, 'there is no folder "nowhere"'),
        (["{run}", "--prompt", "a", "--database", "{run}", "--no-retrieval"], 2, "leave one of them out"),
        (["{exported}", "--prompt", "a"], 2, "an exported model has no database of its own"),
        (["{run}", "--prompt", "a", "--top-k", "3"], 2, "error: --top-k is 3; it has no effect at temperature 0"),
        (
            ["{run}", "--prompt", "a", "--retrieval-step", "9"],
            2,
            "error: --retrieval-step is 9; allowed: a whole number from 1 to 8",
        ),
        (["{run}", "--prompt", "a", "--neighbours", "0"], 2, "error: --neighbours is 0; allowed"),
        (
            ["{run}", "--prompt", "a", "--neighbours", "100000000"],
            2,
            "error: --neighbours is 100000000; allowed: 1 to ",
        ),
        (["{run}", "--prompt", "a", "--device", "tpu"], 2, '--device is "tpu"; allowed: "auto", "cpu" or "cuda".'),
        (["{run}", "--prompt", "a", "--tempreature", "1"], 2, "No such option"),
    ],
)
def test_a_mistake_is_one_message(retroflow, trained: Path, exported: Path, words, code, message) -> None:
    given = [word.format(run=trained, exported=exported) for word in words]
    found, out, err = retroflow("generate", *given)
    message = message.format(run=trained)
    assert found == code and out == "" and message in err and err.startswith("error: ") and "Traceback" not in err


def test_a_database_made_with_another_tokenizer_is_refused(retroflow, trained: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "foreign", seed=9)
    assert retroflow("prepare", "--recipe", recipe)[0] == 0
    code, _, err = retroflow("generate", trained, "--prompt", "a", "--database", tmp_path / "foreign" / "artifacts")
    assert (
        code == 2
        and "made with another tokenizer" in err
        and "retroflow prepare --recipe YOUR_RECIPE data.tokenizer=" in err
    )


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["{run}", "{exported}"], 2, "is not empty; give a new or an empty folder"),
        (["{exported}", "new"], 2, "an exported model, not a run folder; give the folder that fit printed."),
        (["nowhere", "new"], 2, "not a run folder"),
    ],
)
def test_what_cannot_be_exported_is_told_and_leaves_nothing(
    retroflow, trained, exported, tmp_path, monkeypatch, words, code, message
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [word.format(run=trained, exported=exported) for word in words]
    found, out, err = retroflow("export", *given)
    assert found == code and out == "" and message in err
    assert list(tmp_path.iterdir()) == []


def test_a_changed_tokenizer_is_refused(retroflow, exported: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    (copy / "tokenizer.json").write_bytes((copy / "tokenizer.json").read_bytes().replace(b"a", b"q", 1))
    assert "tokenizer.json" in retroflow("generate", copy, "--prompt", "a", "--no-retrieval")[2]
    (copy / "SHA256SUMS").unlink()
    shutil.copy(exported / "tokenizer.json", copy)
    config = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "a"}))
    code, _, err = retroflow("generate", copy, "--prompt", "a", "--no-retrieval")
    assert code == 3 and "its tokenizer has the fingerprint" in err
    (copy / "retroflow.json").unlink()
    code, _, err = retroflow("generate", copy, "--prompt", "a", "--no-retrieval")
    assert code == 2 and "it has weights and no tokenizer" in err
