"""Download of official weights by name: `torchvision:NAME`, or OWNER/NAME on the Hugging Face hub.

The hub needs `huggingface_hub`, which is installed with timm and transformers.
"""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path

import torchvision
from torch import Tensor
from torchvision.models import WeightsEnum

from attention_vision.errors import InputError

TORCHVISION = "torchvision:"
# A name that the hub allows, without the ending of a file of weights.
HUB_NAME = re.compile(
    r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?<!\.pt)(?<!\.pth)(?<!\.ckpt)(?<!\.bin)"
)
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def is_name(source: str) -> bool:
    """Whether a source of weights that is not a local file or folder is the name of a download."""
    hub = HUB_NAME.fullmatch(source) and not source.endswith(".safetensors")
    return source.startswith(TORCHVISION) or bool(hub and not Path(source).parent.exists())


def download(name: str) -> Mapping[str, Tensor] | Path:
    """Download a state dict of torchvision, or the file of a model on the hub.

    `torchvision:vit_b_16` is the best weights of a model, `torchvision:ResNet50_Weights.X` a named
    set of weights. Both libraries cache their downloads: the second time no network is needed.

    Raises:
        InputError: there are no such weights, the library is not installed, or the server does not
            answer.
    """
    if name.startswith(TORCHVISION):
        return download_from_torchvision(name.removeprefix(TORCHVISION))
    return download_from_hub(name)


def torchvision_weights(name: str) -> WeightsEnum:
    """Find weights by the name of a model or of themselves. Raises InputError if there are none."""
    models = torchvision.models
    try:
        if "." in name:
            return models.get_weight(name)
        return models.get_model_weights(name)["DEFAULT"]
    except (ValueError, KeyError) as error:
        nearest = difflib.get_close_matches(name, models.list_models(), n=3)
        hint = f"nearest: {', '.join(nearest)}" if nearest else "such as vit_b_16"
        raise InputError(f"{TORCHVISION}{name}: torchvision has no such weights; {hint}") from error


def download_from_torchvision(name: str) -> Mapping[str, Tensor]:
    weights = torchvision_weights(name)
    try:
        return weights.get_state_dict(progress=False)
    except OSError as error:
        raise InputError(
            f"{TORCHVISION}{name}: not reached ({error}): download {weights.url} where there is a"
            " network, and give the path of the file"
        ) from error


def download_from_hub(name: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
        )
        from huggingface_hub.utils.logging import set_verbosity_error
    except ImportError as error:
        raise InputError(
            f"{name}: no such file, and a name on the hub needs `pip install huggingface_hub`"
        ) from error
    set_verbosity_error()  # else it logs every attempt
    for file in HUB_FILES:
        try:
            return Path(hf_hub_download(name, file))
        except LocalEntryNotFoundError as error:  # an EntryNotFoundError too
            raise unreachable(name, error) from error
        except EntryNotFoundError:
            continue
        except RepositoryNotFoundError as error:
            raise InputError(
                f"{name}: no such file, and the hub has no public model of this name"
            ) from error
        except Exception as error:  # of whichever transport the library uses
            raise unreachable(name, error) from error
    raise InputError(f"{name}: the hub's model has none of {', '.join(HUB_FILES)}")


def hub_file(name: str, file: str) -> Path | None:
    """Download a small file of a model on the hub; None where it cannot be had."""
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(name, file))
    except Exception:  # the library, the file or the network is missing
        return None


def unreachable(name: str, error: Exception) -> InputError:
    return InputError(
        f"{name}: no such file, and the hub does not answer ({type(error).__name__}): download the"
        f" model's {HUB_FILES[0]} where there is a network, and give its path"
    )
