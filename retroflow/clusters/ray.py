"""Jobs on Ray; the only file that imports ray."""

import logging
import os
import re
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from retroflow.clusters.cluster import Ended, Job, Running, run_job
from retroflow.clusters.options import check_keys
from retroflow.errors import UsageError, words_of

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when ray is imported; a local cluster reports to nobody

import ray

CONNECT_SECONDS = 10.0
OPTIONS = ("address", "num_cpus", "num_gpus", "memory_gb", "resources")


class RayCluster:
    """A `retroflow.clusters.cluster.Cluster` of Ray: an existing one, or one on this machine for as long as this lasts.

    Args:
        options: `address` of a cluster ("auto", "host:6379"; by default RAY_ADDRESS, else a cluster of this machine),
            and what a job needs: `num_cpus` (1), `num_gpus`, `memory_gb`, `resources` (a mapping).

    Raises:
        UsageError: an option that there is not, no cluster at the address, or a local one without what a job needs.
    """

    name = "ray"

    def __init__(self, options: Mapping[str, Any]) -> None:
        check_keys(self.name, options, OPTIONS)
        needs = {key: value for key, value in options.items() if key not in ("address", "memory_gb")}
        if "memory_gb" in options:
            needs["memory"] = int(_number("memory_gb", options["memory_gb"]) * 2**30)
        address = str(options.get("address") or os.environ.get("RAY_ADDRESS") or "")
        if address and (there := re.fullmatch(r"(?:ray://)?(.+):(\d+)", address)):
            _check_reachable(address, there[1], int(there[2]))
        try:
            # What failed is submitted again by us, with its log: Ray must not do so by itself.
            self._task = ray.remote(max_retries=0, max_calls=1, **{"num_cpus": 1} | needs)(run_job)
            dashboard = None if address else False  # an address allows no answer
            ray.init(address or None, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=dashboard)
        except (ConnectionError, TypeError, ValueError, RuntimeError) as error:
            raise UsageError(f"--on ray: {words_of(error).strip()}") from error
        self._check_needs(needs, is_local=not address)

    def submit(self, jobs: Sequence[Job]) -> list[Running]:
        """As in `Cluster`."""
        return [_Running(self._task.remote(job)) for job in jobs]

    def close(self) -> None:
        """As in `Cluster`; a local cluster ends."""
        ray.shutdown()

    def _check_needs(self, needs: Mapping[str, Any], *, is_local: bool) -> None:
        """Refuse jobs that a local cluster would never start; another one may grow."""
        untyped: Any = ray
        there: Mapping[str, float] = untyped.cluster_resources()
        wanted = {"CPU": needs.get("num_cpus", 1), "GPU": needs.get("num_gpus", 0), "memory": needs.get("memory", 0)}
        lacking = [key for key, amount in wanted.items() if amount > there.get(key, 0)]
        if is_local and lacking:
            self.close()
            raise UsageError(
                f"--on ray: a job needs {wanted[lacking[0]]:g} {lacking[0]}, and this machine has "
                f"{there.get(lacking[0], 0):g}; ask for less, or name a cluster: --on-option address=HOST:PORT."
            )


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise UsageError(f'--on-option: {key} is "{value}"; allowed: a number above 0, such as {key}=8.')
    return value


def _check_reachable(address: str, host: str, port: int) -> None:
    """Refuse an address where nobody listens: Ray itself would try for many minutes."""
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise UsageError(
            f"--on ray: nothing answers at the address {address} ({error}). Start a cluster there "
            "(`ray start --head`), or leave the address out to use this machine."
        ) from error


class _Running:
    def __init__(self, result: "ray.ObjectRef[int]") -> None:
        self._result = result

    def ended(self) -> Ended | None:
        ready, _ = ray.wait([self._result], timeout=0)
        if not ready:
            return None
        try:
            return Ended(ray.get(self._result))
        except ray.exceptions.RayError as error:
            return Ended(None, f"{type(error).__name__}: {words_of(error).strip().splitlines()[0]}")

    def cancel(self) -> None:
        ray.cancel(self._result, force=True)
