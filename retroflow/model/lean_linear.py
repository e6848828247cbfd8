"""A linear layer that keeps what its input was made of, instead of its input.

Norms and activation functions cost next to nothing beside the matrix product that follows them, and yet autograd
keeps their results for it. Computing them again in the backward pass saves a third of a step's activations
(selective recomputation; Korthikanti et al. 2022, arXiv:2205.05198, section 5).

Shapes: ... any leading axes, d features of x, i inputs and o outputs of the layer.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def lean_linear(linear: nn.Linear, before: Callable[..., Tensor], x: Tensor, *parameters: Tensor) -> Tensor:
    """Compute linear(before(x, *parameters)), keeping x but not before's result for the backward pass.

    Args:
        linear: a layer; one with a bias, of a class of its own or with hooks after it is called as it is.
        before: makes the layer's input float [..., i], in memory of its own; deterministic, and its derivative does not
            ask for its result, which the backward pass writes over.
        x: float [..., d], of two axes or more.
        parameters: of `before`, for which it has derivatives, too.

    Returns:
        float [..., o].
    """
    is_plain = type(linear) is nn.Linear and linear._parameters["bias"] is None and not linear._forward_hooks
    if not is_plain or not torch.is_grad_enabled() or is_traced_or_transformed():
        out: Tensor = linear(before(x, *parameters))
    else:
        out = _LeanLinear.apply(before, linear.weight.to(product_dtype(linear.weight)), x, *parameters)
    return out


def product_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of matrix products with weight float [o, i]: autocast's, outside of it the weight's own."""
    device = weight.device.type
    is_cast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    # Autocast leaves float64 alone.
    return torch.get_autocast_dtype(device) if is_cast and weight.dtype != torch.float64 else weight.dtype


def is_traced_or_transformed() -> bool:
    """Whether plain operations are wanted instead of functions with a backward pass of their own.

    By a compiler, which decides by itself what to keep, and by forward-mode derivatives and the transforms of
    `torch.func`, which cannot look into such functions.
    """
    is_transformed = torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
    return torch.compiler.is_compiling() or is_transformed


def needs_plain_backward(gradient: Tensor) -> bool:
    """Whether a backward pass from gradient float [...] is itself to be differentiated (create_graph) or batched."""
    is_batched = torch._C._functorch.is_legacy_batchedtensor(gradient)
    return torch.is_grad_enabled() or is_traced_or_transformed() or is_batched


def differentiate(plain: Callable[..., Tensor], inputs: Sequence[Tensor], gradient: Tensor) -> list[Tensor | None]:
    """Go back through plain operations, where a backward pass is itself to be differentiated or batched.

    Args:
        plain: what was computed, of the inputs.
        inputs: each float [...]; it gets its gradient, or None if it needs none.
        gradient: float [...], of the result.

    Returns:
        float [...] or None for each of the inputs, in its shape.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases, since one input may be made of another: tied embeddings are the output matrix, and far below hidden.
        inputs = [each.view_as(each) for each in inputs]
        out = plain(*inputs)
    wanted = [each for each in inputs if each.requires_grad]
    found = iter(torch.autograd.grad(out, wanted, gradient, create_graph=again))
    return [next(found) if each.requires_grad else None for each in inputs]


class _LeanLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, before: Callable[..., Tensor], weight: Tensor, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.before = before
        ctx.save_for_backward(weight, x, *parameters)
        return _plain(before, weight, x, *parameters)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if needs_plain_backward(gradient):
            return None, *differentiate(partial(_plain, ctx.before), ctx.saved_tensors, gradient)
        weight, *sources = ctx.saved_tensors
        with torch.enable_grad():
            sources = [source.detach().requires_grad_() for source in sources]
            entering = ctx.before(*sources).to(weight.dtype)
        rows, of_rows = entering.detach().flatten(0, -2), gradient.flatten(0, -2)
        to_weight = of_rows.mT @ rows if ctx.needs_input_grad[1] else None
        torch.mm(of_rows, weight, out=rows)  # the layer's input has served: its gradient takes its place
        return None, to_weight, *torch.autograd.grad(entering, sources, rows.view(entering.shape))


def _plain(before: Callable[..., Tensor], weight: Tensor, x: Tensor, *parameters: Tensor) -> Tensor:
    return F.linear(before(x, *parameters).to(weight.dtype), weight)
