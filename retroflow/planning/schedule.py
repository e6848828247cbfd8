"""The learning rate as a function of the step alone."""

import math


def learning_rate_factor(step: int, *, warmup_steps: int, max_steps: int, final_share: float) -> float:
    """Return the factor of the highest learning rate for the step after `step` finished ones.

    Linear up to 1 over `warmup_steps`, then a cosine down to `final_share` at `max_steps`. Both ends come from the
    recipe: Lightning's estimate of the number of steps makes it drop loader state on resume (lightning issue 20550).
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    return final_share + (1.0 - final_share) * 0.5 * (1.0 + math.cos(math.pi * progress))
