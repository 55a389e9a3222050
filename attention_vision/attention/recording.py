"""Recording of attention weights in a running model: `record_attention`.

Every mechanism hands its weights to `capture` (softmax weights in `attend`, gates in the others).
They are dropped unless a `record_attention` block has hooked the layer whose forward is running, so
a model that is not recorded keeps the fused kernels and pays nothing.
"""

import difflib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Kind = Literal["weights", "logits", "gates", "points"]
EarlierKind = Literal["rows", "scores"]
EARLIER_KINDS: dict[str, Kind] = {"rows": "weights", "scores": "logits"}  # still understood


class Hook(NamedTuple):
    """A recorder of one module, active while the module's forward is running."""

    module: nn.Module
    kinds: Collection[str]
    keep: Callable[[Tensor], None]


# Those of every hooked module whose forward is running, innermost last.
_active: list[Hook] = []
# Modules whose weights are recorded, once for each `record_attention` block around.
_recorded: list[nn.Module] = []


def hooks(kind: Kind) -> list[Hook]:
    """Hooks that record this kind of weights from the layer that is running now."""
    return [hook for hook in _active if hook.module is _active[-1].module and kind in hook.kinds]


def recording(*kinds: Kind) -> bool:
    """Whether any of these kinds is recorded of the layer that is running now."""
    return any(hooks(kind) for kind in kinds)


def is_recorded(module: nn.Module) -> bool:
    """Whether the weights of this module, or of one inside it, are recorded now."""
    return bool(_recorded) and any(one is inner for one in _recorded for inner in module.modules())


def capture(weights: Tensor, kind: Kind = "gates") -> None:
    """Hand the weights of the running layer to the hooks that record them."""
    for hook in hooks(kind):
        hook.keep(weights)


def missing_layer(model: nn.Module, layers: Sequence[str] | None) -> str | None:
    """The first name that is not a module of the model, with the nearest; None if all are."""
    modules = dict(model.named_modules())
    for name in layers or ():
        if name not in modules:
            nearest = difflib.get_close_matches(name, modules, n=3, cutoff=0.4)
            hint = f"nearest: {', '.join(nearest)}" if nearest else "see model.named_modules()"
            return f"has no layer {name!r}; {hint}"
    return None


def layers_under(layer: str, names: Iterable[str]) -> list[str]:
    """The names that are the layer or lie inside it; all names lie inside ""."""
    return [name for name in names if layer in ("", name) or name.startswith(f"{layer}.")]


@contextmanager
def record_attention(
    model: nn.Module,
    layers: Sequence[str] | None = None,
    gradients: bool = False,
    kinds: Collection[Kind | EarlierKind] = ("weights", "gates", "points"),
) -> Iterator[dict[str, Tensor]]:
    """Record the exact attention weights of named layers while the output stays the same.

    ```python
    with record_attention(vit, layers=["blocks.11"]) as maps:
        logits = vit(images)
    maps["blocks.11.attention"]  # (B, h, N, N), rows sum to 1
    ```

    Softmax attention gives (B, h, Q, K); gates give what they multiply with, e.g. (B, C, 1, 1) for
    `SqueezeExcite` and (B, 1, H, W) for `SpatialGate`. Window, axial and local-global attention
    give one row per query of each window or line, which stand in the batch dimension. Deformable
    attention gives its points, (B, h, Q, L, P, 3): x, y and weight.

    Args:
        model: any module; a compiled one runs uncompiled inside the block.
        layers: names as in `model.named_modules()`; a name stands for every attention layer at or
            below it. `None` records all; an empty list records none and changes nothing. Layers
            that are not named keep the fused path.
        gradients: keep the maps in the graph, for penalties and distillation. Without it they are
            detached.
        kinds: `"weights"` of softmax attention; `"gates"`; `"points"` of deformable attention;
            `"logits"`, what the softmax is taken of, bias included, 0 where a mask hides a key. Of
            a layer that has several of the named kinds the last is kept. Recording gates or points
            leaves softmax attention fused. `"rows"` and `"scores"` are earlier names of weights and
            logits.

    Yields:
        name of the layer -> its weights in the last forward pass. Memory is that of the named
        layers' weights.

    Raises:
        ValueError: a name is not a module of the model; the message gives the nearest names.
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper prefixes every name
    if missing := missing_layer(model, layers):
        raise ValueError(f"record_attention: the model {missing}")

    def wanted(name: str) -> bool:
        return layers is None or any(layers_under(layer, [name]) for layer in layers)

    maps: dict[str, Tensor] = {}
    current = {EARLIER_KINDS.get(kind, kind) for kind in kinds}

    def attach(module: nn.Module, name: str) -> list[RemovableHandle]:
        def keep(weights: Tensor) -> None:
            maps[name] = weights if gradients else weights.detach()

        def enter(*_) -> None:
            _active.append(Hook(module, current, keep))

        def leave(*_) -> None:
            _active.pop()

        return [
            module.register_forward_pre_hook(enter),
            module.register_forward_hook(leave, always_call=True),
        ]

    chosen = [(module, name) for name, module in model.named_modules() if wanted(name)]
    handles = [handle for module, name in chosen for handle in attach(module, name)]
    _recorded.extend(module for module, _ in chosen)
    try:
        # Compiled code has no hooks: run it as written while something is recorded.
        with torch.compiler.set_stance("force_eager") if handles else nullcontext():
            yield maps
    finally:
        for handle in handles:
            handle.remove()
        del _recorded[len(_recorded) - len(chosen) :]
