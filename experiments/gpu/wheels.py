"""Download the wheels that a machine with PyTorch and nothing of this project lacks.

    python experiments/gpu/wheels.py --out runs/wheels
    python experiments/gpu/wheels.py --out runs/wheels --present pip_freeze_of_the_machine.txt

What is needed follows from the requirements of the package as installed here, at the versions
installed here; packages that the machine has are taken as they are there, with what they need.
`experiments/gpu/run.py --wheels runs/wheels` installs them there, without a network, into a folder
of its own.
"""

import argparse
import importlib.metadata as metadata
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("demo", "slurm", "speed")
PRESENT = (  # in the usual images with PyTorch, as far as this project needs them
    "click", "cloudpickle", "contourpy", "cycler", "filelock", "fonttools", "fsspec", "httpx",
    "huggingface-hub", "jinja2", "joblib", "kiwisolver", "lightning", "matplotlib", "narwhals",
    "networkx", "numpy", "packaging", "pandas", "pillow", "protobuf", "psutil", "pygments",
    "pyparsing", "pytest", "python-dateutil", "pytorch-lightning", "pyyaml", "requests", "rich",
    "safetensors", "scikit-learn", "scipy", "setuptools", "six", "sympy", "tabulate",
    "threadpoolctl", "timm", "tokenizers", "torch", "torchmetrics", "torchvision", "tqdm",
    "transformers", "triton", "typing-extensions", "urllib3", "xxhash",
)  # fmt: skip
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")


def needed(present: set[str], python: str) -> Iterator[str]:
    """Yield NAME==VERSION of what the project needs and `present` lacks, each once."""
    facts = {
        "python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux",
        "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix",
        "implementation_name": "cpython", "platform_python_implementation": "CPython",
    }  # fmt: skip
    seen = set(present)
    waiting = [Requirement(f"attention-vision[{','.join(EXTRAS)}]")]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name in seen:
            continue
        seen.add(name)
        found = metadata.distribution(name)
        if name != "attention-vision":
            yield f"{name}=={found.version}"
        for line in found.requires or ():
            one = Requirement(line)
            extras = ("", *wanted.extras)
            if not one.marker or any(one.marker.evaluate(facts | {"extra": e}) for e in extras):
                waiting.append(one)


def names_in(file: Path) -> set[str]:
    """Read the names of a requirements file, such as `pip freeze` prints."""
    lines = (line.partition("#")[0].strip() for line in file.read_text().splitlines())
    return {canonicalize_name(Requirement(line).name) for line in lines if line}


def main() -> None:
    parser = argparse.ArgumentParser(description="Downloads wheels for a machine with PyTorch.")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--present", type=Path, metavar="FILE", help="`pip freeze` of the machine")
    parser.add_argument("--python", default="3.12", metavar="X.Y", help="of the machine")
    options = parser.parse_args()
    present = names_in(options.present) if options.present else set(PRESENT)
    names = sorted(needed(present, options.python))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--implementation", "cp"]
    command += ["--python-version", options.python, "--dest", str(options.out)]
    for platform in PLATFORMS:
        command += ["--platform", f"{platform}_x86_64"]
    subprocess.run([*command, *names], check=True)
    wheels = sorted(options.out.glob("*.whl"))
    for wheel in wheels:
        print(f"{wheel.stat().st_size / 1e6:6.1f} MB  {wheel.name}")
    print(f"{sum(wheel.stat().st_size for wheel in wheels) / 1e6:6.1f} MB  in {options.out}")


if __name__ == "__main__":
    main()
