"""The `custom_generate` of transformers, for those who name the loop that retrieves."""

from typing import Any, Unpack

from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.utils import GENERATION_MODES_MAPPING

from retroflow.integrations.transformers_model import GenerationArguments, RetroflowForCausalLM


def retroflow_generate(
    model: RetroflowForCausalLM,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **inputs: Unpack[GenerationArguments],
) -> Any:
    """Generate with retrieval, as `generate(..., custom_generate=retroflow_generate, database=database)` asks for.

    `generate(..., database=database)` does the same.

    Args:
        model: any of ours.
        input_ids: int64 [b, n].
        logits_processor, stopping_criteria: as `generate` makes them.
        generation_config: what decides between sampling, beams and prompt lookup.
        inputs: of `RetroflowForCausalLM.forward`, the database among them.

    Returns:
        What `generate` does.
    """
    decode = getattr(model, GENERATION_MODES_MAPPING[generation_config.get_generation_mode()])
    return decode(
        input_ids,
        logits_processor=logits_processor,
        stopping_criteria=stopping_criteria,
        generation_config=generation_config,
        **inputs,
    )
