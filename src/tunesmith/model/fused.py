"""Norms, rotary embedding, attention's products and gated feed-forward blocks with fewer passes over memory.

transformers' modules stay what they are; their forward is set on the instance where a trial on random numbers shows ours equal.
What a call brings that ours does not compute (a mix of dtypes, autocast) goes to the module's own forward. All is plain torch, but on
a GPU where the kernels of tunesmith.model.kernels_gpu give the same.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tunesmith.model.fused_mlp import ACTIVATIONS, Activation, gated_mlp
from tunesmith.model.kernels import gpu_kernels, try_out
from tunesmith.model.linear import Parts, project
from tunesmith.model.lora import fits, is_known, parts_of

# Their forward is one, but for norms and the window it passes on, which is read at each call: the probe shortens it.
ATTENTIONS: dict[str, Callable[[Any], int | None]] = {
    "LlamaAttention": lambda module: None,
    "MistralAttention": lambda module: getattr(module.config, "sliding_window", None),
    "Qwen2Attention": lambda module: module.sliding_window,
    "Qwen3Attention": lambda module: module.sliding_window,
}


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


class _RmsNorm(torch.autograd.Function):
    """y = w h r with r = (mean(h^2) + eps)^(-1/2) of each row (Zhang & Sennrich, 2019), computed in fp32 or wider.

    With p = dy h: dh = r w dy - h r^3 (p w) / H and dw = p^T r, where p w and p^T r are products of a matrix and a vector.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y: Tensor
        if (own := gpu_kernels(x)) is not None:
            y, r = own.rms_forward(x, weight, eps)
            ctx.save_for_backward(x, weight, r)
            return y
        h = x.to(_wide(x))
        r = torch.linalg.vector_norm(h, dim=-1, keepdim=True).square_().div_(h.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, r)
        y = (h * r).to(x.dtype) * weight
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, r = ctx.saved_tensors
        if (own := gpu_kernels(x)) is not None:
            return *own.rms_backward(x, weight, r, grads[0], ctx.needs_input_grad[1]), None
        wide, width = _wide(x), x.shape[-1]
        h, dy, w = x.to(wide).reshape(-1, width), grads[0].to(wide).reshape(-1, width), weight.to(wide)
        r = r.reshape(-1, 1)
        p = dy * h
        dw = torch.mv(p.t(), r[:, 0]).to(weight.dtype) if ctx.needs_input_grad[1] else None
        along = torch.mv(p, w)[:, None].mul_(r**3).div_(width)
        dx = torch.mul(dy, w, out=p).mul_(r).addcmul_(h, along, value=-1)
        return dx.to(x.dtype).view(x.shape), dw, None


class _Rotary(torch.autograd.Function):
    """q cos + (-q2, q1) sin for q = (q1, q2) (Su et al., 2021); q (1,T,H,D), cos and sin (1,T,1,D)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        if (own := gpu_kernels(q)) is not None and cos.dtype == q.dtype:
            return own.rotary(q, cos, sin)  # type: ignore[no-any-return]
        (q1, q2), (s1, s2) = q.chunk(2, -1), sin.chunk(2, -1)
        out = q * cos
        o1, o2 = out.chunk(2, -1)
        o1.addcmul_(q2, s1, value=-1)
        o2.addcmul_(q1, s2)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        if (own := gpu_kernels(grads[0])) is not None and cos.dtype == grads[0].dtype:
            return own.rotary(grads[0], cos, sin, back=True), None, None
        (d1, d2), (s1, s2) = grads[0].chunk(2, -1), sin.chunk(2, -1)
        dq = grads[0] * cos
        o1, o2 = dq.chunk(2, -1)
        o1.addcmul_(d2, s2)
        o2.addcmul_(d1, s1, value=-1)
        return dq, None, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return w x / sqrt(mean(x^2) + eps) over the last dimension, in x's dtype."""
    return _RmsNorm.apply(x, weight, eps)  # type: ignore[no-any-return]


def _norm(module: Any, own: Any, x: Tensor) -> Tensor:
    if module.weight.dtype != x.dtype or torch.is_autocast_enabled(x.device.type):
        return own(x)  # type: ignore[no-any-return]
    return rms_norm(x, module.weight, _eps(module))


def _eps(module: Any) -> float:
    return getattr(module, "variance_epsilon", None) or module.eps  # type: ignore[no-any-return]


def _mlp(module: Any, own: Any, activation: Activation, x: Tensor) -> Tensor:
    layers = _fitting(x, module.gate_proj, module.up_proj, module.down_proj)
    if layers is None:
        return own(x)  # type: ignore[no-any-return]
    return gated_mlp(x, activation, layers)


def _fitting(x: Tensor, *modules: nn.Module) -> list[Parts] | None:
    layers = [p for p in map(parts_of, modules) if p is not None]
    return layers if len(layers) == len(modules) and fits(x, *layers) else None


def _attention(
    module: Any,
    own: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    layers = _fitting(hidden_states, module.q_proj, module.k_proj, module.v_proj)
    if layers is None or position_embeddings is None or position_embeddings[0].shape[-1] != module.head_dim:
        kwargs.update(attention_mask=attention_mask, past_key_values=past_key_values)
        return own(hidden_states, position_embeddings=position_embeddings, **kwargs)  # type: ignore[no-any-return]
    shape = (*hidden_states.shape[:-1], -1, module.head_dim)
    q, k, v = (x.view(shape) for x in project(hidden_states, layers))
    if hasattr(module, "q_norm"):
        q, k = module.q_norm(q), module.k_norm(k)
    cos, sin = (x.unsqueeze(2) for x in position_embeddings)
    q, k, v = _Rotary.apply(q, cos, sin).transpose(1, 2), _Rotary.apply(k, cos, sin).transpose(1, 2), v.transpose(1, 2)
    if past_key_values is not None:
        k, v = past_key_values.update(k, v, module.layer_idx)
    window = ATTENTIONS[type(module).__name__](module)
    if window is not None:
        kwargs["sliding_window"] = window
    dropout = module.attention_dropout if module.training else 0.0
    attend = _interface(module)
    out, weights = attend(module, q, k, v, attention_mask, dropout=dropout, scaling=module.scaling, **kwargs)
    return module.o_proj(out.reshape(*shape[:-2], -1).contiguous()), weights


def _interface(module: Any) -> Any:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    eager = inspect.getmodule(type(module)).eager_attention_forward  # type: ignore[union-attr]
    return ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, eager)


def fuse_blocks(model: nn.Module) -> int:
    """Fuse the model's RMS norms, gated feed-forward blocks and attention, on the instances; return how many.

    Of modules of one kind one is tried: where the results differ, all of that kind keep their own forward.
    """
    for device in {p.device for p in model.parameters()}:
        try_out(device)
    tried: dict[Any, Any] = {}
    fused = 0
    for module in model.modules():
        kind = _kind(module)
        if kind not in tried:
            tried[kind] = _trial(module)
        if tried[kind] is not None:
            function, *arguments = tried[kind]
            module.forward = partial(function, module, module.forward, *arguments)
            fused += 1
    return fused


def _kind(module: nn.Module) -> Any:
    """What a module's mathematics may depend on, but for its tensors: its class, its plain attributes, the classes of its children.

    Not a layer's number, which only a cache reads.
    """
    plain = [(k, v) for k, v in vars(module).items() if isinstance(v, int | float | str | None) and k != "layer_idx"]
    return type(module), tuple(plain), tuple(type(child) for child in module.children())


def _trial(module: nn.Module) -> tuple[Any, ...] | None:
    try:
        return _fused(module)
    except Exception:  # model code raises what it likes, and whatever it raises means: not this one
        return None


def _exact(module: nn.Module, sizes: dict[str, tuple[int, int]] | None = None) -> Any:
    """Return a copy in fp32 or wider, for in bf16 much would pass for rounding; without dropout, which is random.

    sizes: (inputs, outputs) by the name of a child that a plain random layer of that size stands in for: what is tried is how the
    module puts its layers together, and theirs may be large or quantised.
    """
    of = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))  # all may be quantised
    plain = {name: _linear(*size) for name, size in (sizes or {}).items()}
    copy = deepcopy(module, {id(getattr(module, name)): layer for name, layer in plain.items()})
    return copy.to(of.device, _wide(of)).eval()


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    with torch.no_grad():
        layer.weight.copy_(_random((outputs, inputs), layer.weight))
        layer.bias.copy_(_random((outputs,), layer.bias))
    return layer.requires_grad_(False)


def _fused(module: Any) -> tuple[Any, ...] | None:
    """Return the forward that equals the module's own, and its further arguments; None where there is none."""
    children = {name for name, _ in module.named_children()}
    if type(module).__name__ in ATTENTIONS:
        return (_attention,) if _attention_equals(module) else None
    if children == {"gate_proj", "up_proj", "down_proj", "act_fn"}:
        x = torch.linspace(-4, 4, 99)
        sizes = {"gate_proj": (8, 12), "up_proj": (8, 12), "down_proj": (12, 8)}
        if not all(is_known(getattr(module, name)) for name in sizes):
            return None
        for activation in ACTIVATIONS:
            if torch.equal(module.act_fn(x), activation[0](x)):
                copy = _exact(module, sizes)
                return (_mlp, activation) if _equals(copy, copy.gate_proj.weight, _mlp, activation) else None
        return None
    weight = getattr(module, "weight", None)
    if type(module).__name__.endswith("RMSNorm") and isinstance(weight, Tensor) and weight.dim() == 1:
        named = hasattr(module, "variance_epsilon") or hasattr(module, "eps")
        return (_norm,) if named and _equals(_weighted(module), weight, _norm) else None
    return None


@torch.no_grad()
def _weighted(norm: nn.Module) -> Any:
    """Return a copy of a norm with random weights: with the weights 1 (or 0) of a new model many norms are equal."""
    copy = _exact(norm)
    copy.weight.copy_(_random(copy.weight.shape, copy.weight))
    return copy


@torch.no_grad()
def _equals(module: Any, weight: Tensor, function: Any, *arguments: Any) -> bool:
    x = _random((1, 5, weight.shape[-1]), weight)
    return _near(function(module, None, *arguments, x), module(x))


@torch.no_grad()
def _attention_equals(module: Any) -> bool:
    """Whether ours asks the attention interface for the same (windows, scale, dropout and what else there is), and ends in the same."""
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    if not all(is_known(getattr(module, name)) for name in names):
        return False
    q, k, v, o = (getattr(module, name) for name in names)
    sizes = {"q_proj": (8, q.out_features), "k_proj": (8, k.out_features), "v_proj": (8, v.out_features)}
    module = _exact(module, {**sizes, "o_proj": (o.in_features, 8)})
    module.training = True  # of itself alone: it passes on its dropout
    x = _random((1, 5, 8), module.q_proj.weight)
    angles = _random((1, 5, module.head_dim // 2), x).repeat(1, 1, 2)
    turns = (angles.cos(), angles.sin())
    with _asked(module) as calls:
        wanted = module(x, position_embeddings=turns, attention_mask=None)[0]
        ours = _attention(module, None, x, turns, None)[0]
    (theirs, their_words), (tensors, words) = calls
    return their_words == words and all(map(_near, (ours, *tensors), (wanted, *theirs)))


@contextmanager
def _asked(module: Any) -> Iterator[list[tuple[tuple[Tensor, ...], dict[str, Any]]]]:
    """Within it the interface the module attends by keeps what it is called with (queries, keys and values; the keywords)."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    calls: list[tuple[tuple[Tensor, ...], dict[str, Any]]] = []

    def interface(_: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **words: Any) -> tuple[Tensor, None]:
        given = {word: value for word, value in words.items() if value is not None}
        calls.append(((q, k, v), given))
        return q.transpose(1, 2), None

    name = module.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS[name] = interface  # over the one that is registered
    try:
        yield calls
    finally:
        del ALL_ATTENTION_FUNCTIONS[name]


def _random(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return random numbers on the device of `like`, in fp32 or wider."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(like.device, _wide(like))


def _near(ours: Tensor, wanted: Tensor) -> bool:
    """Whether two results differ by rounding only: each number by that of its own size or of a usual one's."""
    allowed = 64 * torch.finfo(wanted.dtype).eps * (wanted.abs() + wanted.abs().mean())
    return ours.shape == wanted.shape and bool(((ours - wanted).abs() <= allowed).all())
