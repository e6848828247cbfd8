"""Every built-in model keeps the contract that plugins are held to."""

import dataclasses
import functools
import tempfile

import pytest

from retroflow.model.config import RetroConfig
from retroflow.pretrained.retrofit_config import RetrofitConfig
from retroflow.testing import ModelContract
from tests.model.random_models import READING_AIDS, SMALL
from tests.pretrained.bases import CHUNK, VOCABULARY, make_base, make_options

pytestmark = pytest.mark.filterwarnings("ignore")


@functools.cache
def base_folder() -> str:
    folder = tempfile.mkdtemp()
    make_base("gpt2").save_pretrained(folder)
    return folder


class TestRetro(ModelContract):
    own_process = False

    def make_config(self) -> RetroConfig:
        return SMALL


class TestRetroWithReadingAids(ModelContract):
    own_process = False

    def make_config(self) -> RetroConfig:
        return dataclasses.replace(SMALL, positions="relative", dropout=0.5, **READING_AIDS)


class TestRetrofit(ModelContract):
    own_process = False

    def make_config(self) -> RetrofitConfig:
        return make_options(base=base_folder())


class TestRetrofitOfATrainedBase(ModelContract):
    own_process = False

    def make_config(self) -> RetrofitConfig:
        return make_options(base=base_folder(), unfreeze=True, smear=True)


class TestTrainedInheritedReader(ModelContract):
    own_process = False

    def make_config(self) -> RetrofitConfig:
        return RetrofitConfig(
            vocabulary_size=VOCABULARY,
            chunk_length=CHUNK,
            base=base_folder(),
            reader="inherit",
            trained=("scale", "query", "answer", "layers"),
            rank=4,
        )
