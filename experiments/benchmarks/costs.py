"""Parameters and multiply-adds of the networks of experiments, for those that a source prints.

    python experiments/benchmarks/costs.py     # CPU, two minutes; writes experiments/results

The experiments are those with `costs` in their claim. Their networks are built as for training,
with random weights; the counts are exact, and have no seed. Multiply-adds of sources whose counter
adds norms and activations, as mmpretrain's does, are not among them: they are another quantity.
"""

import argparse
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
from attention_vision.runs.load import load_experiment
from attention_vision.yaml_json import read_dataclass, read_yaml

PRODUCTS = ("bmm", "baddbmm")  # of queries and keys, of attention weights and values

ROOT = Path(__file__).parents[2]


def experiments() -> dict[Path, Claim]:
    """Experiments whose claim has costs, with the claim."""
    found = {}
    for file in sorted((ROOT / "experiments").rglob("*.yaml")):
        if isinstance(content := read_yaml(file).get("claim"), dict) and content.get("costs"):
            found[file] = read_dataclass(Claim, content, f"{file}: claim")
    return found


def count(file: Path, claim: Claim) -> dict[str, int]:
    """Counts of an experiment's network by the keys of its claim."""
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


def results() -> dict:
    """The counts in the format of experiments/results/README.md."""
    runs = []
    for file, claim in experiments().items():
        counts = count(file, claim)
        for cost in claim.cost_claims():
            number = counts[cost.metric]
            verdict = "as printed" if cost.reproduced(number) else "not as printed"
            print(f"{file.stem:<32}{cost.metric:<16}{number:>16,}{cost.reported:>16,.0f} {verdict}")
        cell = file.relative_to(ROOT / "experiments").with_suffix("").as_posix()
        runs.append({"cell": cell, "seed": None, "metrics": counts})
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    return {
        "what": {
            "title": "Parameters and multiply-adds of networks whose sources print them. Counted,"
            " nothing is trained.",
            "experiment": "experiments/benchmarks/costs.py",
            "data": "none",
        },
        "command": ["python experiments/benchmarks/costs.py"],
        "commit": subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip(),
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
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "experiments/results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    file = options.out / "exact_costs.json"
    file.write_text(json.dumps(results(), indent=2) + "\n")
    print(f"written: {file}")


if __name__ == "__main__":
    main()
