"""Weights & Biases as a mirror of metrics.jsonl."""

import json
import math
import netrc
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import wandb
from annotated_types import Ge, Gt

from retroflow.console import say
from retroflow.options import checked_options
from retroflow.protocols import NeighbourExample, ReportTable, Summary, TrackedRun, Tracker
from retroflow.store.sealed_json import write_json

_ID_FILE = "wandb.json"

_STEP = "trainer/global_step"
"""The axis of every chart; the name is that of Lightning's logger."""

NEIGHBOUR_COLUMNS = ("chunk", "chunk_source", "rank", "neighbour", "neighbour_source", "score", "loss_on", "loss_off")
TEXT_COLUMNS = ("chunk_text", "neighbour_text", "continuation_text")


def has_key() -> bool:
    """Return whether W&B would find credentials: its environment variables or an entry in the netrc file.

    wandb's own functions are not used, because they prompt or warn, differently in each version.
    """
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    # The default server differs between versions of wandb.
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url).hostname or ""
    path = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


@checked_options("tracker")
class WandbTracker(Tracker):
    """Mirrors a run to W&B; a resumed run continues under its id, which is stored in the run folder.

    Without a key it writes W&B's offline files into the run folder, to be sent later with `wandb sync`.

    Args:
        project: W&B project.
        entity: W&B user or team; empty for the account's default.
        group: W&B group; empty for the recipe's name.
        job_type: W&B job type.
        tags: labels of the run.
        mode: "online", "offline", or "auto": online if there is a key, else offline. WANDB_MODE has priority.
        log_text: send the text of chunks and neighbours in the table; otherwise only ids, sources and scores.
        table_rows: maximum rows of the table of neighbours; 0 for no table.
        init_seconds: time limit for W&B's server at the start.
        finish_seconds: time limit at the end for sending the rest.
    """

    def __init__(  # noqa: PLR0913 - a component's parameters are its options
        self,
        *,
        project: str = "retroflow",
        entity: str = "",
        group: str = "",
        job_type: str = "train",
        tags: tuple[str, ...] = (),
        mode: Literal["auto", "online", "offline"] = "auto",
        log_text: bool = False,
        table_rows: Annotated[int, Ge(0)] = 50,
        init_seconds: Annotated[float, Gt(0)] = 30.0,
        finish_seconds: Annotated[float, Ge(0)] = 60.0,
    ) -> None:
        self._project, self._entity, self._group, self._job_type = project, entity, group, job_type
        self._tags, self._mode, self._init_seconds = tags, mode, init_seconds
        self.log_text, self.table_rows, self.finish_seconds = log_text, table_rows, finish_seconds
        self._run: wandb.Run | None = None

    def start(self, run: TrackedRun) -> None:
        """Start or continue the W&B run; it is stored offline if the server cannot be reached."""
        wished = os.environ.get("WANDB_MODE", "")
        if wished == "disabled":
            say("WANDB_MODE is 'disabled': nothing is mirrored to W&B")
            return
        offline = wished in ("offline", "dryrun") or (self._mode == "offline" and wished != "online")
        if self._mode == "auto" and not offline and not has_key():
            say(
                "wandb has no key: writing offline files into the run folder "
                "(use wandb login, or wandb sync afterwards)"
            )
            offline = True
        try:
            self._run = self._open(run, offline=offline)
        except Exception as error:
            if offline:
                raise
            say(f"wandb cannot be reached ({error}); writing offline files into the run folder")
            wandb.teardown()  # its service still has the run id of the failed attempt, and would refuse it
            self._run = self._open(run, offline=True)

    def _open(self, run: TrackedRun, *, offline: bool) -> wandb.Run:
        if wandb.run is not None:  # left open by a run that failed in this process; both would be mixed
            say(f"closing the W&B run {wandb.run.id} that was still open in this process")
            wandb.run.finish()
        opened = wandb.init(
            project=self._project,
            entity=self._entity or None,
            name=run.name,
            group=self._group or run.group,
            job_type=self._job_type,
            tags=list(self._tags),
            dir=str(run.folder),
            id=self._run_id(run),
            resume="allow",
            mode="offline" if offline else "online",
            config=run.description,
            settings=self._settings(),
        )
        opened.define_metric(_STEP)
        opened.define_metric("*", step_metric=_STEP, step_sync=True)
        return opened

    def _settings(self) -> wandb.Settings:
        settings: dict[str, Any] = {
            "init_timeout": self._init_seconds,
            "silent": True,
            "console": "off",  # the output of the process is not sent
            "disable_code": True,
        }
        newer = {
            "finish_timeout": self.finish_seconds,
            # W&B's process dies with ours and loses what it has not written: 15 s of rows by default.
            "x_transaction_log_flush_interval": 1.0,
        }
        settings |= {name: value for name, value in newer.items() if name in wandb.Settings.model_fields}
        return wandb.Settings(**settings)

    def _run_id(self, run: TrackedRun) -> str:
        path = run.folder / _ID_FILE
        if path.exists():
            stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return str(stored["id"])
        # The agent of a sweep has chosen the id of the run it starts.
        run_id = os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
        write_json(path, {"id": run_id, "project": self._project, "entity": self._entity})
        return run_id

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log values measured at `step`."""
        self._log(dict(metrics), step)

    def _log(self, values: dict[str, Any], step: int) -> None:
        """Add to the row of `step`.

        W&B's step is the optimizer step, so the attempts of a resumed run merge, online or by `wandb sync`. Steps that
        are logged again after a crash have the same values, because an exact resumption computes the same.
        """
        if self._run is not None:
            self._run.log({**values, _STEP: step}, step=step)

    def show_neighbours(self, examples: Sequence[NeighbourExample], step: int) -> None:
        """Log a table of neighbours; text only with `log_text`."""
        if self._run is None:
            return
        columns = [*NEIGHBOUR_COLUMNS, *(TEXT_COLUMNS if self.log_text else ())]
        rows = [[_cell(getattr(example, column)) for column in columns] for example in examples[: self.table_rows]]
        self._log({"validation/neighbours": wandb.Table(columns=columns, data=rows)}, step)

    def show_report(self, tables: Sequence[ReportTable], step: int) -> None:
        """Log the tables of the report."""
        for table in tables if self._run is not None else ():
            rows = [list(row) for row in table.rows]
            self._log({f"report/{table.name}": wandb.Table(columns=list(table.columns), data=rows)}, step)

    def finish(self, summary: Summary) -> None:
        """Log the report's main numbers and the path of the last checkpoint, and close."""
        if self._run is None:
            return
        self._run.summary.update(summary)
        if (path := Path(str(summary.get("checkpoint/path", "")))).is_absolute() and path.exists():
            metadata = {key: value for key, value in summary.items() if key.startswith("checkpoint/")}
            checkpoint = wandb.Artifact(f"checkpoint-{self._run.id}", type="model", metadata=metadata)
            # A reference to the file: its bytes are large and may be private.
            checkpoint.add_reference(path.as_uri(), checksum=False)
            self._run.log_artifact(checkpoint)
        self._run.finish()
        self._run = None


def _cell(value: object) -> object:
    """Return a value that a W&B table accepts: JSON has no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
