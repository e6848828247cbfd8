"""What a rank runs that `launching.py` starts: a task, read from one inherited file, its result written to another."""

import faulthandler
import os
import pickle
import sys
import traceback

from retroflow.distributed.parent_death import end_with_parent
from retroflow.distributed.ranks import LAUNCHED
from retroflow.distributions import shield_libraries


def main(task_file: int, result_file: int) -> None:
    """Run the task and exit.

    Args:
        task_file: descriptor of a pickled function without parameters.
        result_file: descriptor for a pickled `RankResult`.
    """
    faulthandler.enable()
    end_with_parent(int(os.environ[LAUNCHED]))
    shield_libraries()
    from retroflow.distributed.launching import RankResult
    from retroflow.distributed.ranks import LostRanks
    from retroflow.errors import OutOfMemory, RankEnded, RetroflowError, is_out_of_memory

    code, at_once = 0, False
    try:
        # All ranks have the same file position, so it is read by offset.
        task = pickle.loads(os.pread(task_file, os.fstat(task_file).st_size, 0))
        result = RankResult(task())
    except RankEnded as error:
        result, code = RankResult(), error.code if isinstance(error.code, int) else 1
    except RetroflowError as error:
        result, code = RankResult(error=(type(error), str(error))), error.exit_code
        at_once = isinstance(error, LostRanks)
    except BaseException as error:
        result, code, at_once = RankResult(crash=traceback.format_exc()), 1, True
        if is_out_of_memory(error):
            result = RankResult(error=(OutOfMemory, str(error)))
    with os.fdopen(result_file, "wb") as file:
        pickle.dump(result, file)
    if at_once:
        sys.stderr.flush()
        os._exit(code)  # at a regular exit libraries may wait for ranks that have ended
    sys.unraisablehook = lambda failed: None  # as at the end of a command (cli/console.py)
    sys.exit(code)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
