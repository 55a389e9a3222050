"""`attention-vision study {run,report,export}`: arguments and help; imports nothing heavy."""

import argparse
import sys
from pathlib import Path

from attention_vision.cli.tool_parser import ToolParser

HELP = """\
A study compares variants of an experiment over several seeds. Its file names a base experiment,
axes of {path: value}, seeds and a metric.

  attention-vision study run experiments/ablations/channel_attention.yaml --dry-run
  attention-vision study run experiments/ablations/channel_attention.yaml
  attention-vision study report runs/studies/channel_attention
"""
RUN_HELP = """\
Runs all unfinished runs. If interrupted, rerun the same command: finished runs are skipped,
unfinished ones resume from their last checkpoint. To merge runs from another machine, copy their
FOLDER/cells into this study's folder.

W&B: --profile experiments/profiles/wandb.yaml logs the runs as CELL-seedS in a group named after
the study. Without an API key they stay offline; one command uploads all of them later:
  wandb sync FOLDER/cells/*/*/wandb/offline-run-*

SLURM: --launcher slurm --submit slurm_partition=gpu timeout_min=240 gpus_per_node=1 cpus_per_task=4
(pip install "attention-vision[slurm]"); a preempted job resumes from its last checkpoint.
"""
EXPORT_HELP = """\
  attention-vision study export runs/studies/NAME --results experiments/results/NAME.json
  attention-vision study export experiments/ablations/NAME.yaml --wandb-sweep > sweep.yaml
  wandb sweep sweep.yaml; wandb agent ...          on any number of machines
"""


def main(arguments: list[str]) -> int:
    """Run the command; return 0, or 1 for failed runs."""
    if arguments[:1] == ["report"]:
        from attention_vision.cli.study_report import main as report

        return report(arguments[1:])
    parser = ToolParser("attention-vision study", description=HELP)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="{run,report,export}")
    add_run(verbs)
    text = "mean, paired differences, verdicts: text, CSV, LaTeX, HTML"
    verbs.add_parser("report", help=text, description=text)
    add_export(verbs)
    options = parser.parse_args(arguments)
    try:
        return run(options) if options.verb == "run" else export(options)
    except KeyboardInterrupt:
        print("stopped: run the same command to continue", file=sys.stderr)
        return 130


def add_run(verbs: argparse._SubParsersAction) -> None:
    """Add the arguments of `study run`."""
    parser = verbs.add_parser(
        "run", help="run the unfinished runs of a study", description=RUN_HELP
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the study file")
    parser.add_argument("--folder", type=Path, help="default: runs/studies/NAME")
    parser.add_argument(
        "--jobs", type=jobs, metavar="N|auto",
        help="runs at a time (default: one per GPU or core); auto tries how many of them share the"
        " machine, or each GPU, best",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds in place of those of the file")
    parser.add_argument("--only", nargs="+", metavar="CELL", help="run these cells only")
    parser.add_argument(
        "--profile", type=Path, nargs="+", default=[], metavar="FILE",
        help="config files of hardware and logger, merged into the config of every run",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true", help="print the cells and their cost, run nothing"
    )
    parser.add_argument(
        "--launcher", choices=("local", "slurm", "submitit"), default="local",
        help="processes on this machine, SLURM jobs, or submitit's local jobs (default: local)",
    )  # fmt: skip
    parser.add_argument(
        "--submit", nargs="+", default=[], metavar="KEY=VALUE",
        help="parameters of submitit's executor, such as timeout_min=240",
    )  # fmt: skip


def add_export(verbs: argparse._SubParsersAction) -> None:
    """Add the arguments of `study export`."""
    parser = verbs.add_parser(
        "export", help="export results as one file, or a W&B sweep", description=EXPORT_HELP
    )
    parser.add_argument(
        "source", type=Path, help="the study folder; for --wandb-sweep, the study file"
    )
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument(
        "--results", type=Path, metavar="FILE.json", help="write the results to this file"
    )
    kind.add_argument(
        "--wandb-sweep", action="store_true", help="print the configuration of a sweep"
    )


def jobs(word: str) -> int | str:
    """Read the argument of --jobs."""
    try:
        return word if word == "auto" else int(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is neither a number nor auto") from None


def run(options: argparse.Namespace) -> int:
    """Run `study run`."""
    from attention_vision.study.definition import read_seeds
    from attention_vision.study.runner import StudyRequest, run_study

    request = StudyRequest(
        file=options.file,
        folder=options.folder,
        jobs=options.jobs,
        seeds=read_seeds(options.seeds, "--seeds") if options.seeds else None,
        only=tuple(options.only) if options.only else None,
        profiles=tuple(options.profile),
        launcher=options.launcher,
        submit=tuple(options.submit),
    )
    return run_study(request, options.dry_run)


def export(options: argparse.Namespace) -> int:
    """Run `study export`."""
    from attention_vision.study.export import export_results, wandb_sweep

    if options.wandb_sweep:
        print(wandb_sweep(options.source), end="")
        return 0
    export_results(options.source, options.results)
    print(f"written: {options.results}")
    return 0
