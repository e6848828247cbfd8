"""A sealed file is what was written, or it is refused."""

import json
import random

import pytest

from retroflow.errors import DamagedDataError, RetroflowError
from retroflow.store.sealed_json import read_sealed, render_sealed, strict_json

VALUES = {"text": "k: 2\nseed: 17\n", "numbers": [1, 0.1, 1e-30, -2.5], "nested": {"é": None, "flag": True}}


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(render_sealed(VALUES, what="a"), encoding="utf-8")
    assert read_sealed(path, remedy="") == VALUES
    assert json.loads(path.read_text(encoding="utf-8")).items() >= VALUES.items()


def test_every_changed_digit_is_found(tmp_path):
    path = tmp_path / "a.json"
    text = render_sealed(VALUES, what="a")
    draws = random.Random(1)
    for place, letter in enumerate(text):
        if letter.isdigit():
            other = draws.choice([digit for digit in "0123456789" if digit != letter])
            path.write_text(text[:place] + other + text[place + 1 :], encoding="utf-8")
            with pytest.raises(DamagedDataError, match="a.json.*Restore it") as caught:
                read_sealed(path, remedy="Restore it.")
            assert caught.value.exit_code == 3


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"a": 1}', "\ud800".encode("utf-8", "surrogatepass")])
def test_other_content_is_damage(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DamagedDataError, match="a.json"):
        read_sealed(path, remedy="Restore it.")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_json_does_not_have_are_refused(number):
    for write in (strict_json, render_sealed):
        with pytest.raises(RetroflowError, match="report.json: a number in it is NaN or infinite") as caught:
            write({"loss": number}, what="report.json")
        assert caught.value.exit_code == 1
