"""Draw docs/pictures/report.png: the page of `retroflow report` for a small model trained on invented text.

Run `python docs/pictures/draw_report.py` after a change of the page; it takes a minute, and needs playwright and
Chromium. Nothing tests the picture, since fonts differ between machines.
"""

import json
import random
import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

import retroflow as rf
from retroflow.testing.tiny_corpus import tiny_texts

PICTURE = Path(__file__).parent / "report.png"

RECIPE = """recipe_version: 1
corpus: {{name: jsonl, path: {folder}/notes.jsonl, title_key: title, valid_share: 0.1}}
embedder: {{name: lexical, dimension: 256}}
retriever: {{name: exact}}
neighbours: {{k: 2}}
data: {{vocabulary_size: 700, chunk_length: 32, sequence_chunks: 4, artifacts_folder: {folder}/artifacts}}
model: {{name: retro, width: 64, num_layers: 2, num_heads: 4, head_width: 16, cca_layers: [1, 2], encoder_width: 64,
  share_encoder_embeddings: true, encoder_layers: 1, encoder_heads: 2, smear: true, next_token_values: true,
  copy_initialisation: true}}
optimizer: {{learning_rate: 0.003, warmup_steps: 20}}
trainer: {{max_steps: 300, batch_size: 8, device: cpu, precision: fp32, checkpoint_every: 300, validate_every: 50,
  log_every: 10, runs_folder: {folder}/runs}}
tracker: {{name: none}}
"""


def write_corpus(file: Path) -> None:
    """Write documents of four paragraphs of invented facts; each paragraph is in several documents."""
    draw = random.Random(0)
    paragraphs = tiny_texts(240, facts_per_document=6)
    with file.open("w", encoding="utf-8") as lines:
        for number in range(240):
            parts = [text.partition("\n")[2] for text in draw.sample(paragraphs, 4)]
            line = {"id": f"notes/{number}", "title": f"Notes {number}", "text": "\n\n".join(parts)}
            lines.write(json.dumps(line) + "\n")


def main() -> None:
    """Train, write the page, and take its picture."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder / "notes.jsonl")
        recipe = folder / "notes.yaml"
        recipe.write_text(RECIPE.format(folder=folder))
        run = rf.fit(rf.load_recipe(recipe))
        rf.report_page(run, folder / "report.html", chunks=12, sequences=8)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1080, "height": 760})
            page.goto((folder / "report.html").as_uri())
            page.locator("#inspector").evaluate("element => element.scrollIntoView({behavior: 'instant'})")
            page.locator("#tokens .token").nth(6).hover()
            page.screenshot(path=PICTURE)
            browser.close()
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
