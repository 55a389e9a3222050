"""Start of a W&B run, online or offline; a report need not import Lightning for it.

Nothing of W&B ends or holds up a command: what it cannot do is told in one line.
"""

import os
import sys
from pathlib import Path
from typing import Any

import requests
import wandb
from pydantic import ValidationError
from wandb.sdk.lib import wbauth

# Seconds; wandb's own defaults are 90 for the start and no limit for the last upload.
LIMITS: dict[str, Any] = {"init_timeout": 10.0, "finish_timeout": 10.0}
ANSWER_SECONDS = 4.0  # of the server to a first question
ONLINE = ("online", "run", "shared")


def mode() -> str | None:
    """Return the mode for `wandb.init`: None (online) with credentials, "offline" without.

    If `WANDB_MODE` is set, it is None: wandb reads the variable itself. Credentials are those that
    wandb finds: `WANDB_API_KEY`, an identity token, netrc or its settings. Nothing is sent over the
    network, and nothing is asked on the terminal.

    Raises:
        Exception: one of wandb's or pydantic's, for malformed credentials or settings.
    """
    if os.environ.get("WANDB_MODE"):
        return None  # wandb reads it
    found = wbauth.authenticate_session(
        host=wandb.setup().settings.base_url, source="wandb.login()", prompt=False
    )
    return None if found else "offline"


def start_run(folder: Path, **options: Any) -> wandb.Run:
    """Start a W&B run with its files in a folder: online if that is possible within seconds.

    Args:
        folder: the folder of the files.
        options: further arguments of `wandb.init`.

    Raises:
        Exception: wandb can write no offline run either.
    """
    limits = {
        key: seconds for key, seconds in LIMITS.items() if f"WANDB_{key.upper()}" not in os.environ
    }
    try:
        given = mode() if options.get("mode") is None else options["mode"]
        if given is None:
            ask_server()
        online: dict[str, Any] = options | {"mode": given, "settings": wandb.Settings(**limits)}
        return wandb.init(dir=folder, **online)
    except Exception as error:
        if options.get("mode") == "offline":
            raise
        for name in wrong_variables(error):
            del os.environ[name]
        os.environ["WANDB_ERROR_REPORTING"] = "false"  # wandb's end would wait for the server
        tell(f"{one_sentence(error)}; this run is logged offline: {how_to_sync(folder)}")
    offline: dict[str, Any] = options | {"mode": "offline"}
    return wandb.init(dir=folder, **offline)


def ask_server() -> None:
    """Wait for any answer of the server, where wandb is to be online.

    wandb asks several questions at its start, and waits for an answer to each.

    Raises:
        OSError: there is none within `ANSWER_SECONDS`.
    """
    settings = wandb.setup().settings
    if settings.mode not in ONLINE:
        return
    try:
        question = {"query": "query Viewer { viewer { id } }"}
        requests.post(f"{settings.base_url}/graphql", json=question, timeout=ANSWER_SECONDS)
    except requests.exceptions.SSLError:
        pass  # it is there, and wandb has certificates of its own
    except requests.exceptions.RequestException as error:
        raise OSError(f"{settings.base_url} does not answer") from error


def wrong_variables(error: Exception) -> list[str]:
    """The variables of the environment that wandb's settings refuse."""
    details = error.errors() if isinstance(error, ValidationError) else []
    names = [f"WANDB_{str(detail['loc'][0]).upper()}" for detail in details]
    return [name for name in names if name in os.environ]


def one_sentence(error: Exception) -> str:
    """The reason of an error of wandb, pydantic or the system on one line."""
    if isinstance(error, ValidationError):
        wrong = error.errors()[0]
        return f"WANDB_{'_'.join(map(str, wrong['loc'])).upper()}: {wrong['msg']}"
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def how_to_sync(folder: Path) -> str:
    """The command that uploads what is in a folder."""
    return f"upload it by `wandb sync {folder}/wandb/*run-*`"


def tell(line: str) -> None:
    print(f"W&B: {line}", file=sys.stderr, flush=True)
