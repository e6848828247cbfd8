"""`retroflow evaluate --tasks`: our tasks on a run, with files of the user's."""

import json
import shutil

import pytest

from retroflow.testing.tiny_corpus import tiny_texts


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "qa").mkdir()
    facts = [fact for text in tiny_texts(12) for fact in text.splitlines()[1:4]]
    lines = [{"id": str(place), "text": fact} for place, fact in enumerate(facts)]
    (folder / "lambada.jsonl").write_text("\n".join(map(json.dumps, lines)))
    asked = [{"question": f"What keeps {fact.split()[0]}?", "answer": [fact.split()[4]]} for fact in facts[:5]]
    (folder / "qa" / "nq_open.dev.jsonl").write_text("\n".join(map(json.dumps, asked)))
    return folder


def test_tables_results_and_predictions(trained, data, retroflow, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    artifacts = trained.parents[2] / "tiny" / "artifacts"
    words = ("evaluate", run, "--tasks", "lambada,nq_open", "--task-data", data, "--limit", 5, f"database={artifacts}")
    code, out, err = retroflow(*words, "trainer.device=cpu", "neighbours.k=3")
    assert code == 0, err
    assert "lambada: 5 examples of 36, drawn at random" in out and "nq_open: 5 examples" in out
    assert "recall_at_3" in out
    files = sorted((run / "tasks").glob("*.json"))
    assert [file.name.split("-")[0] for file in files] == ["lambada", "nq_open"]
    assert all(str(file) in out.replace("\n", "") for file in files)
    result = json.loads(files[0].read_text())
    assert result["sample"] == {"examples": 5, "of": 36} and result["measured"]["num_neighbours"] == 3
    assert set(result["groups"]["all"]["ways"]) == {"off", "on", "random"}
    predictions = [json.loads(line) for line in files[0].with_suffix(".jsonl").read_text().splitlines()]
    share = sum(one["ways"]["on"]["correct"] for one in predictions) / 5
    assert result["groups"]["all"]["ways"]["on"]["accuracy"]["value"] == pytest.approx(share)
    code, out, err = retroflow(*words, "--json", "--output", tmp_path / "elsewhere")
    assert code == 0, err
    printed = [json.loads(line) for line in out.splitlines()]
    assert [one["task"] for one in printed] == ["lambada", "nq_open"]
    assert all((tmp_path / "elsewhere") in file.parents for file in (tmp_path / "elsewhere").glob("*"))


def test_an_exported_model_is_measured_without_a_database(trained, data, retroflow, tmp_path):
    assert retroflow("export", trained, tmp_path / "model")[0] == 0
    code, out, err = retroflow("evaluate", tmp_path / "model", "--tasks", "lambada", "--task-data", data, "--json")
    assert code == 0, err
    assert set(json.loads(out)["groups"]["all"]["ways"]) == {"off"} and json.loads(out)["file"] is None


def test_a_run_without_retrieval_is_measured_without_it(trained, data, retroflow, tmp_path):
    recipe = trained.parents[2] / "tiny.yaml"
    words = ("trainer.retrieval=false", "trainer.max_steps=1", f"trainer.runs_folder={tmp_path}")
    assert retroflow("fit", "--recipe", recipe, *words)[0] == 0
    words = ("--tasks", "lambada", "--task-data", data, "--limit", 3, "--json")
    code, out, err = retroflow("evaluate", tmp_path / "tiny" / "0001", *words)
    assert code == 0, err
    assert set(json.loads(out)["groups"]["all"]["ways"]) == {"off"}


def test_a_mistake_is_one_line(trained, data, retroflow, tmp_path, monkeypatch):
    monkeypatch.delenv("RETROFLOW_TASK_DATA", raising=False)
    task = ("--tasks", "xquad")
    for words, message in (
        (task, "--task-data is not given, and RETROFLOW_TASK_DATA is not set; xquad needs a folder with xquad.jsonl"),
        ((*task, "--task-data", data), f'--task-data: "{data}" has no file of the task xquad; put xquad.jsonl'),
        ((*task, "trainer.max_steps=3"), "trainer.max_steps=3: not an override of tasks; allowed: database="),
        ((*task, "neighbours.k=0"), "neighbours.k=0: not a whole number of at least 1"),
        (("--tasks", ","), "--tasks: names no task"),
        (("--limit", 3), "--limit: only tasks use it; add --tasks"),
    ):
        code, _, err = retroflow("evaluate", trained, *words)
        assert code == 2 and message in err and "Traceback" not in err, err


def test_tasks_of_others_need_their_library(trained, retroflow, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    code, _, err = retroflow("evaluate", trained, "--tasks", "lm_eval:nq_open")
    assert code == 4 and 'pip install "retroflow[lm-eval]"' in err
