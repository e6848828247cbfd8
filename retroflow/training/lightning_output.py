"""Keep Lightning's tips, device lists and known warnings off the screen; its errors still raise."""

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
            # Lightning advises more data workers, which cost more than they bring for memory-mapped batches, and
            # reads attributes that torch has deprecated.
            warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=r".*LeafSpec.*")
            warnings.filterwarnings("ignore", message=r".*lr_scheduler.step.*before.*optimizer.step.*")
            # The encoder returns a view; nothing writes into it in place.
            warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor.*")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def only_rank_zero_prints(ranks: Ranks) -> Iterator[None]:
    """Let rank 0 alone print; what the others raise still reaches their stderr, after this."""
    if ranks.is_first:
        yield
        return
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        yield
