"""The cache comes before the hub; an error has the reasons of both."""

from types import SimpleNamespace

import pytest

from retroflow.hub import HUB_SECONDS, files_on_hub, from_cache_or_hub


def test_the_hub_is_asked_once_and_for_some_seconds(monkeypatch):
    from huggingface_hub import HfApi

    asked = []

    def answer(api, name, **options):
        asked.append((name, options))
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename="config.json")])

    monkeypatch.setattr(HfApi, "model_info", answer)
    assert files_on_hub("some/model") == ["config.json"] and asked == [("some/model", {"timeout": HUB_SECONDS})]


def test_the_cache_comes_first():
    assert from_cache_or_hub(lambda local_files_only: local_files_only) == (True, "Hugging Face cache")


def test_what_the_cache_lacks_is_loaded_from_the_hub():
    def load(local_files_only):
        if local_files_only:
            raise OSError("not here")
        return "files"

    assert from_cache_or_hub(load) == ("files", "Hugging Face hub")


def test_what_is_nowhere_says_why_for_each_place_in_one_line():
    def load(local_files_only):
        raise ValueError(f"asked {local_files_only}\n" + "a long story " * 50)

    with pytest.raises(LookupError) as caught:
        from_cache_or_hub(load)
    cache, hub = str(caught.value).split("; ")
    assert cache.startswith("Hugging Face cache: ValueError: asked True a long story") and cache.endswith(" ...")
    assert hub.startswith("Hugging Face hub: ValueError: asked False") and "\n" not in hub and len(hub) < 250
