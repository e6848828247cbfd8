"""A linear layer that keeps what its input was made of, instead of its input.

Norms and activation functions cost next to nothing beside the matrix product that follows them, and yet autograd
keeps their results for it. Computing them again in the backward pass saves a third of a step's activations
(selective recomputation; Korthikanti et al. 2022, arXiv:2205.05198, section 5).

Shapes: ... any leading axes, d features of x, i inputs and o outputs of the layer.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def lean_linear(linear: nn.Linear, before: Callable[..., Tensor], x: Tensor, *parameters: Tensor) -> Tensor:
    """Compute linear(before(x, *parameters)), keeping x but not before's result for the backward pass.

    Args:
        linear: a layer without a bias.
        before: makes the layer's input float [..., i], in memory of its own; deterministic, and its derivative does not
            ask for its result, which the backward pass writes over.
        x: float [..., d].
        parameters: of `before`, for which it has derivatives, too.

    Returns:
        float [..., o].
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():  # a compiler decides by itself what to keep
        out: Tensor = linear(before(x, *parameters))
    else:
        out = _LeanLinear.apply(before, linear.weight.to(product_dtype(linear.weight)), x, *parameters)
    return out


def product_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of matrix products with weight float [o, i]: autocast's, outside of it the weight's own."""
    device = weight.device.type
    is_cast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if is_cast else weight.dtype


class _LeanLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, before: Callable[..., Tensor], weight: Tensor, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.before = before
        ctx.save_for_backward(weight, x, *parameters)
        return F.linear(before(x, *parameters).to(weight.dtype), weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, *sources = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted (create_graph)
            out = F.linear(ctx.before(*sources).to(weight.dtype), weight)
            return None, *torch.autograd.grad(out, (weight, *sources), gradient, create_graph=True)
        with torch.enable_grad():
            sources = [source.detach().requires_grad_() for source in sources]
            entering = ctx.before(*sources).to(weight.dtype)
        rows, of_rows = entering.detach().flatten(0, -2), gradient.flatten(0, -2)
        to_weight = of_rows.mT @ rows if ctx.needs_input_grad[1] else None
        torch.mm(of_rows, weight, out=rows)  # the layer's input has served: its gradient takes its place
        return None, to_weight, *torch.autograd.grad(entering, sources, rows.view(entering.shape))
