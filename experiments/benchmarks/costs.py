"""Parameters and multiply-adds of the networks of experiments, for those that a source prints.

    python experiments/benchmarks/costs.py     # CPU, two minutes

Writes experiments/results/exact_costs.json; `attention-vision claims` then writes the pages.

The experiments are those with `costs` in their claim. Their networks are built as for training,
with random weights; the counts are exact, and have no seed. Multiply-adds of sources whose counter
adds norms and activations, as mmpretrain's does, are not among them: they are another quantity.
"""

import json
import platform
import subprocess
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from attention_vision.attention import attention_backend
from attention_vision.claims.claim import Claim
from attention_vision.claims.costs import RESULTS, cost_rows, experiments_with_costs
from attention_vision.runs.load import load_experiment

PRODUCTS = ("bmm", "baddbmm")  # of queries and keys, of attention weights and values

ROOT = Path(__file__).parents[2]


def count(path: str, claim: Claim) -> dict[str, int]:
    """Counts of an experiment's network by the keys of its claim."""
    file = ROOT / f"experiments/{path}.yaml"
    experiment = load_experiment(file)
    tools = experiment.task.tools()
    (work,) = tools.workloads(file.stem, experiment.module, tools.image_size(experiment.data), 1)
    trained = (p.numel() for p in work.network.parameters() if p.requires_grad)
    found = {"cost/parameters": sum(trained)}
    asked = [cost.metric for cost in claim.cost_claims()]
    if asked != ["cost/parameters"]:
        work.network.eval().requires_grad_(False)
        with FlopCounterMode(display=False) as counter, attention_backend("eager"):
            work.forward()
        flops = counter.get_flop_counts()["Global"].items()
        found["cost/macs"] = sum(number for _, number in flops) // 2
        layers = (number for operation, number in flops if operation.__name__ not in PRODUCTS)
        found["cost/layer_macs"] = sum(layers) // 2
    return {key: found[key] for key in asked}


def results(commit: str) -> dict:
    """The counts in the format of experiments/results/README.md."""
    runs = [
        {"cell": path, "seed": None, "metrics": count(path, claim)}
        for path, claim in experiments_with_costs(ROOT).items()
    ]
    return {
        "what": {
            "title": "Parameters and multiply-adds of networks whose sources print them. Counted,"
            " nothing is trained.",
            "experiment": "experiments/benchmarks/costs.py",
            "data": "none",
        },
        "command": ["python experiments/benchmarks/costs.py"],
        "commit": commit,
        "date": f"{date.today()}",
        "hardware": "CPU, 1 thread",
        "versions": {"python": platform.python_version(), "torch": version("torch")},
        "runs": runs,
        "notes": [
            "Multiply-adds are those of convolutions and products of matrices of one image, in"
            " evaluation; norms, activations, softmax and gates are left out.",
        ],
    }


def main() -> None:
    torch.set_num_threads(1)
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    (ROOT / RESULTS).write_text(json.dumps(results(commit), indent=2) + "\n")
    rows = cost_rows(ROOT)
    for row in rows:
        cost = f"{row.claim.metric:<16}{row.claim.reported:>16,.0f}{row.counted:>16,.0f}"
        print(f"{row.experiment:<52}{cost} {row.verdict}")


if __name__ == "__main__":
    main()
