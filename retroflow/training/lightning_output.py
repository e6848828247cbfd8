"""Hide Lightning's tips, device lists and known warnings; its errors are still raised."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from retroflow.distributed.ranks import Ranks

_LOGGERS = ("lightning.pytorch", "lightning.fabric", "lightning")


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Let Lightning log errors only, for a while."""
    before = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            # Lightning advises more data workers, which do not pay off for memory-mapped batches, and reads
            # attributes that torch has deprecated.
            warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=r".*LeafSpec.*")
            warnings.filterwarnings("ignore", message=r".*lr_scheduler.step.*before.*optimizer.step.*")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def only_rank_zero_prints(ranks: Ranks) -> Iterator[None]:
    """Let only rank 0 print; errors of the others still reach their stderr."""
    if ranks.is_first:
        yield
        return
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        yield
