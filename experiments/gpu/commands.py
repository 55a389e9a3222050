"""Commands of `attention-vision`, within the time of a part."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from run import ROOT, Part

GRACE = 5  # seconds that an interrupted command has to end


def run_command(part: Part, words: tuple[str, ...], folder: Path, seconds: float) -> dict:
    """Run `attention-vision WORDS` in a folder, at most for some seconds, then interrupt it.

    A smoke test runs it in this process, which has its imports done.

    Returns:
        The command, its exit code, seconds, whether it was stopped, and its last words if it
        failed.
    """
    start, stopped = time.time(), False
    if part.smoke:
        code, stdout, stderr = in_this_process(words, folder)
    else:
        process = subprocess.Popen(
            [sys.executable, "-m", "attention_vision", *words], cwd=folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "2", "WANDB_MODE": "disabled"},
        )  # fmt: skip
        try:
            stdout, stderr = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            stopped = True
            os.killpg(process.pid, signal.SIGINT)
            try:
                stdout, stderr = process.communicate(timeout=GRACE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                stdout, stderr = process.communicate()
        code = process.returncode
    told = " ".join(words).replace(f"{ROOT}/", "").replace(f"{part.out}/", "")
    row = {"command": f"attention-vision {told}", "exit": code, "stopped": stopped}
    row["seconds"] = round(time.time() - start, 1)
    if code and not stopped:
        row |= {"stdout": stdout[-1500:], "stderr": stderr[-4000:]}
    return row


def in_this_process(words: tuple[str, ...], folder: Path) -> tuple[int, str, str]:
    from attention_vision.__main__ import main

    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    ):  # fmt: skip
        code = main([*words, "--debug"])
    return code, out.getvalue(), err.getvalue()
