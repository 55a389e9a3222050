"""Released weights by name, where there is a network: `torchvision:NAME`, or OWNER/NAME on the hub.

The hub is that of `huggingface_hub`, which comes with timm and transformers.
"""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path

import torchvision
from torch import Tensor

from attention_vision.errors import InputError

TORCHVISION = "torchvision:"
# As the hub allows it, and no name of a file of weights.
HUB_NAME = re.compile(
    r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?<!\.pt)(?<!\.pth)(?<!\.ckpt)(?<!\.bin)"
)
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def is_name(source: str) -> bool:
    """Whether a source of weights, which is no file or folder here, is meant as a name."""
    hub = HUB_NAME.fullmatch(source) and not source.endswith(".safetensors")
    return source.startswith(TORCHVISION) or bool(hub and not Path(source).parent.exists())


def download(name: str) -> Mapping[str, Tensor] | Path:
    """A state dict of torchvision, or the file that the hub keeps of a model.

    `torchvision:vit_b_16` takes the best weights of a model, `torchvision:ResNet50_Weights.X` those
    of a name. Both libraries keep what they fetched: the second time no network is needed.

    Raises:
        InputError: there are no such weights, the library is not installed, or nobody answers.
    """
    if name.startswith(TORCHVISION):
        return of_torchvision(name.removeprefix(TORCHVISION))
    return of_hub(name)


def of_torchvision(name: str) -> Mapping[str, Tensor]:
    models = torchvision.models
    try:
        weights = models.get_weight(name) if "." in name else models.get_model_weights(name).DEFAULT
    except (ValueError, KeyError) as error:
        nearest = difflib.get_close_matches(name, models.list_models(), n=3)
        hint = f"nearest: {', '.join(nearest)}" if nearest else "such as vit_b_16"
        raise InputError(f"{TORCHVISION}{name}: torchvision has no such weights; {hint}") from error
    try:
        return weights.get_state_dict(progress=False)
    except OSError as error:
        raise InputError(
            f"{TORCHVISION}{name}: not reached ({error}): download {weights.url} where there is a"
            " network, and give the path of the file"
        ) from error


def of_hub(name: str) -> Path:
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
    set_verbosity_error()  # it tells of every attempt
    for file in HUB_FILES:
        try:
            return Path(hf_hub_download(name, file))
        except LocalEntryNotFoundError as error:  # an EntryNotFoundError too
            raise unreached(name, error) from error
        except EntryNotFoundError:
            continue
        except RepositoryNotFoundError as error:
            raise InputError(
                f"{name}: no such file, and the hub has no public model of this name"
            ) from error
        except Exception as error:  # of whichever transport the library uses
            raise unreached(name, error) from error
    raise InputError(f"{name}: the hub's model has none of {', '.join(HUB_FILES)}")


def unreached(name: str, error: Exception) -> InputError:
    return InputError(
        f"{name}: no such file, and the hub does not answer ({type(error).__name__}): download the"
        f" model's {HUB_FILES[0]} where there is a network, and give its path"
    )
