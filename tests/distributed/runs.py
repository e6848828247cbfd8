"""Real runs of `retroflow fit` in processes of their own, which never outlive the test that starts them."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import torch

from retroflow.components import recipe_schema
from retroflow.pipeline.prepare import prepare
from retroflow.recipe import load
from retroflow.runs.checkpoint_files import list_checkpoints
from retroflow.runs.checkpoints import read_checkpoint
from retroflow.testing.tiny_corpus import write_tiny_corpus

FAULTS = Path(__file__).parent / "faults"
LIMIT = 400  # seconds; a launch takes 10 to 15 of them on two quiet cores

RECIPE = """\
recipe_version: 1
seed: 1
corpus: {name: jsonl, path: tiny.jsonl, valid_share: 0.1}
data: {tokenizer: train, vocabulary_size: 300, chunk_length: 16, sequence_chunks: 4}
embedder: {name: lexical}
retriever: {name: exact}
neighbours: {k: 2}
model: {name: retro, width: 32, num_layers: 2, num_heads: 2, cca_layers: [2], encoder_width: 16, encoder_layers: 1,
  encoder_heads: 2, dropout: 0.1}
optimizer: {learning_rate: 1.0e-2, warmup_steps: 3}
trainer: {max_steps: 12, batch_size: 4, precision: fp32, device: cpu, num_threads: 1, log_every: 3,
  checkpoint_every: 4, retrieval_dropout: 0.3, validate_every: 6, validation_batches: 3, eval_batch_size: 4,
  timeout_seconds: 300}
tracker: {name: none}
"""

TWO = {"ddp": ("trainer.strategy=ddp", "trainer.devices=2"), "fsdp": ("trainer.strategy=fsdp", "trainer.devices=2")}


def prepared_folder(folder, retriever="exact"):
    """A folder with a recipe, and with its artifacts."""
    folder.mkdir(exist_ok=True)
    write_tiny_corpus(folder)
    (folder / "tiny.yaml").write_text(RECIPE.replace("retriever: {name: exact}", f"retriever: {{name: {retriever}}}"))
    prepare_in(folder)
    return folder


def prepare_in(folder, *words):
    before = Path.cwd()
    os.chdir(folder)
    try:
        prepare(load(Path("tiny.yaml"), words, schema=recipe_schema()), report=lambda stage: None)
    finally:
        os.chdir(before)


@dataclass
class Launch:
    """A started command: its process, and the mark that all processes below it carry."""

    process: subprocess.Popen
    mark: str

    def finish(self, limit=LIMIT):
        """Wait for its end; kill all of it if that does not come."""
        try:
            output, errors = self.process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            states = [state_of(process) for process in processes_of(self.mark)]
            end_all(self.mark)
            output, errors = self.process.communicate()
            raise AssertionError("\n".join(["hung", output[-2000:], errors[-4000:], *states])) from None
        return Ended(self.process.returncode, output, errors, self.mark)


@dataclass
class Ended:
    code: int
    output: str
    errors: str
    mark: str

    def leftovers(self, seconds=20.0):
        """Processes of this command that are still there after some time, which is waited only if there are any."""
        deadline = time.monotonic() + seconds
        while (alive := processes_of(self.mark)) and time.monotonic() < deadline:
            time.sleep(0.1)
        return alive


def launch(
    folder, *words, fault=None, prefix=(), environment=None, command=("fit", "--recipe", "tiny.yaml"), **streams
):
    mark = uuid.uuid4().hex
    variables = os.environ | {"TEST_MARK": mark, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    paths = [*([str(FAULTS)] if fault else []), *filter(None, sys.path)]
    variables |= {"PYTHONPATH": os.pathsep.join(paths)} | ({"FAULT": fault} if fault else {}) | (environment or {})
    python = prefix or (sys.executable, "-m")
    process = subprocess.Popen(
        [*python, "tests.distributed.command", *command, *words],
        cwd=folder,
        env=variables,
        **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | streams),
        start_new_session=True,
    )
    return Launch(process, mark)


def fit(folder, *words, **options):
    """Run `retroflow fit` to its end."""
    return launch(folder, *words, **options).finish()


def processes_of(mark):
    """Living processes that carry a mark."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"TEST_MARK={mark}".encode() in (path / "environ").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


def state_of(process):
    """What a process is doing, in a line."""
    try:
        folder = Path(f"/proc/{process}")
        fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
        words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return f"{process}: parent {fields[1]}, {fields[0]}, {fields[11]} ticks, in {(folder / 'wchan').read_text()}: {words}"
    except OSError as error:
        return f"{process}: {error}"


def end_all(mark):
    for process in processes_of(mark):
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue


def newest(folder, runs="runs"):
    return read_checkpoint(list_checkpoints(folder / runs / "tiny/0001/checkpoints")[0])


def metrics(folder, runs="runs"):
    text = (folder / runs / "tiny/0001/metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def assert_same(folder, first, second, *, steps=12):
    """Two runs ended with the same weights, optimizer state and metrics, bit for bit."""
    one, two = newest(folder, first), newest(folder, second)
    assert one["global_step"] == two["global_step"] == steps
    assert one["state_dict"].keys() == two["state_dict"].keys()
    for name, value in one["state_dict"].items():
        assert torch.equal(value, two["state_dict"][name]), name
    states, others = one["optimizer_states"][0]["state"], two["optimizer_states"][0]["state"]
    assert states.keys() == others.keys()
    for parameter, state in states.items():
        for name, value in state.items():
            assert torch.equal(value, others[parameter][name]), (parameter, name)
    for name in ("metrics.jsonl", "metrics.csv"):
        paths = [folder / runs / "tiny/0001" / name for runs in (first, second)]
        assert paths[0].read_bytes() == paths[1].read_bytes()
