"""Whether W&B is online; apart from the logger, so that a report need not import Lightning."""

import os

import wandb
from wandb.errors import AuthenticationError
from wandb.sdk.lib import wbauth

from attention_vision.errors import InputError


def mode() -> str | None:
    """`WANDB_MODE` where it is set; otherwise None (online) with credentials, "offline" without.

    Credentials are those that wandb itself finds: `WANDB_API_KEY`, an identity token, netrc or its
    settings. Nothing is sent anywhere here: `wandb.login` would ask the server for the name of the
    account, and wait for minutes where a firewall swallows the question.

    Raises:
        InputError: credentials that wandb calls malformed.
    """
    if os.environ.get("WANDB_MODE"):
        return None  # wandb reads it
    try:
        found = wbauth.authenticate_session(
            host=wandb.setup().settings.base_url, source="wandb.login()", prompt=False
        )
    except AuthenticationError as error:
        raise InputError(f"W&B: {error}; correct the key, or set WANDB_MODE=offline") from error
    return None if found else "offline"
