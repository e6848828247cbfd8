"""Shares: the bytes of an unshared run whoever makes them, in any order, twice, or not at all; clear words else."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from retroflow.cli.main import run
from retroflow.components import create_retriever
from retroflow.embedding.lexical import LexicalEmbedder
from retroflow.errors import Unfinished, UsageError
from retroflow.pipeline import chunks, embeddings, index, neighbours
from retroflow.pipeline.prepare import prepare
from retroflow.pipeline.sharing import Shard, Sharing
from retroflow.recipe import Recipe
from retroflow.retrieval.faiss import FaissRetriever
from retroflow.store.embedding_store import EmbeddingStore
from retroflow.store.hashing import describe_tree
from retroflow.store.pieces import Pieces
from tests.pipeline.kill_and_resume import digest
from tests.pipeline.read_back import check_corpus_file, check_rows_against_texts
from tests.pipeline.recipes import small_recipe, write_corpus

MERGE = Sharing(merge=True)
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "BLOCK_TEXT_BYTES", 6_000)
    monkeypatch.setattr(embeddings, "ROWS_PER_BLOCK", 100)
    monkeypatch.setattr(neighbours, "ROWS_PER_BLOCK", 100)


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[[str], Recipe]:
    """Recipes over one corpus, with artifacts in folders by name."""
    write_corpus(tmp_path / "corpus.jsonl", 40)
    return lambda name: small_recipe(tmp_path, data={"artifacts_folder": str(tmp_path / name)})


@pytest.fixture
def expected(tmp_path: Path, corpus: Callable[[str], Recipe]) -> str:
    """Digest of an unshared run that was held against the corpus: what is equal to it is right, too."""
    made = prepare(corpus("alone"), report=lambda stage: None)
    check_corpus_file(tmp_path / "alone", tmp_path / "corpus.jsonl")
    check_rows_against_texts(made)
    return digest(tmp_path / "alone")


def share(recipe: Recipe, number: int, count: int, wait: float = 0) -> bool:
    """Make one share; says whether everything is done."""
    return attempt(recipe, Sharing(Shard(number, count), wait=wait))


def attempt(recipe: Recipe, sharing: Sharing) -> bool:
    try:
        prepare(recipe, report=lambda stage: None, sharing=sharing)
    except Unfinished:
        return False
    return True


@pytest.mark.parametrize("count", [1, 2, 3])
def test_rounds_of_shares_end_with_the_bytes_of_an_unshared_run(
    tmp_path: Path, corpus: Callable[[str], Recipe], expected: str, count: int
) -> None:
    recipe, done = corpus("shared"), set()
    for _ in range(4):
        for number in range(1, count + 1):
            if share(recipe, number, count):
                done.add(number)
    assert done == set(range(1, count + 1))
    assert digest(tmp_path / "shared") == expected
    assert [path.name for path in (tmp_path / "shared").glob("*.pieces")] == []


def test_an_index_that_can_be_divided_is_filled_in_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(index, "ROWS_PER_SHARD", 150)
    trained: list[Path] = []
    train = FaissRetriever.train
    monkeypatch.setattr(
        FaissRetriever, "train", lambda self, *given: (trained.append(given[1]), train(self, *given))[1]
    )
    lists = {"name": "faiss", "build": {"factory": "IVF8,SQfp16"}}
    recipes = [
        small_recipe(tmp_path, retriever=lists, data={"artifacts_folder": str(tmp_path / name)})
        for name in ("alone", "shared")
    ]
    made = prepare(recipes[0], report=lambda stage: None)
    check_rows_against_texts(made)
    retriever = create_retriever(recipes[0].section("retriever"))
    retriever.build(EmbeddingStore.open(made.train_embeddings))
    retriever.save(tmp_path / "built")
    assert describe_tree(made.index, "") == describe_tree(tmp_path / "built", "")
    for _ in range(4):
        for number in (3, 1, 2):
            share(recipes[1], number, 3)
    assert attempt(recipes[1], MERGE)
    assert digest(tmp_path / "shared") == digest(tmp_path / "alone")
    assert len(trained) == 2  # once in each folder of artifacts
    said = capsys.readouterr().err
    assert "training the index with faiss" in said and "merging the index with faiss" in said


def test_every_block_is_made_once_and_by_its_own_share(
    tmp_path: Path, corpus: Callable[[str], Recipe], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[int, str, int]] = []
    write, now = Pieces.write, 0

    def noted(self: Pieces, piece: int, *given: object) -> None:
        written.append((now, str(self.folder), piece))
        write(self, piece, *given)

    monkeypatch.setattr(Pieces, "write", noted)
    for _ in range(3):
        for now in (3, 1, 2, 2):
            share(corpus("shared"), now, 3)
    assert digest(tmp_path / "shared") == expected
    blocks = [(folder, piece) for _, folder, piece in written]
    assert len(blocks) == len(set(blocks)) > 12
    documents = [(shard, piece) for shard, folder, piece in written if "chunks-" in folder]
    assert len(documents) > 3 and all(piece % 3 == shard - 1 for shard, piece in documents)
    assert {shard for shard, _, _ in written} == {1, 2, 3}


SHARE = """
import sys
from pathlib import Path
from retroflow.errors import Unfinished
from retroflow.pipeline import chunks, embeddings, neighbours
from retroflow.pipeline.prepare import prepare
from retroflow.pipeline.sharing import Shard, Sharing
from tests.pipeline.read_back import check_corpus_file, check_rows_against_texts
from tests.pipeline.recipes import small_recipe
chunks.BLOCK_TEXT_BYTES, embeddings.ROWS_PER_BLOCK, neighbours.ROWS_PER_BLOCK = 6_000, 100, 100
folder, shard = Path(sys.argv[1]), Shard.parse(sys.argv[2])
recipe = small_recipe(folder, data={"artifacts_folder": str(folder / "shared")})
prepare(recipe, sharing=Sharing(shard, wait=60))
"""


def test_shares_at_the_same_time_wait_for_each_other_and_two_may_be_the_same(
    tmp_path: Path, corpus: Callable[[str], Recipe], expected: str
) -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SHARE, str(tmp_path), shard], stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        for shard in ("1/3", "2/3", "3/3", "2/3")
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * 4, errors
    assert digest(tmp_path / "shared") == expected


def test_a_plain_run_takes_over_from_shares_and_shares_from_a_plain_run(
    tmp_path: Path, corpus: Callable[[str], Recipe], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not share(corpus("shared"), 2, 2)
    assert prepare(corpus("shared"), report=lambda stage: None).built
    assert digest(tmp_path / "shared") == expected

    recipe = corpus("killed")
    embed, calls = LexicalEmbedder.embed, []

    def interrupted(self: LexicalEmbedder, texts: list[str]) -> object:
        calls.append(len(texts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return embed(self, texts)

    monkeypatch.setattr(LexicalEmbedder, "embed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(recipe, report=lambda stage: None)
    rows = sum(stage_rows(tmp_path / "alone"))
    for _ in range(3):
        for number in (1, 2):
            share(recipe, number, 2)
    assert digest(tmp_path / "killed") == expected
    assert sum(calls) == rows + calls[2]  # what the plain run had embedded was not embedded again


def stage_rows(artifacts: Path) -> list[int]:
    from retroflow.store.artifact import open_artifact

    (folder,) = artifacts.glob("embeddings-*")
    return [split["chunks"] for split in open_artifact(folder).info["splits"].values()]


def test_a_merge_names_the_missing_shares_and_makes_no_block(
    tmp_path: Path, corpus: Callable[[str], Recipe], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = corpus("shared")
    with pytest.raises(Unfinished, match=r"no shard of chunks was begun.*--shard 1/n"):
        prepare(recipe, sharing=MERGE)
    share(recipe, 1, 3)
    share(recipe, 3, 3)
    with pytest.raises(Unfinished, match=r"blocks of chunks are missing, of shard 2/3\. Run") as caught:
        prepare(recipe, sharing=MERGE)
    assert caught.value.exit_code == 75
    share(recipe, 2, 3)  # joins the chunks, and makes its share of the embeddings
    with pytest.raises(Unfinished, match=r"blocks of embeddings are missing, of shards 1/3, 3/3\. Run"):
        prepare(recipe, sharing=MERGE)
    share(recipe, 1, 3)
    share(recipe, 3, 3)
    with monkeypatch.context() as patch:
        patch.setattr(LexicalEmbedder, "embed", lambda *given: pytest.fail("a merge embeds nothing"))
        with pytest.raises(Unfinished, match=r"blocks of neighbours are missing, of shards 1/3, 2/3\. Run"):
            prepare(recipe, sharing=MERGE)
    share(recipe, 1, 3)
    share(recipe, 2, 3)
    assert attempt(recipe, MERGE)
    assert digest(tmp_path / "shared") == expected


def test_a_broken_piece_is_missing_to_a_merge_and_made_again_by_its_share(
    tmp_path: Path, corpus: Callable[[str], Recipe], expected: str
) -> None:
    recipe = corpus("shared")
    for number in (2, 3, 1, 3):  # share 1 joins the chunks: 1 and 3 go on to the embeddings
        share(recipe, number, 3)
    (piece,) = (tmp_path / "shared").glob("embeddings-*.pieces/*/00000002.piece")
    piece.write_bytes(piece.read_bytes()[:-1])
    with pytest.raises(Unfinished, match=r"blocks of embeddings are missing, of shards 2/3, 3/3\. Run"):
        prepare(recipe, sharing=MERGE)
    for _ in range(3):
        for number in (3, 2, 1):
            share(recipe, number, 3)
    assert attempt(recipe, MERGE)
    assert digest(tmp_path / "shared") == expected


def test_pieces_of_a_corpus_that_changed_while_it_was_read_are_not_used(
    tmp_path: Path, corpus: Callable[[str], Recipe], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, original = corpus("shared"), (tmp_path / "corpus.jsonl").read_bytes()
    blocks = chunks.document_blocks

    def change_then_read(documents: object) -> object:
        (tmp_path / "corpus.jsonl").write_bytes(original.replace(b"a", b"A"))
        return blocks(documents)

    with monkeypatch.context() as patch:
        patch.setattr(chunks, "document_blocks", change_then_read)
        with pytest.raises(UsageError, match="changed while it was being read"):
            share(recipe, 1, 2)
    (tmp_path / "corpus.jsonl").write_bytes(original)
    for _ in range(3):
        for number in (1, 2):
            share(recipe, number, 2)
    assert digest(tmp_path / "shared") == expected


def test_a_share_waits_no_longer_than_it_says(corpus: Callable[[str], Recipe], capsys) -> None:
    started = time.monotonic()
    with pytest.raises(
        Unfinished, match=r"chunks-\w+: shard 1/3 is done; .* of shards 2/3, 3/3 \(none came for 0\.3 s"
    ):
        prepare(corpus("shared"), sharing=Sharing(Shard(1, 3), wait=0.3))
    assert 0.3 <= time.monotonic() - started < 60
    assert "waiting for shards 2/3, 3/3" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0/3", "4/3", "1/0", "1", "a/b", "1/3/5", "-1/3", "", "1/999999999", " 1/3", "1.0/3"])
def test_a_share_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--shard is .*allowed: i/n with 1 <= i <= n.*count from 1"):
        Shard.parse(text)


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        ({"RANK": "0", "WORLD_SIZE": "4"}, "1/4"),
        ({"RANK": "3", "WORLD_SIZE": "4", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, "4/4"),
        ({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_COUNT": "3"}, "1/3"),
        (
            {
                "SLURM_ARRAY_TASK_ID": "8",
                "SLURM_ARRAY_TASK_MIN": "0",
                "SLURM_ARRAY_TASK_COUNT": "3",
                "SLURM_ARRAY_TASK_STEP": "4",
            },
            "3/3",
        ),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, "2/2"),
    ],
)
def test_auto_reads_what_launchers_say(environment: dict[str, str], shard: str) -> None:
    assert str(Shard.parse("auto", environment)) == shard


@pytest.mark.parametrize(
    ("environment", "message"), [({}, "neither RANK"), ({"RANK": "x", "WORLD_SIZE": "2"}, 'RANK is "x"')]
)
def test_auto_without_a_launcher_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Shard.parse("auto", environment)


def test_the_command_line_says_which_share_is_missing_and_ends_with_the_merge(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "small.yaml"
    file.write_text("recipe_version: 1\nmodel: {name: retro}\n" + small_recipe(tmp_path).to_yaml())
    command = ["prepare", "--recipe", str(file)]
    assert run([*command, "--shard", "1/2", "--wait", "0"]) == 75
    assert "of shard 2/2 (--wait 0 waits for none)" in capsys.readouterr().err
    assert run([*command, "--merge"]) == 75
    assert "of shard 2/2. Run the same command with --shard" in capsys.readouterr().err
    for _ in range(3):
        for shard in ("2/2", "1/2"):
            assert run([*command, "--shard", shard, "--wait", "0"]) in (0, 75)
    assert run([*command, "--merge"]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[-4:]] == [
        [f"{kind}:", "re-used,"] for kind in ("chunks", "embeddings", "index", "neighbours")
    ]
    assert run([*command, "--merge", "--shard", "1/2"]) == 2
    assert run([*command, "--shard", "3/2"]) == 2
    assert run([*command, "--shard", "1/2", "--wait", "-1"]) == 2
