"""A stand-in for SLURM on this machine: sbatch, srun, sacct, scancel and scontrol, as submitit calls them.

Jobs and arrays run in the background in sessions of their own, so that they outlive whoever submitted them. A job is a
folder of files; `end` gives it a state of which SLURM alone decides. Run as: slurm_stand_in.py FOLDER COMMAND WORDS.
"""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

COMMANDS = ("sbatch", "srun", "sacct", "scancel", "scontrol")
PARTITIONS = ("cpu", "")
KILL_WAIT = 2.0


def install(folder: Path) -> Path:
    """Make the commands; returns the folder for PATH."""
    commands = folder / "bin"
    commands.mkdir(parents=True)
    (folder / "jobs").mkdir()
    for name in COMMANDS:
        words = [sys.executable, "-S", "-E", str(Path(__file__).absolute()), str(folder), name]
        (commands / name).write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        (commands / name).chmod(0o755)
    return commands


class Task:
    """One job, or one of an array: its files end in .pid, .state, .requeue, and .end for a state from outside."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.files = name, folder / "jobs" / name.partition("_")[0] / name

    def read(self, ending: str) -> str:
        try:
            return self.files.with_suffix(ending).read_text()
        except FileNotFoundError:
            return ""

    def write(self, ending: str, text: str) -> None:
        new = self.files.with_suffix(f"{ending}.new{threading.get_ident()}")
        new.write_text(text)
        new.replace(self.files.with_suffix(ending))

    def signal(self, number: int) -> bool:
        """Signal its steps, not the batch shell; returns whether there are any."""
        leader, found = self.read(".pid"), False
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                session = (process / "stat").read_text().rpartition(")")[2].split()[3]
                if session == leader and process.name != leader:
                    os.kill(int(process.name), number)
                    found = True
        return found

    def end(self, state: str, *, warned: bool = True) -> None:
        """End it in this state with SIGKILL, some time before with SIGTERM if it is warned."""
        if self.read(".end") or self.read(".state") in ("COMPLETED", "FAILED"):
            return
        self.write(".end", state)
        if warned:
            self.signal(signal.SIGTERM)
        deadline = time.monotonic() + (KILL_WAIT if warned else 0.0)
        while self.signal(0) and time.monotonic() < deadline:
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError, ValueError):
            os.killpg(int(self.read(".pid")), signal.SIGKILL)
        if self.read(".state") == "PENDING":
            self.write(".state", state)

    def run(self, script: Path, options: dict[str, str], slots: threading.Semaphore) -> None:
        """Run it to its end, again if it is put back into the queue; called by its daemon."""
        job, _, number = self.name.partition("_")
        environment = {"SLURM_JOB_ID": job + number, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
        if number:
            environment |= {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": number}
        with slots:
            while not self.read(".end"):
                with open(fill_in(options["output"], environment), "ab") as log:
                    process = subprocess.Popen(
                        ["bash", str(script)], env=os.environ | environment, stdout=log, stderr=log,
                        stdin=subprocess.DEVNULL, start_new_session=True,
                    )  # fmt: skip
                self.write(".pid", str(process.pid))
                self.write(".state", "RUNNING")
                code = process.wait()
                self.signal(signal.SIGKILL)
                if not self.read(".requeue"):
                    self.write(".state", self.read(".end") or ("FAILED" if code else "COMPLETED"))
                    return
                self.files.with_suffix(".requeue").unlink()
                self.write(".state", "PENDING")


def tasks_of(folder: Path, job: str) -> list[Task]:
    """The tasks that "12" or "12_3" names."""
    number = job.partition("_")[0]
    names = sorted(path.stem for path in (folder / "jobs" / number).glob("*.state"))
    return [Task(folder, name) for name in names if job in (name, number)]


def every_task(folder: Path) -> list[Task]:
    """All tasks, the oldest job first."""
    jobs = sorted(int(path.name) for path in (folder / "jobs").iterdir())
    return [task for job in jobs for task in tasks_of(folder, str(job))]


def fill_in(pattern: str, environment: dict[str, str]) -> str:
    job = {"%j": "SLURM_JOB_ID", "%A": "SLURM_ARRAY_JOB_ID", "%a": "SLURM_ARRAY_TASK_ID", "%t": "SLURM_PROCID"}
    for place, name in job.items():
        pattern = pattern.replace(place, environment.get(name, ""))
    return pattern


def read_options(script: Path) -> dict[str, str]:
    found = (shlex.split(line)[1] for line in script.read_text().splitlines() if line.startswith("#SBATCH "))
    return {key.removeprefix("--"): value for key, _, value in (word.partition("=") for word in found)}


def sbatch(folder: Path, words: list[str]) -> None:
    (script,) = words
    options = read_options(Path(script))
    if options.get("partition", "") not in PARTITIONS:
        sys.exit(
            f"sbatch: error: invalid partition specified: {options['partition']}\n"
            "sbatch: error: Batch job submission failed: Invalid partition name specified"
        )
    job = int(time.time() * 1000) % 10**9  # no other stand-in of these tests had it: submitit remembers states
    while True:
        with contextlib.suppress(FileExistsError):
            (folder / "jobs" / str(job)).mkdir()
            break
        job += 1
    (folder / "jobs" / str(job) / "script").write_text(Path(script).read_text())
    array = re.fullmatch(r"0-(\d+)%(\d+)", options.get("array", ""))
    names = [f"{job}_{number}" for number in range(int(array[1]) + 1)] if array else [str(job)]
    for name in names:
        Task(folder, name).write(".state", "PENDING")
    daemon = [sys.executable, "-S", "-E", __file__, str(folder), "slurmd", str(job), array[2] if array else "1"]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.Popen(daemon, start_new_session=True, **quiet)
    print(f"Submitted batch job {job}")


def slurmd(folder: Path, words: list[str]) -> None:
    job, parallel = words
    script, slots = folder / "jobs" / job / "script", threading.Semaphore(int(parallel))
    for task in tasks_of(folder, job):
        threading.Thread(target=task.run, args=(script, read_options(script), slots)).start()


def srun(folder: Path, words: list[str]) -> None:
    descriptors = {"--output": 1, "--error": 2}
    while words[0].startswith("--"):
        flag = words.pop(0)
        if flag in descriptors:
            path = fill_in(words.pop(0), dict(os.environ))
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), descriptors[flag])
    os.execvp(words[0], words)


def sacct(folder: Path, words: list[str]) -> None:
    print("JobID|State|NodeList")
    for job in (words[at + 1] for at, word in enumerate(words) if word == "-j"):
        for task in tasks_of(folder, job):
            state = task.read(".state")
            print(f"{task.name}|{state}|here\n{task.name}.batch|{state}|here")


def scancel(folder: Path, words: list[str]) -> None:
    job, *flags = words
    for task in tasks_of(folder, job):
        if flags[:1] == ["--signal"]:
            task.signal(getattr(signal, "SIG" + flags[1].removeprefix("SIG")))
        else:
            task.end("CANCELLED by 1000")


def scontrol(folder: Path, words: list[str]) -> None:
    verb, job = words
    if verb == "requeue":
        for task in tasks_of(folder, job):
            task.write(".requeue", "1")


if __name__ == "__main__":
    globals()[sys.argv[2]](Path(sys.argv[1]), sys.argv[3:])
