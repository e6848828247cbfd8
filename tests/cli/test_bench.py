"""`retroflow bench` prints tables or JSON, speaks in flags, and judges an index by a model."""

import json
import shutil

import pytest

from retroflow.benchmarking import worker

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    monkeypatch.setattr(worker, "run", lambda job, *, threads, doing: worker.do(job))


def test_the_loss_at_each_setting_is_that_of_the_curve(retroflow, trained, tmp_path) -> None:
    pytest.importorskip("hnswlib")
    run = shutil.copytree(trained.parents[2], tmp_path / "copy") / trained.relative_to(trained.parents[2])
    quick = ("--queries", "20", "--k", "5", "--seconds", "0.05", "--sequences", "4", "--output", tmp_path / "b")
    words = ("bench", "--model", run, "--retriever", "hnsw:search.ef=10,hnsw:search.ef=16", *quick)
    code, out, err = retroflow(*words)
    assert code == 0 and "recall@k" in out and out.endswith(f"benchmark: {tmp_path / 'b'}\n")
    assert err.count("building hnsw (retroflow") == 1  # one index for both searches of the model
    stored = json.loads((tmp_path / "b" / "bench.json").read_text())["losses"]
    labels = ["exact", "hnsw:search.ef=10", "hnsw:search.ef=16", "random"]
    assert [point["label"] for point in stored["points"]] == labels
    assert stored["points"][0]["recall"] == 1.0 and stored["points"][-1]["recall"] < 0.2
    assert "## Losses" in (tmp_path / "b" / "bench.md").read_text()
    words = ("curve", run, "--over", "retriever", "--values", ",".join(labels), "--sequences", "4", "--json")
    code, out, _ = retroflow(*words)
    assert code == 0 and [point["on"] for point in json.loads(out)["points"]] == [p["on"] for p in stored["points"]]
    words = ("bench", "--model", run, "--retriever", "exact", "--sequences", "few", "--output", tmp_path / "c")
    code, _, err = retroflow(*words)
    assert code == 2 and "few" in err and not (tmp_path / "c").exists()  # nothing is measured before
    if (tmp_path / "b" / "bench.svg").exists():
        assert (tmp_path / "b" / "loss.svg").exists()


def test_what_is_chosen_is_printed_and_as_json(retroflow) -> None:
    code, out, _ = retroflow("bench", "--explain", "--random", "5000,32")
    assert code == 0 and "* chosen: exact. Bytes are estimates." in out
    code, out, _ = retroflow("bench", "--explain", "--random", "5000,32", "--memory-limit", "1GiB", "--json")
    assert code == 0 and json.loads(out)["memory"] == 1 << 30


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--retriever", "hnws"),
            "error: no vectors given; give one of --vectors FILE, --database DB and --random N,D.",
        ),
        (("--random", "9,4", "--retriever", "exakt"), "error: --retriever exakt: there is no such retriever."),
        (("--random", "9"), "error: --random 9: give the number of vectors and their width, such as 20000,384."),
        (("--vectors", "no.npy"), "there is no such file."),
        (
            ("--random", "100000,384", "--retriever", "exact", "--memory-limit", "1MiB"),
            "give a higher --memory-limit 8GiB, or see `retroflow bench --explain`.",
        ),
        (("--random", "9,4", "--queries", "0"), "error: --queries is 0; allowed: a whole number of at least 1."),
        (("--random", "9,4", "--seconds", "0"), "error: --seconds is 0"),
        (("--random", "9,4", "--memory-limit", "much"), "error: --memory-limit much: give a size such as 8GiB"),
        (("--random", "9,4", "--retriever", "exact:search.blok_rows=1"), "search.blok_rows is not a known key."),
    ],
)
def test_wrong_words_are_refused_in_flags(retroflow, tmp_path, monkeypatch, words, message) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = retroflow("bench", *words)
    assert code == 2 and out == "" and message in err, err
    assert not list(tmp_path.iterdir())
