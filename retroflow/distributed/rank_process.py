"""What a rank runs that `launching.py` starts: a function, with the order and the outcome in inherited files."""

import faulthandler
import importlib
import os
import pickle
import sys
import traceback
from collections.abc import Callable
from typing import Any

from retroflow.distributed.parent_death import end_with_parent
from retroflow.distributed.ranks import LAUNCHED
from retroflow.distributions import shield_libraries


def main(order_file: int, outcome_file: int) -> None:
    """Carry out the order and exit.

    Args:
        order_file: descriptor of a pickled `Order`.
        outcome_file: descriptor for a pickled `Outcome`.
    """
    faulthandler.enable()
    end_with_parent(int(os.environ[LAUNCHED]))
    shield_libraries()
    from retroflow.distributed.launching import Order, Outcome
    from retroflow.distributed.ranks import LostRanks
    from retroflow.errors import OutOfMemory, RankEnded, RetroflowError, is_out_of_memory

    code, at_once = 0, False
    try:
        # All ranks share the file's position, so it is read by offset.
        order: Order = pickle.loads(os.pread(order_file, os.fstat(order_file).st_size, 0))
        result = _function(order.target)(
            order.recipe,
            resume=order.resume,
            prepared=order.prepared,
            show=order.show,
            ignore_memory=order.ignore_memory,
        )
        outcome = Outcome(result=result)
    except RankEnded as error:
        outcome, code = Outcome(), error.code if isinstance(error.code, int) else 1
    except RetroflowError as error:
        outcome, code = Outcome(error=(type(error), str(error))), error.exit_code
        at_once = isinstance(error, LostRanks)
    except BaseException as error:
        outcome, code, at_once = Outcome(crash=traceback.format_exc()), 1, True
        if is_out_of_memory(error):
            outcome = Outcome(error=(OutOfMemory, str(error)))
    with os.fdopen(outcome_file, "wb") as file:
        pickle.dump(outcome, file)
    if at_once:
        sys.stderr.flush()
        os._exit(code)  # libraries may wait at a regular exit for ranks that are gone
    sys.unraisablehook = lambda failed: None  # as at the end of a command (cli/console.py)
    sys.exit(code)


def _function(target: str) -> Callable[..., Any]:
    module, _, name = target.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
