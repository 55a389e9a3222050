"""Run all benchmarks, each in a process of its own, and write the page of their results.

python experiments/benchmarks/all.py                   # options go to every benchmark: see frame
python experiments/benchmarks/all.py --clock cpu       # where the machine is busy: one thread
"""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
NAMES = (
    "fit_overhead", "networks", "detection", "gan", "matching", "attention", "scores", "loading",
)  # fmt: skip


def main() -> None:
    codes = [
        subprocess.run([sys.executable, str(FOLDER / f"{name}.py"), *sys.argv[1:]]).returncode
        for name in NAMES
    ]
    if "--smoke" not in sys.argv and "--out" not in sys.argv:
        subprocess.run([sys.executable, str(FOLDER / "page.py")], check=True)
    sys.exit(max(codes))


if __name__ == "__main__":
    main()
