"""Draw docs/pictures/alignment.svg: which positions read the neighbours of which chunk or window.

Run `python docs/pictures/draw_alignment.py` after a change. tests/model/test_alignment_picture.py holds the stored
picture against this script, and every cell of it against a model.
"""

from pathlib import Path

CHUNK_LENGTH = 4
NUM_POSITIONS = 13
STEPS = (4, 2)  # the paper's, which is the chunk length, and a shorter one
COLOURS = ("#2f6db5", "#c8681d", "#3c8d40", "#8a4fa3", "#b03a5b")
PALE = ("#d5e3f3", "#f7dfca", "#d7ecd8", "#e8dbee", "#f2d6de")
CELL, ROW, LEFT, RIGHT = 46, 34, 320, 24
FONT = 'font-family="Helvetica, Arial, sans-serif"'


def window_ends(step: int) -> list[int]:
    """Tokens that are known when each window ends, T(w) = m + w s."""
    return list(range(CHUNK_LENGTH, NUM_POSITIONS + 1, step))


def readers(step: int, window: int) -> range:
    """Positions that read a window: from the last of its tokens on, until the next window ends."""
    first = window_ends(step)[window] - 1
    return range(first, min(first + step, NUM_POSITIONS))


def text(x: float, y: float, words: str, *, size: int = 14, anchor: str = "middle", more: str = "") -> str:
    """One line of text, its baseline at y."""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" {FONT} {more}>{words}</text>'


def box(x: float, y: float, width: float, fill: str, more: str = "") -> str:
    """One cell of a row."""
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{ROW - 6}" rx="3" fill="{fill}" {more}/>'


def panel(top: int, step: int, title: str, unit: str) -> tuple[list[str], int]:
    """One table of positions by windows; returns its SVG and the height where it ends."""
    out = [text(24, top, title, size=16, anchor="start", more='font-weight="bold"')]
    y = top + 22
    out.append(text(LEFT - 16, y + 19, "position", anchor="end"))
    for t in range(NUM_POSITIONS):
        chunk = t // CHUNK_LENGTH
        out.append(box(LEFT + t * CELL, y, CELL - 4, PALE[chunk], f'stroke="{COLOURS[chunk]}" stroke-width="1.5"'))
        out.append(text(LEFT + (t + 0.5) * CELL - 2, y + 19, str(t)))
    y += ROW
    grey = {"size": 12, "more": 'fill="#555"'}
    out.append(text(LEFT - 16, y + 15, "token of chunk", anchor="end", **grey))
    for first in range(0, NUM_POSITIONS, CHUNK_LENGTH):
        width = min(CHUNK_LENGTH, NUM_POSITIONS - first) * CELL - 4
        out.append(text(LEFT + first * CELL + width / 2, y + 15, str(first // CHUNK_LENGTH), **grey))
    y += ROW - 8
    for window, end in enumerate(window_ends(step)):
        which = f"{unit} {window}"
        if step != CHUNK_LENGTH:
            which += f", tokens {end - CHUNK_LENGTH} to {end - 1}"
        out.append(text(LEFT - 16, y + 19, f"neighbours of {which}", anchor="end"))
        for t in range(NUM_POSITIONS):
            out += cell(step, window, t, y)
        y += ROW
    return out, y


def cell(step: int, window: int, t: int, y: float) -> list[str]:
    """Whether position t reads a window, or is one of the tokens that it is looked up with."""
    end = window_ends(step)[window]
    if t in readers(step, window):
        data = f'data-step="{step}" data-window="{window}" data-position="{t}"'
        words = text(LEFT + (t + 0.5) * CELL - 2, y + 19, "reads", size=12, more='fill="#fff"')
        return [box(LEFT + t * CELL, y, CELL - 4, COLOURS[window % len(COLOURS)], data), words]
    fill = PALE[window % len(PALE)] if end - CHUNK_LENGTH <= t < end else "#f3f3f3"
    return [box(LEFT + t * CELL, y, CELL - 4, fill)]


def draw() -> str:
    """Draw both panels; returns the SVG file's text."""
    m, s = STEPS
    title = f"Training, and generation with the paper's retrieval step: chunks of m = {m} tokens"
    body, y = panel(36, m, title, "chunk")
    notes = (
        "Pale: what neighbours are looked up with. Its last token already reads what was found.",
        f"The first {m - 1} positions read nothing. Position {m - 1} holds the last token of chunk 0 and predicts the",
        "first token of chunk 1: chunk 0 is complete, so its neighbours are known.",
        "Position t reads those of chunk (t + 1) // m - 1.",
    )
    for number, note in enumerate(notes):
        body.append(text(24, y + 22 + 19 * number, note, size=13, anchor="start", more='fill="#333"'))
    title = f"Generation with retrieval step s = {s}: windows of m tokens, one every s"
    more, y = panel(y + 124, s, title, "window")
    note = "Window w ends when T(w) = m + w s tokens are known; position t reads the newest with T(w) &lt;= t + 1."
    body += [*more, text(24, y + 22, note, size=13, anchor="start", more='fill="#333"')]
    width, height = LEFT + NUM_POSITIONS * CELL + RIGHT, y + 44
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    title = "<title>Which position reads the neighbours of which chunk</title>"
    return "\n".join([head, title, f'<rect width="{width}" height="{height}" fill="#fff"/>', *body, "</svg>"]) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("alignment.svg").write_text(draw(), encoding="utf-8")
