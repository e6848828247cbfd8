"""What an option may be: annotations as data, values held against them, one sentence for one complaint.

`from retroflow.options import checked_options` checks a class where it is made (docs/decisions/0008).
"""

from retroflow.options.checked import bind, checked_options
from retroflow.options.types import Seed

__all__ = ["Seed", "bind", "checked_options"]
