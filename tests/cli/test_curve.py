"""`retroflow curve` prints a table or JSON, names its files, and speaks in flags."""

import json
import shutil

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_curve_is_printed_and_written(retroflow, trained, tmp_path) -> None:
    run = shutil.copytree(trained.parents[2], tmp_path / "copy") / trained.relative_to(trained.parents[2])
    words = ("curve", run, "--over", "k", "--values", "1,2", "--sequences", "4")
    code, out, _ = retroflow(*words)
    assert code == 0 and "nats per token over k (neighbours)" in out and out.endswith("curves/k.json\n")
    assert "Overlap: " in out
    code, out, _ = retroflow(*words, "--json")
    assert code == 0 and [point["label"] for point in json.loads(out)["points"]] == ["1", "2"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("runs/a", "--over", "kk"), "error: --over kk: there is no such curve."),
        (
            ("runs/a", "runs/b", "--over", "k"),
            "error: --over k: 2 models given; give one. Runs go with --over train",
        ),
        (
            ("runs/a", "k=v", "--over", "training", "--values", "1", "--database", "db", "--corpus", "c"),
            "error: --over training reads what the runs logged; leave out --values, --database, --corpus, k=v.",
        ),
        (
            ("runs/a", "--over", "training", "--sequences", "100", "--checkpoint", "3"),
            "error: --over training reads what the runs logged; leave out --checkpoint, --sequences.",
        ),
    ],
)
def test_wrong_words_are_refused_in_flags(retroflow, words, message) -> None:
    code, out, err = retroflow("curve", *words)
    assert code == 2 and out == "" and err.startswith(message), err
