"""Weights & Biases as a mirror of metrics.jsonl, through Lightning's logger."""

import json
import netrc
import os
import secrets
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import wandb
from lightning.pytorch.loggers import WandbLogger

from retroflow.pipeline.progress import say
from retroflow.training.run_folder import write_json
from retroflow.training.trackers import TrackedRun

_ID_FILE = "wandb.json"


def has_key() -> bool:
    """Whether W&B would find credentials here: its environment variables or an entry in the netrc file.

    Asked without wandb's own functions, which prompt or warn, differently from version to version.
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


class WandbTracker:
    """Mirrors a run to W&B; a resumed run continues under its id, which is kept in the run folder.

    Without a key it writes W&B's offline files into the run folder, to be sent later with `wandb sync`.

    Args:
        project: W&B project.
        entity: W&B user or team; empty for the account's default.
        group: runs shown together; empty for the recipe's name.
        job_type: W&B job type.
        tags: labels of the run.
        mode: "online", "offline", or "auto": online if W&B has a key here, else offline.
        init_seconds: how long to wait for W&B's server at the start.
    """

    def __init__(
        self,
        *,
        project: str = "retroflow",
        entity: str = "",
        group: str = "",
        job_type: str = "train",
        tags: tuple[str, ...] = (),
        mode: Literal["auto", "online", "offline"] = "auto",
        init_seconds: float = 30.0,
    ) -> None:
        self._project, self._entity, self._group, self._job_type = project, entity, group, job_type
        self._tags, self._mode, self._init_seconds = tags, mode, init_seconds
        self._logger: WandbLogger | None = None

    def start(self, run: TrackedRun) -> None:
        """Begin, or continue, the W&B run; where the server cannot be reached the run is kept offline."""
        offline = self._mode == "offline" or os.environ.get("WANDB_MODE") == "offline"
        if self._mode == "auto" and not offline and not has_key():
            say(
                "wandb has no key here: writing its offline files into the run folder "
                "(use wandb login, or wandb sync afterwards)"
            )
            offline = True
        try:
            self._logger = self._open(run, offline=offline)
        except Exception as error:
            if offline:
                raise
            say(f"wandb cannot be reached ({error}); writing its offline files into the run folder")
            wandb.teardown()  # its service still holds the run id of the failed attempt, and would refuse it
            self._logger = self._open(run, offline=True)

    def _open(self, run: TrackedRun, *, offline: bool) -> WandbLogger:
        logger = WandbLogger(
            project=self._project,
            entity=self._entity or None,
            name=run.name,
            group=self._group or run.group,
            job_type=self._job_type,
            tags=list(self._tags),
            save_dir=run.folder,
            id=self._run_id(run),
            resume="allow",
            offline=offline,
            config=run.description,
            settings=wandb.Settings(init_timeout=self._init_seconds, silent=True),
        )
        # Steps that are run again after a crash would be dropped by W&B's own step counter; Lightning's logger plots
        # against trainer/global_step, which may repeat.
        _ = logger.experiment
        return logger

    def _run_id(self, run: TrackedRun) -> str:
        path = run.folder / _ID_FILE
        if path.exists():
            stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return str(stored["id"])
        run_id = secrets.token_hex(4)
        write_json(path, {"id": run_id, "project": self._project, "entity": self._entity})
        return run_id

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Mirror values measured at `step`."""
        if self._logger is not None:
            self._logger.log_metrics(metrics, step)

    def finish(self, summary: dict[str, float]) -> None:
        """Mirror the report's headline and close."""
        if self._logger is not None:
            self._logger.experiment.summary.update(summary)
            self._logger.experiment.finish()
            self._logger = None
