"""Kills prepare at its n-th fsync, runs it again, and prints whether the bytes are those of an unbroken run.

Run as: python -m tests.pipeline.kill_and_resume FOLDER POINT [POINT ...]; without points it prints their number.
A point is the number of an fsync, or two of them joined by "+": the second kill comes while recovering from the first.
"s" before a point kills share 2 of 2 there, in every round of shares; a merge ends the work.
"""

import hashlib
import os
import signal
import sys
from pathlib import Path

from retroflow.errors import Unfinished
from retroflow.pipeline import chunks, embeddings, neighbours
from retroflow.pipeline.prepare import prepare
from retroflow.pipeline.sharing import ALONE, Shard, Sharing
from tests.pipeline.read_back import check_corpus_file
from tests.pipeline.recipes import small_recipe


def run_in_child(folder: Path, artifacts: Path, kill_at: int | None, sharing: Sharing = ALONE) -> tuple[int, int]:
    """Prepare in a forked child that kills itself before its fsync number `kill_at`; (signal, fsyncs counted).

    A child whose share is done and who lacks those of others gives -75 for the signal.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0
        fsync = os.fsync

        def counted(descriptor: int) -> None:
            nonlocal count
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(descriptor)

        os.fsync = counted
        chunks.BLOCK_TEXT_BYTES = 6_000
        embeddings.ROWS_PER_BLOCK = neighbours.ROWS_PER_BLOCK = 300
        recipe = small_recipe(folder, data={"artifacts_folder": str(artifacts)})
        try:
            prepare(recipe, report=lambda stage: None, sharing=sharing)
        except Unfinished as error:
            os._exit(error.exit_code)
        os.write(writer, str(count).encode())
        os._exit(0)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reader) as stream:
        count_text = stream.read()
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status), int(count_text or 0)


def digest(artifacts: Path) -> str:
    """Hash of the names and bytes of all finished artifacts; what is unfinished or left over counts too."""
    total = hashlib.sha256()
    for path in sorted(artifacts.rglob("*")):
        name = path.relative_to(artifacts).as_posix()
        if path.is_file() and not name.startswith("."):
            total.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def kill_a_share(folder: Path, artifacts: Path, kill_at: int) -> None:
    """Prepare in rounds of two shares without waiting, the second of them killed in every round, then merge."""
    for _ in range(4):
        for number, kill in ((1, None), (2, kill_at), (2, None)):
            killed, _ = run_in_child(folder, artifacts, kill, Sharing(Shard(number, 2), wait=0))
            assert killed in (0, -75, signal.SIGKILL), killed
    assert run_in_child(folder, artifacts, None, Sharing(merge=True))[0] == 0


def main(folder: Path, points: list[str]) -> None:
    """See the module."""
    killed, count = run_in_child(folder, folder / "unbroken", None)
    assert killed == 0, killed
    check_corpus_file(folder / "unbroken", folder / "corpus.jsonl")
    expected = digest(folder / "unbroken")
    if not points:
        print(count)
    for point in points:
        artifacts = folder / f"killed-{point}"
        if point.startswith("s"):
            kill_a_share(folder, artifacts, int(point[1:]))
        for kill_at in [] if point.startswith("s") else point.split("+"):
            killed, _ = run_in_child(folder, artifacts, int(kill_at))
            assert killed in (0, signal.SIGKILL), killed
        assert run_in_child(folder, artifacts, None)[0] == 0
        print(point, "same" if digest(artifacts) == expected else "DIFFERENT", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
