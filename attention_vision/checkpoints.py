"""Official weights: read the state dicts of the peers' libraries into this package's networks.

A layout is a list of renamings from their keys to ours. The first layout that has a key of its own
in the state dict is taken, so that nobody has to say where a file comes from.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TypeVar

import torch
from torch import Tensor, nn

from attention_vision.errors import InputError

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Layout:
    """How one library names the parameters of one network.

    Attributes:
        name: for messages.
        signature: keys that only this layout has, all of them.
        renames: (pattern, replacement) pairs, applied in turn to the start of every key.
        backbone: pattern of what stands before the keys of a backbone ...
        backbone_renames: ... and the renames of what follows.
    """

    name: str
    signature: tuple[str, ...]
    renames: tuple[tuple[str, str], ...]
    backbone: str = ""
    backbone_renames: tuple[tuple[str, str], ...] = ()

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return stack_projections({self.rename(key): value for key, value in state.items()})

    def rename(self, key: str) -> str:
        prefix = re.match(self.backbone, key) if self.backbone else None
        if prefix:
            return "backbone." + renamed(key[prefix.end() :], self.backbone_renames)
        return renamed(key, self.renames)


def renamed(key: str, renames: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in renames:
        key = re.sub(f"^{pattern}", replacement, key)
    return key


def stack_projections(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values that have a matrix each, `qkv.0` to `qkv.2`, share one here."""
    for key in [key for key in state if ".qkv.0." in key]:
        parts = [key.replace(".qkv.0.", f".qkv.{part}.") for part in range(3)]
        if state.keys() >= set(parts):
            state[key.replace(".qkv.0.", ".qkv.")] = torch.cat([state.pop(one) for one in parts])
    return state


RESNET = (
    (r"conv1\.", "stem.conv."),
    (r"bn1\.", "stem.norm."),
    # Stages count from 1 there and from 0 here.
    *((rf"layer{stage + 1}\.", f"stages.{stage}.") for stage in range(4)),
    (r"(stages\.\d+\.\d+)\.bn(\d)\.", r"\1.norm\2."),
    (r"(stages\.\d+\.\d+)\.downsample\.", r"\1.shortcut."),
    (r"(stages\.\d+\.\d+)\.se\.fc1\.", r"\1.attention.squeeze."),
    (r"(stages\.\d+\.\d+)\.se\.fc2\.", r"\1.attention.excite."),
    (r"fc\.", "head."),
)

# The ResNet of Hugging Face, which counts stages, layers and convolutions from 0.
HUGGING_FACE_RESNET = (
    (r"embedder\.embedder\.convolution\.", "stem.conv."),
    (r"embedder\.embedder\.normalization\.", "stem.norm."),
    (r"encoder\.stages\.(\d)\.layers\.(\d+)\.", r"stages.\1.\2."),
    (r"(stages\.\d\.\d+)\.shortcut\.convolution\.", r"\1.shortcut.0."),
    (r"(stages\.\d\.\d+)\.shortcut\.normalization\.", r"\1.shortcut.1."),
    *(
        (rf"(stages\.\d\.\d+)\.layer\.{number}\.{theirs}\.", rf"\1.{ours}{number + 1}.")
        for number in range(3)
        for theirs, ours in (("convolution", "conv"), ("normalization", "norm"))
    ),
)

DETR_LAYER = r"(transformer\.(?:en|de)coder\.\d+)"

LAYOUTS = (
    Layout("ResNet of torchvision or timm", ("conv1.weight", "layer1.0.conv1.weight"), RESNET),
    Layout(
        "ViT or DeiT of timm",
        ("cls_token", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"),
        (
            (r"cls_token$", "pool.token"),
            (r"pos_embed$", "position.table"),
            (r"patch_embed\.proj\.", "patches."),
            (r"(blocks\.\d+)\.attn\.qkv\.", r"\1.attention.qkv."),
            (r"(blocks\.\d+)\.attn\.proj\.", r"\1.attention.out."),
            (r"(blocks\.\d+)\.mlp\.fc1\.", r"\1.mlp.expand."),
            (r"(blocks\.\d+)\.mlp\.fc2\.", r"\1.mlp.reduce."),
        ),
    ),
    Layout(
        "ViT of torchvision",
        ("class_token", "conv_proj.weight", "encoder.pos_embedding"),
        (
            (r"class_token$", "pool.token"),
            (r"encoder\.pos_embedding$", "position.table"),
            (r"conv_proj\.", "patches."),
            (r"encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
            (r"encoder\.ln\.", "norm."),
            (r"(blocks\.\d+)\.ln_(\d)\.", r"\1.norm\2."),
            (r"(blocks\.\d+)\.self_attention\.in_proj_", r"\1.attention.qkv."),
            (r"(blocks\.\d+)\.self_attention\.out_proj\.", r"\1.attention.out."),
            # linear_1 and linear_2 before torchvision 0.13, places in a Sequential since.
            (r"(blocks\.\d+)\.mlp\.(0|linear_1)\.", r"\1.mlp.expand."),
            (r"(blocks\.\d+)\.mlp\.(3|linear_2)\.", r"\1.mlp.reduce."),
            (r"heads\.head\.", "head."),
        ),
    ),
    Layout(
        "DETR of the official release",
        ("query_embed.weight", "input_proj.weight", "class_embed.weight"),
        (
            (r"query_embed\.", "queries."),
            (r"input_proj\.", "projection."),
            (r"class_embed\.", "class_head."),
            *((rf"bbox_embed\.layers\.{layer}\.", f"box_head.{2 * layer}.") for layer in range(3)),
            (r"transformer\.(en|de)coder\.norm\.", r"transformer.\1coder_norm."),
            (r"transformer\.(en|de)coder\.layers\.", r"transformer.\1coder."),
            (DETR_LAYER + r"\.self_attn\.in_proj_", r"\1.self_attention.qkv."),
            (DETR_LAYER + r"\.self_attn\.out_proj\.", r"\1.self_attention.out."),
            (DETR_LAYER + r"\.multihead_attn\.in_proj_", r"\1.cross_attention.qkv."),
            (DETR_LAYER + r"\.multihead_attn\.out_proj\.", r"\1.cross_attention.out."),
            (DETR_LAYER + r"\.linear1\.", r"\1.feed_forward.expand."),
            (DETR_LAYER + r"\.linear2\.", r"\1.feed_forward.reduce."),
            (DETR_LAYER + r"\.norm(\d)\.", r"\1.residual\2.norm."),
        ),
        backbone=r"backbone\.0\.body\.",
        backbone_renames=RESNET,
    ),
    Layout(
        "DETR of Hugging Face",
        ("model.query_position_embeddings.weight", "class_labels_classifier.weight"),
        (
            (r"model\.query_position_embeddings\.", "queries."),
            (r"model\.input_projection\.", "projection."),
            (r"class_labels_classifier\.", "class_head."),
            *(
                (rf"bbox_predictor\.layers\.{layer}\.", f"box_head.{2 * layer}.")
                for layer in range(3)
            ),
            (r"model\.decoder\.layernorm\.", "transformer.decoder_norm."),
            (r"model\.(en|de)coder\.layers\.", r"transformer.\1coder."),
            (DETR_LAYER + r"\.self_attn\.", r"\1.self_attention."),
            (DETR_LAYER + r"\.encoder_attn\.", r"\1.cross_attention."),
            *(
                (
                    DETR_LAYER + rf"\.(self|cross)_attention\.{theirs}_proj\.",
                    rf"\1.\2_attention.{ours}.",
                )
                for theirs, ours in (("q", "qkv.0"), ("k", "qkv.1"), ("v", "qkv.2"))
            ),
            # out_proj, fc1 and fc2 before transformers 5, o_proj, mlp.fc1 and mlp.fc2 since.
            (DETR_LAYER + r"\.(self|cross)_attention\.o(?:ut)?_proj\.", r"\1.\2_attention.out."),
            (DETR_LAYER + r"\.(?:mlp\.)?fc1\.", r"\1.feed_forward.expand."),
            (DETR_LAYER + r"\.(?:mlp\.)?fc2\.", r"\1.feed_forward.reduce."),
            (DETR_LAYER + r"\.self_attn_layer_norm\.", r"\1.residual1.norm."),
            (DETR_LAYER + r"\.encoder_attn_layer_norm\.", r"\1.residual2.norm."),
            (r"(transformer\.encoder\.\d+)\.final_layer_norm\.", r"\1.residual2.norm."),
            (r"(transformer\.decoder\.\d+)\.final_layer_norm\.", r"\1.residual3.norm."),
        ),
        # conv_encoder only before transformers 5; the ResNet is timm's or Hugging Face's own.
        backbone=r"model\.backbone\.(?:conv_encoder\.)?model\.",
        backbone_renames=HUGGING_FACE_RESNET + RESNET,
    ),
    Layout(
        "Faster R-CNN of torchvision",
        ("backbone.body.conv1.weight", "roi_heads.box_predictor.cls_score.weight"),
        (
            (r"backbone\.fpn\.", "pyramid."),
            # Blocks are Sequentials since torchvision 0.13; the released file is older.
            (r"(pyramid\.(?:inner|layer)_blocks\.\d)\.(weight|bias)", r"\1.0.\2"),
            (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
            (r"roi_heads\.box_head\.", "roi_heads.box_head.layers."),
            (r"roi_heads\.box_predictor\.", "roi_heads.box_head.predictor."),
        ),
        backbone=r"backbone\.body\.",
        backbone_renames=RESNET,
    ),
)

# What of a detector belongs to its classes: the start of the keys, the bias of the logits, of which
# there is one more than classes, and how many classes the released weights have.
CLASS_HEADS = (
    ("class_head.", "bias", "COCO ids as they are need 91"),
    ("roi_heads.box_head.predictor.", "cls_score.bias", "COCO ids from 1 need 90"),
)


def load_official(
    model: Model, source: str | Path | Mapping[str, Tensor], leave_out: tuple[str, ...] = ()
) -> Model:
    """Load the weights that another library or a paper's authors released.

    Recognised by their keys: ResNet of torchvision and timm, SE-ResNet of timm, ViT of torchvision,
    ViT and DeiT of timm, DETR of the official release and of Hugging Face, before transformers 5
    and since, Faster R-CNN R50-FPN of torchvision. The model's own state dict is taken as it is.

    A state dict says nothing about the `eps` of norms. Torchvision's released Faster R-CNN
    (COCO_V1) was trained with 0: `norm=partial(FrozenBatchNorm2d, eps=0.0)`.

    Args:
        model: a network of this package with the shapes of the weights.
        source: a state dict, or a file that `torch.load(weights_only=True)` or safetensors reads;
            a dict that holds one under "state_dict" or "model" is opened, and the prefix "module."
            of a parallel wrapper is cut off.
        leave_out: starts of this package's keys that are not loaded: `("class_head.",)` fine-tunes
            DETR on other classes, `("roi_heads.box_head.predictor.",)` Faster R-CNN, and
            `("head.",)` gives a backbone the weights of a classifier.

    Returns:
        the same model, all of its weights loaded but those left out.

    Raises:
        InputError: the file cannot be read, the keys belong to no known layout, or something does
            not fit. The model is then unchanged.
    """
    state = read(source) if isinstance(source, str | Path) else source
    where = str(source) if isinstance(source, str | Path) else "state dict"
    for wrapper in ("state_dict", "model"):
        if isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    state = {key.removeprefix("module."): value for key, value in state.items()}

    own = model.state_dict()
    layout = next((one for one in LAYOUTS if state.keys() >= set(one.signature)), None)
    if layout is not None:
        state = layout.translate(state)
    elif not state.keys() & own.keys():
        raise InputError(
            f"{where}: the keys ({', '.join(list(state)[:3])}, ...) belong to no known layout; "
            f"known are {'; '.join(one.name for one in LAYOUTS)}"
        )

    # Frozen batch norms do not count batches.
    counters = [key for key in state.keys() - own.keys() if key.endswith(".num_batches_tracked")]
    left_out = {key for key in own.keys() | state.keys() if key.startswith(leave_out)}
    state = {key: value for key, value in state.items() if key not in left_out | set(counters)}
    own = {key: value for key, value in own.items() if key not in left_out}

    name = layout.name if layout else "this package's own"
    for start, bias, released in CLASS_HEADS:
        theirs, ours = (len(one.get(start + bias, ())) - 1 for one in (state, own))
        if min(theirs, ours) > 0 and theirs != ours:
            raise InputError(
                f"{where} ({name}) detects {theirs} classes, the model {ours}: set num_classes to "
                f'{theirs} ({released}), or leave out "{start}" to fine-tune'
            )
    problems = [f"{key} is missing" for key in own.keys() - state.keys()]
    problems += [f"{key} has no place" for key in state.keys() - own.keys()]
    problems += [
        f"{key} is {tuple(state[key].shape)}, the model's {tuple(own[key].shape)}"
        for key in own.keys() & state.keys()
        if state[key].shape != own[key].shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:8])
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise InputError(f"{where} ({name}) does not fit the model: {shown}{more}")
    model.load_state_dict(state, strict=False)  # all but what is left out, as checked above
    return model


def load_backbone(backbone: Model, source: str | Path) -> Model:
    """Give a backbone the weights of a classifier, without its pool and head.

    Args:
        backbone: a network of this package.
        source: a run folder of classification, of which the best checkpoint is taken (else the
            last), or a file as `load_official` reads it.

    Raises:
        InputError: there is no checkpoint, or the weights do not fit.
    """
    path = Path(source)
    if path.is_dir():
        kept = [path / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")]
        path = next((file for file in kept if file.is_file()), kept[0])
    state = read(path)
    state = state.get("state_dict", state)
    start = "network."  # a checkpoint of training holds the network beside its metrics
    inside = {key.removeprefix(start): v for key, v in state.items() if key.startswith(start)}
    return load_official(backbone, inside or state, leave_out=("pool.", "head."))


def read(path: str | Path) -> Mapping[str, Tensor]:
    """A state dict from a file of torch (tensors only) or safetensors."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of a downloaded state dict")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:  # torch's own text advises to load it unsafely
        raise InputError(
            f"{path}: not readable as a state dict: a broken file, another format, or objects that"
            " are no tensors, which could run code and are refused"
        ) from error
    except Exception as error:
        raise InputError(f"{path}: not readable as a state dict ({first_line(error)})") from error


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
