"""Draw docs/pictures/rooms.svg: the rooms of the library, from the import contract in pyproject.toml.

Run `python docs/pictures/draw_rooms.py` after a change. tests/house/test_rooms.py holds the stored picture against this
script.
"""

import ast
import tomllib
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WIDTH, ROW, LEFT, TOP, GAP = 1180, 62, 40, 64, 8
FONT = 'font-family="Helvetica, Arial, sans-serif"'
COLOURS = ("#f2d6de", "#e8dbee", "#d5e3f3", "#d7ecd8", "#f7dfca")


def layers() -> list[list[str]]:
    """The rows of the contract, top first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    rows = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[room.strip(" ()") for room in row.split("|")] for row in rows]


def subject(room: str) -> str:
    """The first sentence of what a room says it is, cut to fit."""
    folder = ROOT / "retroflow" / room
    file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    text = " ".join((ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split())
    return text.split(". ")[0].rstrip(".")


def wrapped(text: str, letters: int, most: int = 2) -> list[str]:
    """The text in at most two lines."""
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) + 1 > letters and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines if len(lines) <= most else [*lines[: most - 1], lines[most - 1][: letters - 3].rstrip(" ,;") + " ..."]


def draw() -> str:
    rows = layers()
    height = TOP + ROW * len(rows) + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'role="img">',
        "<title>The rooms of retroflow: each row imports only from the rows below it</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{LEFT}" y="38" font-size="18" font-weight="bold" {FONT}>The rooms of retroflow. A room imports from '
        "rows below its own, never from its row or above.</text>",
    ]
    for number, row in enumerate(rows):
        y = TOP + number * ROW
        width = (WIDTH - 2 * LEFT - GAP * (len(row) - 1)) / len(row)
        for place, room in enumerate(row):
            x = LEFT + place * (width + GAP)
            colour = COLOURS[number * len(COLOURS) // len(rows)]
            parts.append(f'<rect x="{x:.0f}" y="{y}" width="{width:.0f}" height="{ROW - GAP}" rx="5" fill="{colour}"/>')
            parts.append(f'<text x="{x + 10:.0f}" y="{y + 18}" font-size="14" font-weight="bold" {FONT}>{room}</text>')
            for line, text in enumerate(wrapped(subject(room), int(width / 6) - 2)):
                below = y + 33 + 14 * line
                parts.append(f'<text x="{x + 10:.0f}" y="{below}" font-size="11" {FONT}>{escape(text)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    (Path(__file__).parent / "rooms.svg").write_text(draw(), encoding="utf-8")
