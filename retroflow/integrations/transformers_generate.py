"""The `custom_generate` of transformers, for those who name the loop that retrieves."""

from typing import Any, Unpack

from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.utils import GENERATION_MODES_MAPPING

from retroflow.integrations.transformers_arguments import LoopArguments


def retroflow_generate(
    model: GenerationMixin,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **inputs: Unpack[LoopArguments],
) -> Any:
    """Generate with retrieval, as `generate(..., custom_generate=retroflow_generate, database=database)` asks for.

    `generate(..., database=database)` does the same.

    Args:
        model: any of ours.
        input_ids: int64 [b, n].
        logits_processor, stopping_criteria: as `generate` makes them.
        generation_config: what decides between sampling, beams and prompt lookup.
        inputs: of `RetroflowForCausalLM.forward`, the database among them, and of the loop, such as a streamer.

    Returns:
        What `generate` does.
    """
    mode = generation_config.get_generation_mode(inputs.get("assistant_model"))
    if mode == GenerationMode.ASSISTED_GENERATION:
        inputs["inputs_tensor"] = input_ids
    return getattr(model, GENERATION_MODES_MAPPING[mode])(
        input_ids,
        logits_processor=logits_processor,
        stopping_criteria=stopping_criteria,
        generation_config=generation_config,
        **inputs,
    )
