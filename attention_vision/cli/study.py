"""`attention-vision study {run,report,export}`: arguments and their help; imports nothing heavy."""

import argparse
import sys
from pathlib import Path

from attention_vision.errors import InputError, one_line

HELP = """\
A study is a question as a file: a base experiment, axes of {path: node}, seeds, a metric.

  attention-vision study run experiments/ablations/channel_attention.yaml --dry-run
  attention-vision study run experiments/ablations/channel_attention.yaml
  attention-vision study report runs/studies/channel_attention
"""
RUN_HELP = """\
Runs what is not finished yet: the same command goes on after whatever ended it. A folder in which
runs were made elsewhere is merged by copying FOLDER/cells over it.

W&B: --profile experiments/profiles/wandb.yaml collects the runs in a group of the study's name, as
CELL-seedS. Without a key they stay offline; one command sends all of them later:
  wandb sync FOLDER/cells/*/*/wandb/offline-run-*

SLURM: --launcher slurm --submit slurm_partition=gpu timeout_min=240 gpus_per_node=1 cpus_per_task=4
(pip install "attention-vision[slurm]"); a job that is preempted goes on from its last checkpoint.
"""
EXPORT_HELP = """\
  attention-vision study export runs/studies/NAME --results experiments/results/NAME.json
  attention-vision study export experiments/ablations/NAME.yaml --wandb-sweep > sweep.yaml
  wandb sweep sweep.yaml; wandb agent ...          on as many machines as there are
"""


def main(arguments: list[str]) -> int:
    """Returns 0, 1 where runs failed or something is wrong with the input, 2 for bad arguments."""
    if arguments[:1] == ["report"]:
        from attention_vision.cli.study_report import main as report

        return report(arguments[1:])
    parser = argparse.ArgumentParser(
        "attention-vision study", description=HELP, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="{run,report,export}")
    add_run(verbs)
    verbs.add_parser("report", help="mean, paired differences, verdicts: text, CSV, LaTeX, HTML")
    add_export(verbs)
    given = parser.parse_args(arguments)
    try:
        return run(given) if given.verb == "run" else export(given)
    except InputError as error:
        print(f"attention-vision: error: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped: the same command goes on", file=sys.stderr)
        return 130


def add_run(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "run", help="run the cells of a study, or what is left of them", description=RUN_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("file", type=Path, metavar="FILE", help="the study file")
    parser.add_argument("--folder", type=Path, help="default: runs/studies/NAME")
    parser.add_argument("--jobs", type=int, help="runs at a time (default: one per GPU or core)")
    parser.add_argument("--seeds", type=int, nargs="+", help="in place of the file's")
    parser.add_argument("--only", nargs="+", metavar="CELL", help="these cells alone")
    parser.add_argument(
        "--profile", type=Path, nargs="+", default=[], metavar="FILE",
        help="files of hardware and logger, merged into every run's config",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print cells and cost, run nothing")
    parser.add_argument(
        "--launcher", choices=("local", "slurm", "submitit"), default="local",
        help="this machine, jobs of SLURM, or submitit's own local jobs",
    )  # fmt: skip
    parser.add_argument(
        "--submit", nargs="+", default=[], metavar="KEY=VALUE",
        help="parameters of submitit's executor, such as timeout_min=240",
    )  # fmt: skip


def add_export(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "export", help="results as one file to commit; a W&B sweep", description=EXPORT_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("source", type=Path, help="a study's folder; its file for --wandb-sweep")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--results", type=Path, metavar="FILE.json", help="where results go")
    kind.add_argument("--wandb-sweep", action="store_true", help="print a sweep's configuration")


def run(given: argparse.Namespace) -> int:
    from attention_vision.study.runner import Order, run_study

    order = Order(
        file=given.file,
        folder=given.folder,
        jobs=given.jobs,
        seeds=tuple(given.seeds) if given.seeds else None,
        only=tuple(given.only) if given.only else None,
        profiles=tuple(given.profile),
        launcher=given.launcher,
        submit=tuple(given.submit),
    )
    return run_study(order, given.dry_run)


def export(given: argparse.Namespace) -> int:
    from attention_vision.study.export import results, wandb_sweep

    if given.wandb_sweep:
        print(wandb_sweep(given.source), end="")
        return 0
    results(given.source, given.results)
    print(f"written: {given.results}")
    return 0
