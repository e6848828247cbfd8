"""The `custom_generate` of transformers, for those who name the loop that retrieves."""

from typing import Any

from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.utils import GENERATION_MODES_MAPPING

from retroflow.generation.retrieved import LiveRetriever
from retroflow.integrations.transformers_model import RetroflowForCausalLM


def retroflow_generate(
    model: RetroflowForCausalLM,
    input_ids: Tensor,
    *,
    generation_config: GenerationConfig,
    database: LiveRetriever | None = None,
    **given: Any,
) -> Any:
    """Generate with retrieval, as `generate(..., custom_generate=retroflow_generate, database=database)` asks for.

    `generate(..., database=database)` does the same.

    Args:
        model: any of ours.
        input_ids: int64 [b, n].
        generation_config: what decides between sampling, beams and prompt lookup.
        database: as in `RetroflowForCausalLM.forward`; None for retrieval off.
        given: what `generate` hands to its own kinds of decoding.

    Returns:
        What `generate` does.
    """
    decode = getattr(model, GENERATION_MODES_MAPPING[generation_config.get_generation_mode()])
    return decode(input_ids, generation_config=generation_config, database=database, **given)
