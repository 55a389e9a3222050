"""Claims about attention that need no training: counts, bytes and gradients, each a results file.

    python experiments/benchmarks/claims.py        # CPU, half a minute; writes experiments/results

Nothing is drawn at random that a number depends on: the numbers are exact and have no seed.
"""

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from math import log
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from attention_vision.attention import (
    MultiHeadAttention,
    WindowAttention,
    attend,
    attention_backend,
)
from attention_vision.attention.kernel import FP8_MAX
from attention_vision.backbones import ViT

Numbers = dict[str, dict[str, float]]  # metrics by cell


def positions() -> Numbers:
    """Parameters that say where a patch is, in ViT-B/16 and ViT-L/16 at 224 pixels."""
    sizes = {"ViT-B/16": (768, 12, 12), "ViT-L/16": (1024, 24, 16)}
    cells = {}
    for name, (width, depth, heads) in sizes.items():
        for position in ("absolute", "relative"):
            with torch.device("meta"):
                vit = ViT(width=width, depth=depth, heads=heads, position=position)
                bare = ViT(width=width, depth=depth, heads=heads, position="none")
            count = size(vit) - size(bare)
            cells[f"{position}, {name}"] = {
                "parameters/position": count,
                "parameters/share": count / size(vit),
            }
    return cells


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def growth() -> Numbers:
    """How work and memory of a layer of Swin-T's first stage grow with the number of tokens.

    The exponents of N between maps of 56 x 56 and 112 x 112: 1 is linear, 2 is quadratic.
    """
    layers = {"window": WindowAttention(96, 3, window=7), "global": MultiHeadAttention(96, 3)}
    cells = {}
    for name, layer in layers.items():
        costs = [cost(layer, side) for side in (56, 112)]
        rates = [log(large / small, 4) for small, large in zip(*costs, strict=True)]
        cells[name] = {
            "growth/macs": rates[0],
            "growth/saved_bytes": rates[1],
            "macs/56x56": costs[0][0],
            "macs/112x112": costs[1][0],
        }
    return cells


def cost(layer: nn.Module, side: int) -> tuple[int, int]:
    """Multiply-adds and bytes that a forward pass keeps for the backward one, weights written out.

    On the meta device, so that the 157 million weights of a head at 112 x 112 need no memory.
    """
    layer = layer.to("meta")
    x = torch.empty(1, side * side, 96, device="meta", requires_grad=True)
    with FlopCounterMode(display=False) as counter, attention_backend("eager"):
        kept = saved_bytes(lambda: layer(x))
    return counter.get_total_flops() // 2, kept


def saved_bytes(forward: Callable[[], Tensor]) -> int:
    """Bytes of all tensors that autograd keeps, each of them once."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def fp8() -> Numbers:
    """Bytes that 8 heads over 1,024 tokens keep for the backward pass, besides q, k and v.

    And what the weights alone take where they are stored, as fp8 with one scale for each row.
    """
    heads, tokens, width = 8, 1024, 64
    shape = (1, heads, tokens, width)
    cells = {}
    for name, backend, dtype in (
        ("bf16, written out", "eager", torch.bfloat16),
        ("bf16, fused", "fused", torch.bfloat16),
        ("fp8, emulated", "fp8", torch.bfloat16),
    ):
        query, key, value = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3))
        with attention_backend(backend):
            kept = saved_bytes(lambda q=query, k=key, v=value: attend(q, k, v))
        inputs = 3 * query.untyped_storage().nbytes()
        cells[name] = {"memory/bytes": max(0, kept - inputs)}
    weights = torch.randn(heads, tokens, tokens).softmax(-1)
    scale = FP8_MAX / weights.amax(-1, keepdim=True)
    for name, parts in {
        "bf16, stored": [weights.to(torch.bfloat16)],
        "fp8, stored": [(weights * scale).to(torch.float8_e4m3fn), scale],
    }.items():
        cells[name] = {"memory/bytes": sum(part.nbytes for part in parts)}
    return cells


def patches() -> Numbers:
    """How many numbers a patch of 16 x 16 pixels is, and how many ViT-B/16 makes of them."""
    cells = {}
    for name, channels in (("RGB", 3), ("grey", 1)):
        with torch.device("meta"):
            embedding = ViT(depth=1, in_channels=channels).patches.weight  # (C, channels, P, P)
        cells[name] = {
            "patch/values": embedding[0].numel(),
            "patch/width": embedding.shape[0],
        }
    return cells


def penalties() -> Numbers:
    """The largest weight of each row after 200 steps against one penalty, and nothing else.

    Rows over 16 keys start at scores that look at a few of them; averages over 64 rows in float64.
    """
    start = torch.linspace(-3, 3, 16, dtype=torch.float64).sin().mul(4).repeat(64, 1)
    start = start * torch.linspace(0.5, 1.5, 64, dtype=torch.float64)[:, None]
    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "none": lambda scores: 0 * scores.sum(),
        "L1 of rows": lambda scores: scores.softmax(-1).abs().sum(-1).mean(),
        "L1 of scores": lambda scores: scores.abs().sum(-1).mean(),
        "entropy of rows": lambda scores: (
            (scores.softmax(-1) * scores.log_softmax(-1)).sum(-1).mean()
        ),
    }
    cells = {}
    for name, penalty in forms.items():
        scores = start.clone().requires_grad_()
        first = torch.autograd.grad(penalty(scores), scores)[0].norm().item()
        for _ in range(200):
            (slope,) = torch.autograd.grad(penalty(scores), scores)
            scores = (scores - slope).detach().requires_grad_()
        cells[name] = {
            "weights/largest": round(scores.softmax(-1).amax(-1).mean().item(), 9),
            "penalty/gradient": round(first, 9),
        }
    return cells


STUDIES: dict[str, tuple[Callable[[], Numbers], str, str, str, list[str], list[str]]] = {
    "exact_positions": (
        positions,
        "Do relative positions save parameters?",
        "parameters/position",
        "absolute, ViT-B/16",
        [
            "relative, ViT-B/16 < absolute, ViT-B/16",
            "relative, ViT-L/16 < absolute, ViT-L/16",
        ],
        [
            "A bias of its own in each block has depth · heads · (2g - 1)² numbers for g x g "
            "patches, absolute positions have (g² + 1) · width: about 4 · depth to width / heads.",
            "Either is a small share of the network, parameters/share.",
        ],
    ),
    "exact_window_growth": (
        growth,
        "Does the cost of window attention grow linearly with the number of tokens?",
        "growth/macs",
        "global",
        ["window < global"],
        [
            "Exponents of the number of tokens, from maps of 56 x 56 to 112 x 112, of a whole "
            "layer of width 96: its four projections, which are linear, count as well.",
            "Bytes are those kept for the backward pass with the weights written out; fused "
            "attention keeps none of them, and its memory is linear without windows.",
        ],
    ),
    "exact_fp8_memory": (
        fp8,
        "Do attention weights in fp8 save memory?",
        "memory/bytes",
        "bf16, written out",
        ["fp8, stored < bf16, stored", "fp8, stored < bf16, fused"],
        [
            "Fused attention keeps its output and one number a row, and none of the weights: "
            "nothing is left to store in fp8. The gain of fp8 is then in arithmetic, which is not "
            "measured here.",
            "The package's fp8 backend emulates the rounding to study its error, and keeps more.",
        ],
    ),
    "exact_patches": (
        patches,
        "How long is the vector of a patch of 16 x 16 pixels?",
        "patch/values",
        "grey",
        [],
        ["patch/values enter the embedding, patch/width leave it."],
    ),
    "exact_penalties": (
        penalties,
        "Which penalties take the largest attention weight down?",
        "weights/largest",
        "none",
        ["L1 of rows < none", "L1 of scores < none", "entropy of rows < none"],
        [
            "The rows of a softmax sum to 1: their L1 norm is a constant, its gradient is zero.",
            "Scores alone, without a task's loss: what a penalty can do, not what it is good for.",
        ],
    ),
}


def results(name: str, commit: str) -> dict:
    """The measurement of a name of `STUDIES` in the format of experiments/results/README.md."""
    measure, question, metric, baseline, expect, notes = STUDIES[name]
    start = time.perf_counter()
    cells = measure()
    seconds = round(time.perf_counter() - start, 1)
    return {
        "what": {
            "title": f"{question} Counted, nothing is trained.",
            "experiment": "experiments/benchmarks/claims.py",
            "data": "none",
        },
        "study": {
            "question": question,
            "task": "attention",
            "metric": metric,
            "higher_is_better": False,
            "baseline": baseline,
            "expect": expect,
        },
        "command": [f"python experiments/benchmarks/claims.py --only {name}"],
        "commit": commit,
        "date": f"{date.today()}",
        "hardware": "CPU, 1 thread",
        "versions": {"python": platform.python_version(), "torch": version("torch")},
        "runs": [{"cell": cell, "seed": None, "metrics": got} for cell, got in cells.items()],
        "notes": [*notes, f"All cells together took {seconds} s."],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=STUDIES, default=None)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    for name in [options.only] if options.only else STUDIES:
        measured = results(name, commit)
        file = options.out / f"{name}.json"
        file.write_text(json.dumps(measured, indent=2) + "\n")
        print(f"\n{measured['study']['question']}")
        for run in measured["runs"]:
            print(f"  {run['cell']:<24}{run['metrics']}")
        print(f"  written: {file}")


if __name__ == "__main__":
    main()
