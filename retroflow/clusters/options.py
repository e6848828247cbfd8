"""The options of `--on`: which cluster, how many shards, and what a job needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from retroflow.clusters.cluster import Cluster
from retroflow.errors import MissingExtraError, UsageError
from retroflow.pipeline.sharing import MOST_SHARDS

CLUSTERS = ("slurm", "ray", "local")


@dataclass(frozen=True)
class Shares:
    """How `prepare` is divided over a cluster.

    Attributes:
        on: the cluster.
        count: number of shards, 1 to MOST_SHARDS; more than the cluster runs at once are no harm.
        retries: how often a failed job is submitted again, within one stage.
        options: of the cluster, by name (docs/preparing.md).
    """

    on: Literal["slurm", "ray", "local"]
    count: int
    retries: int = 2
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the values; the messages speak the flags of `retroflow prepare`."""
        if self.on not in CLUSTERS:
            raise UsageError(f'--on is "{self.on}"; allowed: {", ".join(CLUSTERS)}.')
        if not 1 <= self.count <= MOST_SHARDS:
            raise UsageError(f"--shares is {self.count}; allowed: 1 to {MOST_SHARDS}.")
        if self.retries < 0:
            raise UsageError(f"--retries is {self.retries}; allowed: 0 or more.")


def shares_of_flags(
    on: str | None, count: int | None, retries: int | None, words: Sequence[str], *, alone: bool
) -> Shares | None:
    """Return what the flags of `retroflow prepare` say; None without `--on`.

    Args:
        on, count, retries, words: of --on, --shares, --retries and --on-option; None or empty if not given.
        alone: none of --shard, --merge, --wait and --step is given.

    Raises:
        UsageError: flags that do not fit together, or a bad value.
    """
    if on is None:
        given = {"--shares": count is not None, "--retries": retries is not None, "--on-option": bool(words)}
        without = [flag for flag, is_given in given.items() if is_given]
        if without:
            raise UsageError(f"{without[0]} is given without --on, which it is for; add --on slurm, ray or local.")
        return None
    if not alone:
        raise UsageError("--on makes the shards itself; leave out --shard, --merge, --wait and --step.")
    if count is None:
        raise UsageError(
            f"--on {on} needs the number of shards: --shares N, such as the number of jobs that run at once."
        )
    options = parse_options(words)
    return Shares(on, count, options=options) if retries is None else Shares(on, count, retries, options)  # type: ignore[arg-type]


def parse_options(words: Sequence[str]) -> dict[str, Any]:
    """Parse KEY=VALUE words, each value as YAML.

    Raises:
        UsageError: a word is something else.
    """
    options = {}
    for word in words:
        key, equals, value = word.partition("=")
        try:
            if not (key and equals):
                raise ValueError
            options[key] = yaml.safe_load(value)
        except (ValueError, yaml.YAMLError):
            raise UsageError(f'--on-option is "{word}"; allowed: KEY=VALUE, such as timeout_min=240.') from None
    return options


def check_keys(name: str, options: Mapping[str, Any], allowed: Sequence[str]) -> None:
    """Refuse an option that a cluster does not have.

    Raises:
        UsageError: there is one.
    """
    unknown = [key for key in options if key not in allowed]
    if unknown:
        raise UsageError(f'--on-option: --on {name} has no option "{unknown[0]}"; allowed: {", ".join(allowed)}.')


def open_cluster(shares: Shares, folder: Path) -> Cluster:
    """Open a cluster.

    Args:
        shares: which one, and its options.
        folder: for files of the library.

    Raises:
        MissingExtraError: its library is not installed.
        UsageError: it cannot be used from here, or has no such option.
    """
    extra = "ray" if shares.on == "ray" else "slurm"
    try:
        if shares.on == "ray":
            from retroflow.clusters.ray import RayCluster

            return RayCluster(shares.options)
        from retroflow.clusters.slurm import SubmititCluster
    except ModuleNotFoundError as error:
        library = "ray" if extra == "ray" else "submitit"
        if (error.name or "").partition(".")[0] != library:
            raise
        raise MissingExtraError(
            f'--on {shares.on}: needs {library}. Install it with: pip install "retroflow[{extra}]"'
        ) from error
    return SubmititCluster(shares.on, shares.options, folder)
