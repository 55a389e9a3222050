"""Load the state dicts of other libraries and releases into this package's networks."""

from argparse import Namespace
from collections.abc import Collection, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from attention_vision.attention.fade_in import added_to
from attention_vision.backbones import Backbone, EfficientNet
from attention_vision.checkpoints.hub import HUB_FILES, download, is_name
from attention_vision.checkpoints.layouts.swin import resize_biases
from attention_vision.checkpoints.mismatch import (
    check_dilation,
    check_variant,
    other_heads,
    other_network,
    padding_of,
    suggest_arguments,
    tables_of_other_grids,
)
from attention_vision.checkpoints.preprocessing import find_release
from attention_vision.checkpoints.wrappers import find_weights
from attention_vision.errors import InputError
from attention_vision.training.labels import Labels, labels_in
from attention_vision.training.progress import say
from attention_vision.training.run_folder import best_or_last, demo_hint

Model = TypeVar("Model", bound=nn.Module)

# Class-dependent parameters of each detector: key prefix, classifier bias, how many of its entries
# are of no class, and a hint on the num_classes of the released weights.
CLASS_HEADS = (
    ("class_head.", "bias", 1, "COCO ids as they are need 91"),
    ("class_head.", "0.bias", 0, "COCO ids as they are need 91"),
    ("roi_heads.box_head.predictor.", "cls_score.bias", 1, "COCO ids from 1 need 90"),
)


def load_official(
    model: Model,
    source: str | Path | Mapping[str, Tensor],
    leave_out: tuple[str, ...] = (),
    resize: bool = False,
) -> Model:
    """Load the weights that another library or a paper's authors released.

    Recognized by their keys: ResNet of torchvision and timm, SE-ResNet of timm, CBAM-ResNet of the
    official release, EfficientNet of torchvision and timm, ViT of torchvision, ViT and DeiT of timm
    and of Hugging Face, CCT, CVT and ViT-Lite of the official release, Swin of the official
    release, torchvision and timm, DETR and Deformable DETR of the official releases and of Hugging
    Face, before transformers 5 and since, Faster R-CNN R50-FPN of torchvision. The model's own
    state dict is loaded unchanged. Relative position biases are resized to the windows of the
    model.

    A state dict does not show all of the function. How many heads: a warning says where the model
    has another number than releases of its width. The `eps` of norms: torchvision's released Faster
    R-CNN (COCO_V1) was trained with 0, `norm=partial(FrozenBatchNorm2d, eps=0.0)`. How convolutions
    pad: timm's `tf_efficientnet_*` are told by their name or config.json, and want
    `EfficientNet(padding="same")`, as are dilated DETRs ("DC5").

    Entries and prefixes that are saved around weights are recognized, see `wrappers.find_weights`:
    `state_dict`, `model`, `module.`, `_orig_mod.`, whatever an own LightningModule calls its
    network. Of an average of weights and the weights themselves, the average is taken. A line is
    printed where something was chosen or cut off.

    Args:
        model: a network of this package with the shapes of the weights.
        source: a state dict, or a file that `torch.load(weights_only=True)` or safetensors reads.
            Or a run folder: its best checkpoint, else its last. Or a downloaded folder of the hub,
            or a name, see `hub.download`.
        leave_out: prefixes of this package's keys that are not loaded: `("class_head.",)` to
            fine-tune DETR on other classes, `("roi_heads.box_head.predictor.",)` for Faster R-CNN,
            and `("head.",)` to load a classifier into a backbone.
        resize: whether to interpolate absolute positions of another grid of patches, for images of
            another size, to the model's.

    Attention that the weights lack may be new where it is a `FadeIn`, or a residual mechanism of
    this package whose gamma is 0, which leaves the network's function as it was. A line names it.

    Returns:
        the same model, with all of its weights loaded except those left out.

    Raises:
        InputError: the file cannot be read, its keys are of an unknown layout, or a key or shape
            does not fit. The model is then unchanged.
    """
    state, where, notes = to_own_names(model, source)
    state = resize_positions(state, model) if resize else state
    new = load_completely(model, state, where, leave_out)
    if notes or new:
        say(f"weights: {where}{new}")
    return model


def load_completely(
    model: nn.Module, state: Mapping[str, Tensor], where: str, leave_out: tuple[str, ...] = ()
) -> str:
    """Load a state dict with this package's names, or raise one error; see `load_official`.

    Returns:
        what the message of the loaded weights says of attention that they lack.
    """
    own = model.state_dict()
    state = resize_biases(state, own)

    # Frozen batch norms do not count batches, nor did any before torch 0.4.1.
    counters = {key for key in state.keys() ^ own.keys() if key.endswith(".num_batches_tracked")}
    left_out = {key for key in own.keys() | state.keys() if key.startswith(leave_out)} | counters
    state = {key: value for key, value in state.items() if key not in left_out}
    own = {key: value for key, value in own.items() if key not in left_out}

    for start, bias, others, released in CLASS_HEADS:
        theirs, ours = (len(one.get(start + bias, ())) - others for one in (state, own))
        if min(theirs, ours) > 0 and theirs != ours:
            raise InputError(
                f"{where} detects {theirs} classes, the model {ours}: set num_classes to "
                f'{theirs} ({released}), or leave out "{start}" to fine-tune'
            )
    missing = own.keys() - state.keys()
    added = attention_to_add(model, state, missing)
    new = {key for key in missing if key.startswith(tuple(f"{name}." for name in added))}
    problems = {key: f"{key} is missing" for key in missing - new}
    problems |= {key: f"{key} is not in the model" for key in state.keys() - own.keys()}
    problems |= {
        key: f"{key} is {tuple(state[key].shape)}, the model's {tuple(own[key].shape)}"
        for key in own.keys() & state.keys()
        if state[key].shape != own[key].shape
    }
    if problems:
        if suggestion := suggest_arguments(state, model, set(problems)):
            raise InputError(f"{where} {suggestion}")
        if other := other_network(state, model):
            raise InputError(f"{where} does not fit the model: it is {other}")
        shown = "; ".join(sorted(problems.values())[:8])
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise InputError(f"{where} does not fit the model: {shown}{more}")
    model.load_state_dict(state, strict=False)  # strict but for what was checked above
    more = f" and {len(added) - 1} more" if added[1:] else ""
    return f"; new attention: {added[0]}{more}" if added else ""


def attention_to_add(
    model: nn.Module, state: Mapping[str, Tensor], missing: Collection[str]
) -> list[str]:
    """Modules that may be new in a trained network, and of which the state dict has nothing."""

    def has(keys: Collection[str], name: str) -> bool:
        return any(key.startswith(f"{name}.") for key in keys)

    return [name for name in added_to(model) if has(missing, name) and not has(state, name)]


def start_from(network: Backbone, source: str | Path | Mapping[str, Tensor]) -> str:
    """Load the weights that a classifier is fine-tuned from.

    As `load_official` with `resize`. If the weights have other classes, or no head, the network's
    head is initialized to zero, as google-research/vision_transformer does for fine-tuning.

    Returns:
        one line that reports what was not loaded unchanged.

    Raises:
        InputError: as `load_official`; the network is then unchanged.
    """
    state, where, _ = to_own_names(network, source)
    own = network.state_dict()
    other = {key for key in own if key not in state or state[key].shape != own[key].shape}
    new_head = any(key.startswith("head.") for key in other)
    new = load_completely(
        network, resize_positions(state, network), where, ("head.",) if new_head else ()
    )

    changes = []
    if new_head:
        for parameter in network.head.parameters():
            nn.init.zeros_(parameter)
        rows = [len(value) for key, value in state.items() if key.startswith("head.")]
        theirs = f"a head of {rows[0]} classes left out, " if rows else ""
        changes.append(f"{theirs}the new one of {network.num_classes} starts at zero")
    tables = sorted(key for key in other if key.endswith("table"))
    if tables:
        theirs, ours = (one[tables[0]].shape[-2] for one in (state, own))
        more = f" and {len(tables) - 1} more" if tables[1:] else ""
        changes.append(f"{tables[0]}{more} resized from {theirs} to {ours} places")
    return f"weights: {where}: {'; '.join(changes) or 'all loaded'}{new}"


def to_own_names(
    model: nn.Module, source: str | Path | Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], str, list[str]]:
    """Read a state dict and translate its keys into this package's names.

    Returns:
        the state dict, its file and layout for messages, and what was chosen, cut off or assumed.

    Raises:
        InputError: the file cannot be read, or its keys are of an unknown layout, or its weights
            are those of another function than the model's.
    """
    checkpoint: Mapping[str, Any] = read(source) if isinstance(source, str | Path) else source
    where = str(source) if isinstance(source, str | Path) else "state dict"
    weights = find_weights(checkpoint, model.state_dict().keys(), where)
    layout, notes = weights.layout, list(weights.notes)
    state = layout.translate(weights.state) if layout else weights.state
    name = layout.name if layout else "this package's own"
    check_dilation(model, where)
    if layout is not None and (heads := other_heads(model, layout)):
        notes.append(heads)
    if isinstance(model, EfficientNet) and layout is not None:
        known = find_release(source) if isinstance(source, str | Path) else None
        architecture = known.architecture if known else where
        check_variant(model, state, f"{where} ({name})")
        trained = padding_of(layout, architecture)
        if trained is None:
            notes.append(f"padding {model.padding} assumed")
        elif trained != model.padding:
            raise InputError(
                f"{where} ({name}) was trained with padding {trained}, the network has"
                f" {model.padding} and would compute another function: set its padding to {trained}"
            )
    return state, f"{where} ({'; '.join((name, *notes))})", notes


def resize_positions(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Interpolate the absolute positions of another square grid to the model's."""
    return {**state} | {
        key: position.resized(state[key], grid, position.grid)
        for key, position, grid in tables_of_other_grids(state, model)
    }


def load_backbone(backbone: Model, source: str | Path) -> Model:
    """Load the weights of a classifier into a backbone, without its pool and head.

    Args:
        backbone: a network of this package.
        source: a run folder of classification (its best checkpoint, else its last), or a file or
            name as in `load_official`.

    Raises:
        InputError: there is no checkpoint, or the weights do not fit.
    """
    return load_official(backbone, source, leave_out=("pool.", "head."))


def read(path: str | Path) -> Mapping[str, Any]:
    """Read a state dict from a file (torch or safetensors), a folder, or a download by name."""
    if not Path(path).exists() and is_name(str(path)):
        found = download(str(path))
        if isinstance(found, Mapping):
            return found
        path = found
    path = Path(path)
    if path.is_dir():
        downloaded = (path / name for name in HUB_FILES if (path / name).is_file())
        path = best_or_last(path) or next(downloaded, path / "checkpoints" / "best.ckpt")
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; give a downloaded state dict or the folder of a run"
            f"{demo_hint(path)}"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals([Namespace]):  # the arguments, in timm's checkpoints
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:  # torch's own text advises to load it unsafely
        raise InputError(
            f"{path}: not readable as a state dict: a broken file, another format, or objects that"
            " are not tensors, which could run code and are refused"
        ) from error
    except Exception as error:
        raise InputError(f"{path}: not readable as a state dict ({first_line(error)})") from error


def labels_of(source: str | Path) -> Labels | None:
    """The labels that weights on disk were trained with, where they are a checkpoint of a run."""
    return labels_in(read(source)) if Path(source).exists() else None


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
