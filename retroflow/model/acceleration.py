"""The same model with less memory and time: what the backward pass can cheaply compute again is not kept for it.

`accelerate` swaps the classes of a model's layers for the ones below. Names of parameters, state dicts and results
stay, and the model itself reads like the paper. Norms and activation functions cost next to nothing beside the matrix
product that follows them, and yet autograd keeps their results for it: computing them again saves a third of a step's
activations (selective recomputation; Korthikanti et al. 2022, arXiv:2205.05198, section 5). Measurements:
docs/decisions/0012.

Private parts of torch are used here alone (and in devices.py, to ask what a CPU can do).

Shapes: ... any leading axes, d features of x, i inputs and o outputs of a linear layer.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retroflow.model.attention import Attend
from retroflow.model.layers import RMS_EPSILON, RMSNorm
from retroflow.model.positions import Rotary, plain_turn

_NORM_DTYPES = (torch.float32, torch.float64)
FEW_KEYS = 128
"""Up to so many keys our backward pass of attention is faster than torch's (docs/decisions/0012)."""


def accelerate(model: nn.Module) -> None:
    """Let norms, GELUs, the linear layers that follow them, rotary positions and attention cost less.

    Args:
        model: changed in place. Layers of classes of their own and linear layers with a bias stay as they are.
    """
    lean: dict[type[nn.Module], type[nn.Module]] = {
        RMSNorm: _LeanRMSNorm,
        nn.GELU: _LeanGELU,
        nn.Linear: _LeanLinear,
        Rotary: _LeanRotary,
        Attend: _FastAttend,
    }
    for module in model.modules():
        if not isinstance(module, nn.Linear) or module.bias is None:
            module.__class__ = lean.get(type(module), type(module))


def is_traced_or_transformed() -> bool:
    """Whether plain operations are needed instead of functions with a backward pass of their own.

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


def product_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of matrix products with weight float [o, i]: autocast's, outside of it the weight's own."""
    device = weight.device.type
    is_cast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    # Autocast leaves float64 alone.
    return torch.get_autocast_dtype(device) if is_cast and weight.dtype != torch.float64 else weight.dtype


class _Origin(NamedTuple):
    """How a tensor was made, for the layer that takes it: `function(*inputs)`.

    Attributes:
        version: torch's count of changes of the tensor in place, when it was made.
    """

    function: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    version: int


def _with_origin(out: Tensor, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Let a linear layer know how its input was made; any other use of it loses the note and works as ever.

    Args:
        out: float [..., i], what the function gave.
        function: deterministic; its derivative does not need its result, which a backward pass writes over.
        inputs: each float [...].
    """
    if torch.is_grad_enabled() and not is_traced_or_transformed():
        cast(Any, out).origin = _Origin(function, inputs, out._version)
    return out


class _LeanRMSNorm(RMSNorm):
    """On CPUs also in half the time: torch has no kernel for it there but a chain of operations."""

    def forward(self, x: Tensor) -> Tensor:
        return _with_origin(_rms_norm(x, self.weight), _rms_norm, x, self.weight)


def _rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    weight = weight.to(x.dtype)
    if x.device.type == "cpu" and x.dtype in _NORM_DTYPES and not is_traced_or_transformed():
        out: Tensor = _RMSNormFunction.apply(x, weight)
        return out
    return _plain_rms_norm(x, weight)


def _plain_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, RMS_EPSILON)


class _RMSNormFunction(torch.autograd.Function):
    """Keeps x once, and 1 / rms(x); torch keeps x and the normalised x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        inverse = torch.rsqrt(torch.linalg.vector_norm(x, dim=-1, keepdim=True) ** 2 / x.shape[-1] + RMS_EPSILON)
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if needs_plain_backward(gradient):
            return tuple(differentiate(_plain_rms_norm, ctx.saved_tensors[:2], gradient))
        x, weight, inverse = ctx.saved_tensors
        # As few passes over memory, and as few tensors, as there can be: on CPUs these are all that costs.
        products = gradient * x
        to_weight = torch.mv(products.reshape(-1, x.shape[-1]).mT, inverse.flatten())
        projection = (products @ weight)[..., None] * (inverse**3 / -x.shape[-1])
        return torch.mul(gradient, weight, out=products).mul_(inverse).addcmul_(x, projection), to_weight


class _LeanGELU(nn.GELU):
    def forward(self, x: Tensor) -> Tensor:
        return _with_origin(super().forward(x), super().forward, x)


class _LeanLinear(nn.Linear):
    """Keeps what its input was made of, if that is known, instead of its input."""

    def forward(self, x: Tensor) -> Tensor:
        is_plain = is_traced_or_transformed() or not torch.is_grad_enabled()
        origin: _Origin | None = None if is_plain else vars(x).get("origin")
        if origin is None or origin.version != x._version:
            return super().forward(x)
        weight = self.weight.to(product_dtype(self.weight))
        out: Tensor = _LinearFunction.apply(x.detach(), origin.function, weight, *origin.inputs)
        return out


class _LinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, entering: Tensor, before: Callable[..., Tensor], weight: Tensor, *sources: Tensor) -> Tensor:
        ctx.before = before
        ctx.save_for_backward(weight, *sources)
        return F.linear(entering.to(weight.dtype), weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if needs_plain_backward(gradient):
            return None, None, *differentiate(partial(_plain_linear, ctx.before), ctx.saved_tensors, gradient)
        weight, *sources = ctx.saved_tensors
        with torch.enable_grad():
            sources = [source.detach().requires_grad_() for source in sources]
            entering = ctx.before(*sources).to(weight.dtype)
        rows, of_rows = entering.detach().flatten(0, -2), gradient.flatten(0, -2)
        to_weight = of_rows.mT @ rows if ctx.needs_input_grad[2] else None
        torch.mm(of_rows, weight, out=rows)  # the layer's input has served: its gradient takes its place
        return None, None, to_weight, *torch.autograd.grad(entering, sources, rows.view(entering.shape))


def _plain_linear(before: Callable[..., Tensor], weight: Tensor, *sources: Tensor) -> Tensor:
    return F.linear(before(*sources).to(weight.dtype), weight)


class _LeanRotary(Rotary):
    """Turns in two passes and keeps nothing of x."""

    def turn(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        if is_traced_or_transformed():
            return super().turn(x, cosine, sine)
        out: Tensor = _TurnFunction.apply(x, cosine, sine)
        return out


class _TurnFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        turned = torch.empty_like(x, memory_format=torch.contiguous_format)
        (left, right), (new_left, new_right) = x.chunk(2, dim=-1), turned.chunk(2, dim=-1)
        torch.mul(left, cosine, out=new_left).addcmul_(right, sine, value=-1)
        torch.mul(right, cosine, out=new_right).addcmul_(left, sine)
        return turned

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        turn = plain_turn if needs_plain_backward(gradient) else _TurnFunction.apply
        return turn(gradient, cosine, -sine), None, None


class _FastAttend(Attend):
    """torch's attention with another backward pass where its own is slow: on CPUs, in bfloat16, to few keys."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        causal: bool = False,
        scale: float | None = None,
    ) -> Tensor:
        is_slow = query.device.type == "cpu" and query.dtype == torch.bfloat16 and key.shape[2] <= FEW_KEYS
        is_slow = is_slow and not causal and bias is None and (mask is None or mask.ndim == 4)
        # The kernel below reads beyond the memory of anything else.
        is_plain = query.shape[:2] == key.shape[:2] and all(each.stride(-1) == 1 for each in (query, key, value))
        if not (is_slow and is_plain) or not torch.is_grad_enabled() or is_traced_or_transformed():
            return super().forward(query, key, value, mask=mask, bias=bias, causal=causal, scale=scale)
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        out: Tensor = _AttendFunction.apply(query, key, value, mask, scale)
        return out


class _AttendFunction(torch.autograd.Function):
    """Goes back by plain matrix products, row after row of the batch, so that the weights of one stay in the cache.

    The logits are computed in float32 and never rounded; as in torch's kernel the weights are, for their product with
    bfloat16 values.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        bias = None
        if mask is not None:
            bias = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, float("-inf"))
        out, normalisers = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, attn_mask=bias, scale=scale
        )
        ctx.save_for_backward(query, key, value, out, normalisers)
        ctx.mask, ctx.scale = mask, scale
        return cast(Tensor, out)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, normalisers = ctx.saved_tensors
        if needs_plain_backward(gradient):
            plain = partial(F.scaled_dot_product_attention, attn_mask=ctx.mask, scale=ctx.scale)
            return *differentiate(plain, (query, key, value), gradient), None, None
        to_query, to_key, to_value = (_empty_as_projected(each) for each in (query, key, value))
        for row in range(query.shape[0]):
            q, k, v, g = query[row], key[row], value[row], gradient[row]
            weights = torch.matmul(q.float() * ctx.scale, k.float().mT).sub_(normalisers[row][..., None]).exp_()
            if ctx.mask is not None:
                weights.masked_fill_(~ctx.mask[row if ctx.mask.shape[0] > 1 else 0], 0.0)
            of_row = (g.float() * out[row]).sum(-1, keepdim=True)
            to_logits = torch.matmul(g.float(), v.float().mT).sub_(of_row).mul_(weights).mul_(ctx.scale).to(q.dtype)
            to_query[row] = to_logits @ k
            to_key[row] = to_logits.mT @ q
            to_value[row] = weights.to(q.dtype).mT @ g
        return to_query, to_key, to_value, None, None


def _empty_as_projected(x: Tensor) -> Tensor:
    """Make float [b, h, t, w] that lies in memory as [b, t, h, w], as the projections do."""
    return torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
