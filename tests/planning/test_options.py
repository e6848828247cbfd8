"""Values that do not fit each other are refused with key and value; ranges are in tests/options/test_checked.py."""

import pytest

from retroflow.errors import UsageError
from retroflow.planning.options import TrainerOptions


def test_a_step_is_cut_into_equal_pieces():
    with pytest.raises(UsageError, match=r"trainer.accumulate is 3, which does not divide trainer.batch_size 4"):
        TrainerOptions(batch_size=4, accumulate=3)
