"""Lightning's view of `Ranks`."""

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment

from retroflow.distributed.ranks import Ranks


class RanksEnvironment(ClusterEnvironment):
    """Passes the facts of `Ranks` to Lightning, the same for every launcher.

    Lightning's own classes read the environment again, requeue SLURM jobs and start processes.
    """

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self._ranks = ranks

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self._ranks.main_address

    @property
    def main_port(self) -> int:
        return self._ranks.main_port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self._ranks.world_size

    def set_world_size(self, size: int) -> None:
        """Do nothing: the launcher has decided."""

    def global_rank(self) -> int:
        return self._ranks.rank

    def set_global_rank(self, rank: int) -> None:
        """Do nothing: the launcher has decided."""

    def local_rank(self) -> int:
        return self._ranks.local_rank

    def node_rank(self) -> int:
        return self._ranks.rank // self._ranks.local_size
