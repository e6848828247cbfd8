"""The page in a browser: it says what the JSON says, loads nothing, and runs nothing that a document holds."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import retroflow as rf
from retroflow.cli.main import run as command
from retroflow.model.retro import Retro
from retroflow.pictures.page import island, render, write_page
from tests.pictures.conftest import ATTACK


@pytest.fixture(scope="module")
def page_file(attacked, tmp_path_factory) -> Path:
    """The page of the attacked run, in a folder of its own."""
    made = tmp_path_factory.mktemp("made") / "report.html"
    assert command(["report", str(attacked), "--output", str(made), "--chunks", "6", "--sequences", "4"]) == 0
    return Path(shutil.move(made, tmp_path_factory.mktemp("elsewhere") / "moved.html"))


@pytest.fixture(scope="module")
def values(page_file) -> dict:
    text = page_file.read_text(encoding="utf-8")
    assert text.isascii()
    return json.loads(text.partition('<script type="application/json" id="data">')[2].partition("</script>")[0])


def test_it_loads_nothing_and_runs_nothing_but_its_own_script(page_file, values, show) -> None:
    page, seen = show(page_file)
    assert seen == []
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.scripts.length") == 2 and page.locator("img, link, iframe, b[onload]").count() == 0
    policy = page.locator("meta[http-equiv]").get_attribute("content")
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "onerror=window.hacked=3" in page.locator("h1").text_content() == values["title"]
    assert ATTACK in page.locator("#detail h3").first.text_content()
    controls = set(page.locator("#detail h3 .control").all_text_contents())
    assert controls == {"U+202E", "U+2028", "U+200B"}
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hacked=5'}))"
    )
    assert page.evaluate("window.hacked") is None and len(seen) == 1  # the policy refuses it, and says so


def test_it_says_what_the_files_say(page_file, values, attacked, show) -> None:
    page, _ = show(page_file)
    report = json.loads((attacked / "report.json").read_text())
    comparison = json.loads(next(attacked.glob("comparisons/*/comparison.json")).read_text())
    assert values["report"]["validation"] == report["validation"] and values["comparison"] == comparison

    def cell(table: str, row: str, key: str) -> str:
        return page.locator(f"#table-{table} tr[data-row='{row}'] td[data-key='{key}']").last.text_content()

    for mode, measure in report["validation"].items():
        assert cell("validation", mode, "nats") == f"{measure['loss']:.4f}"
        assert cell("validation", mode, "bits_per_byte") == f"{measure['bits_per_byte']:.4f}"
    for row in comparison["rows"]:
        assert cell("comparison", row["name"], "nats") == f"{row['nats']:.4f}"
        meaning = page.locator(f"#table-comparison tr[data-row='{row['name']}'] small").text_content()
        assert row["meaning"] in meaning and (row["neighbours"] in meaning or row["name"] == "off")
        if row["gain_interval"]:
            low, high = row["gain_interval"]
            assert cell("comparison", row["name"], "gain_interval") == f"{_signed(low)} to {_signed(high)}"
            assert page.locator(f"#table-comparison tr[data-row='{row['name']}'] svg path.whisker").count() == 1
    shown = page.locator("#verdict").text_content()
    for sentence in (
        values["verdict"]["sentence"],
        values["verdict"]["overlap"],
        *comparison["findings"],
        *report["findings"],
        "Of the comparison",
        "Of the validation",
    ):
        assert sentence in shown
    assert page.locator("#verdict .alarm").count() == len(values["verdict"]["warnings"]) > 0
    for breakdown in values["breakdowns"]:
        assert page.locator(f"#table-{breakdown['name']} tbody tr").count() == len(breakdown["rows"]) > 0
    of_rows = next(breakdown for breakdown in values["breakdowns"] if breakdown["name"] == "position")
    with np.load(next(attacked.glob("comparisons/*/rows/on.npz"))) as row:
        nats = row["token_nats"][:, 7:]  # position 7 of chunks of 8 predicts the first token of the second chunk
    assert "the 4 sequences of the comparison" in of_rows["note"]
    summed = sum(one["on"] * one["tokens"] for one in of_rows["rows"])
    assert summed == pytest.approx(nats[:, :-1].sum(), rel=1e-4)
    for label, text in values["facts"]:
        assert label in page.locator("#facts").text_content() and text in page.locator("#facts").text_content()


def _signed(value: float) -> str:
    return f"{value:+.3f}" if round(value, 3) else "0.000"


def test_every_measured_curve_is_drawn_with_its_numbers(page_file, show) -> None:
    page, _ = show(page_file)
    card = page.locator("#curve-retriever")
    assert card.locator("svg.chart").count() == 2  # losses and gains
    assert card.locator("svg .error").count() == 3 and card.locator("svg circle").count() == 6
    card.locator("summary").click()
    assert card.locator("tr[data-row='<b>bm25</b>'] td").all_text_contents() == [
        "4.7500 (4.700 to 4.800)",
        "5.0000",
        "0.2500",
        "0.500",
    ]
    assert page.locator("#curve-training svg path.curve").count() >= 1


def test_a_chunk_is_inspected(page_file, values, show) -> None:
    page, seen = show(page_file)
    entries = values["inspector"]["entries"]
    assert page.locator("#chunks .choice").count() == len(entries) == 6
    assert {entry["why"] for entry in entries} == {"best", "random", "worst"}
    page.locator("#chunks .choice").nth(1).click()
    assert page.locator("#chunks .choice").nth(1).get_attribute("aria-selected") == "true"
    chunk = page.locator("#chunks .choice").nth(1)
    place = int(chunk.get_attribute("data-sequence")), int(chunk.get_attribute("data-chunk"))
    entry = next(entry for entry in entries if (entry["sequence"], entry["chunk"]) == place)
    assert page.locator("#tokens .token").count() == len(entry["tokens"])
    assert page.locator(".neighbour").count() == len(entry["neighbours"]) == 2
    assert (
        page.locator(".neighbour .shared").count()
        == sum(
            len({place for _, first, length in neighbour["runs"] for place in range(first, first + length)})
            for neighbour in entry["neighbours"]
        )
        > 0
    )
    page.locator("#tokens .token").nth(2).hover()
    said = page.locator("#readout").text_content()
    assert f"{entry['on'][2]:.3f} nats with retrieval, {entry['off'][2]:.3f} without" in said and "neighbour" in said
    assert page.locator(".neighbour .attended").count() == len(entry["attention"][2][1]) > 0
    page.locator(".neighbour .shared").first.hover()
    assert page.locator(".paired").count() >= values["inspector"]["least_run"]
    page.get_by_label("loss with retrieval", exact=True).check()
    assert page.locator("#tokens .tint-loss").count() == len(entry["tokens"])
    assert seen == []


def test_chunks_are_found_by_words_and_put_in_order(page_file, values, show) -> None:
    page, _ = show(page_file)
    gains = sorted((entry["gain"] for entry in values["inspector"]["entries"]), reverse=True)
    assert [float(text) for text in page.locator("#chunks .worth").all_text_contents()] == [
        round(gain, 2) for gain in gains
    ]
    page.locator("#order").select_option("worst")
    assert float(page.locator("#chunks .worth").first.text_content()) == round(gains[-1], 2)
    page.locator("#search").fill("no such words")
    assert page.locator("#chunks .choice").count() == 0 and "No chunk" in page.locator("#chunks").text_content()
    page.locator("#search").fill("ONERROR")
    assert page.locator("#chunks .choice").count() == 6


def test_it_can_be_used_with_the_keyboard(page_file, show) -> None:
    page, _ = show(page_file)
    page.locator("#order").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("[...document.querySelectorAll('.choice')].indexOf(document.activeElement)") == 1
    assert page.locator(".choice[aria-selected=true]").count() == 1
    page.locator("#tokens .token").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.place") == "1"
    assert "nats with retrieval" in page.locator("#readout").text_content()
    page.keyboard.press("End")
    assert page.locator("#tokens .token").last.get_attribute("aria-selected") == "true"


@pytest.mark.parametrize("width", [360, 820])
def test_it_fits_a_phone(page_file, show, width) -> None:
    page, _ = show(page_file, width=width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_a_table_with_all_columns_fits(values, tmp_path, show) -> None:
    columns = {"recovered": 1.35, "recovered_interval": [1.157, 12.87], "computation_per_token": 1700.1, "memory": 9e9}
    rows = [
        row | columns | {"word_perplexity": 3e7, "sequences": place}
        for place, row in enumerate(values["tables"][0]["rows"])
    ]
    tables = [values["tables"][0] | {"rows": rows}, *values["tables"][1:]]
    write_page(values | {"tables": tables}, tmp_path / "page.html")
    page, _ = show(tmp_path / "page.html")
    for width in (360, 500, 700, 1050, 1120, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") == width
    page.set_viewport_size({"width": 500, "height": 900})
    bar = page.locator("#table-comparison tr[data-row='on'] .bar svg").bounding_box()
    assert bar["width"] > 300  # and not a share of what a cell of many has


@pytest.mark.parametrize("width", [360, 820, 1400])
def test_the_box_with_a_token_s_numbers_covers_no_title(page_file, show, width) -> None:
    page, _ = show(page_file, width=width)
    page.locator("#tokens .token").first.hover()
    covered = """() => {
        const found = [], box = document.getElementById("readout");
        for (let top = 0; top < document.documentElement.scrollHeight; top += 25) {
            scrollTo({ top, behavior: "instant" });
            const own = box.getBoundingClientRect();
            for (const other of document.querySelectorAll("#detail :is(h3, p, label)")) {
                const its = other.getBoundingClientRect();
                if (its.bottom > own.top + 1 && its.top < own.bottom - 1) found.push(other.textContent);
            }
        }
        return found;
    }"""
    assert page.evaluate(covered) == []


def test_a_model_whose_retrieval_was_switched_off_since_is_called_out(attacked, tmp_path, monkeypatch) -> None:
    forward = Retro.forward
    monkeypatch.setattr(Retro, "forward", lambda self, tokens, *_, **__: forward(self, tokens))
    data = rf.report_page(attacked, tmp_path / "page.html", chunks=2, sequences=2)
    said = "Retrieval is switched off inside this model: on equals off on every token"
    assert data["verdict"]["warnings"][-1].startswith(said) and data["verdict"]["level"] == "warning"
    assert said in rf.inspect(attacked, "some words " * 20)["inspector"]["about"]


def test_results_of_other_weights_are_called_out(attacked, tmp_path) -> None:
    run = shutil.copytree(attacked, tmp_path / "0001")
    (file,) = run.glob("comparisons/*/comparison.json")
    values = json.loads(file.read_text())
    values["model"]["checkpoint_sha256"] = 64 * "0"
    file.write_text(json.dumps(values))
    data = rf.report_page(run, tmp_path / "page.html", chunks=2, sequences=2)
    assert "Other weights read the chunks below (" in data["verdict"]["warnings"][-1]


def test_light_and_dark(page_file, show) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    page, _ = show(page_file, scheme="dark")
    dark = page.evaluate(colour)
    page.get_by_role("button", name="Change between light and dark").click()
    light = page.evaluate(colour)
    assert light != dark and show(page_file)[0].evaluate(colour) == light


def test_the_island_is_no_markup() -> None:
    hostile = {"title": "</script>&lt;<!--\u2028\u2029", "made": {}}
    assert json.loads(island(hostile)) == hostile
    assert not set("<>&\u2028") & set(island(hostile))
    assert "<title>&lt;/script&gt;&amp;lt;&lt;!--\ufffd\ufffd</title>" in render(hostile)
