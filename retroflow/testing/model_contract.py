"""ModelContract: what every retrieval model owes, as a pytest class to subclass.

    class TestMyModel(ModelContract):
        def make_config(self): return MyConfig(vocabulary_size=64, chunk_length=4, width=32)

One test a rule, `test_rule[no_token_sees_a_later_one]`; the rules are in `retroflow.testing.model_rules`, and
docs/writing-a-model.md goes through them.
"""

from retroflow.protocols import ModelConfig
from retroflow.testing import model_rules
from retroflow.testing.contract import Contract
from retroflow.testing.model_case import ModelCase


class ModelContract(Contract):
    """Subclass it as a class whose name starts with Test, and override `make_config`."""

    rule_modules = (model_rules,)
    case_class = ModelCase

    def make_config(self) -> ModelConfig:
        """Return the configuration of a small model, always the same; called often, in other processes too.

        A chunk of 4 tokens and a width of 16 are enough. With dropout: the rules switch it off.
        """
        raise NotImplementedError("override make_config() in your subclass of ModelContract")
