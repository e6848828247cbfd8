"""The Python of docs/model.md runs as it stands there."""

import re
from pathlib import Path

import torch

PAGE = Path(__file__).parents[2] / "docs" / "model.md"


def test_the_page_s_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    torch.manual_seed(0)
    tokens = torch.randint(8192, (3, 130))
    names = {
        "torch": torch,
        "tokens": tokens,
        "pieces": [tokens],
        "retrieved": torch.randint(8192, (3, 2, 2, 128)),
        "retrieved_mask": torch.ones(3, 2, 2, 128, dtype=torch.bool),
    }
    with torch.no_grad():
        for block in blocks:
            exec(block, names)
        assert len(blocks) == 2
        whole = names["model"](tokens, names["retrieved"], names["retrieved_mask"])
    assert names["logits"].shape == (3, 130, 8192) and names["cache"].num_rows == 2
    torch.testing.assert_close(names["logits"], whole, rtol=0, atol=1e-4)
