"""W&B online or offline; in its own file, so that a report need not import Lightning."""

import os

import wandb
from wandb.errors import AuthenticationError
from wandb.sdk.lib import wbauth

from attention_vision.errors import InputError


def mode() -> str | None:
    """Return the mode for `wandb.init`: None (online) with credentials, "offline" without.

    If `WANDB_MODE` is set, it is None: wandb reads the variable itself. Credentials are those that
    wandb finds: `WANDB_API_KEY`, an identity token, netrc or its settings. Nothing is sent over the
    network: `wandb.login` would query the server for the name of the account, and wait for minutes
    behind a firewall that drops the request.

    Raises:
        InputError: wandb calls the credentials malformed.
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
