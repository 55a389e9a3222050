"""What surrounds the weights of a network in a file: training states, averages and prefixes."""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from attention_vision.checkpoints.layouts import LAYOUTS, Layout
from attention_vision.errors import InputError

# Entries of a training state, the first of which is taken where there are several.
ENTRIES = ("state_dict", "model_state_dict", "model", "net", "network", "module")
# Names of averages of weights, which timm and torchvision evaluate where a file has one.
AVERAGE = re.compile(r"(^|_|\.)(ema|averaged?|swa)(_|\.|$)")
# Put into the middle of names by torch.compile, FSDP and activation checkpointing.
INSERTED = re.compile(r"(?:(?<=\.)|^)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
PREFIXES = ("network.", "model.", "net.", "module.")  # of networks inside of other modules


@dataclass(frozen=True)
class Weights:
    """The weights of one network, by the names of a layout, or of this package's.

    Attributes:
        state: of the network alone.
        layout: None for this package's own names.
        notes: what was chosen and cut off, for the user.
    """

    state: dict[str, Tensor]
    layout: Layout | None
    notes: tuple[str, ...]


def find_weights(checkpoint: Mapping[str, Any], own: Collection[str], where: str) -> Weights:
    """Find the weights of a network in whatever was saved with and around them.

    Args:
        checkpoint: a state dict, or what has one among its entries.
        own: names of the weights of the network that they are for.
        where: for messages.

    Raises:
        InputError: there are none, several among which nothing chooses, or ones whose names belong
            to no known layout.
    """
    state, notes = unwrap(checkpoint, where)
    inserted = {name for key in state for name in INSERTED.findall(key)}
    if inserted:
        state = {INSERTED.sub("", key): value for key, value in state.items()}
        notes.append(f"{' and '.join(sorted(inserted))} cut out of the names")
    layout = next((one for one in LAYOUTS if state.keys() >= set(one.signature)), None)
    if layout is None and not state.keys() & set(own):
        prefix, layout = find_prefix(state, own, where)
        inside = {
            key.removeprefix(prefix): value
            for key, value in state.items()
            if key.startswith(prefix)
        }
        if prefix != "network.":  # of this package's runs, with their metrics beside it
            notes.append(prefix_note(prefix, [key for key in state if not key.startswith(prefix)]))
        state = inside
    return Weights(state, layout, tuple(notes))


def unwrap(checkpoint: Mapping[str, Any], where: str) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict among the entries of a training state, and what was chosen."""
    notes = []
    if "averaging_state" in checkpoint:  # Lightning has put the average into `state_dict`
        notes.append("the average of weights")
    while entries := {key: one for key, one in checkpoint.items() if holds_weights(one)}:
        averages = [key for key in entries if AVERAGE.search(key)]
        plain = [key for key in ENTRIES if key in entries]
        if averages:
            key = averages[0]
            others = ", ".join(one for one in entries if one != key)
            notes.append(f"the average of weights `{key}`" + (f", not {others}" if others else ""))
        elif plain:
            key = plain[0]
        elif len(entries) == 1:
            (key,) = entries
            notes.append(f"its entry `{key}`")
        else:
            raise InputError(
                f"{where} has several networks ({', '.join(entries)}): save the state dict of one"
            )
        checkpoint = checkpoint[key]
    state = {key: one for key, one in checkpoint.items() if isinstance(one, Tensor)}
    state.pop("n_averaged", None)  # the count of torch's AveragedModel
    return state, notes


def holds_weights(entry: Any) -> bool:
    """Whether an entry is a state dict, or has one in it; states of optimizers have numbers."""
    if not isinstance(entry, Mapping) or "param_groups" in entry:
        return False
    named = {key: one for key, one in entry.items() if isinstance(key, str)}
    return any(
        one.ndim > 0 if isinstance(one, Tensor) else key in ENTRIES and holds_weights(one)
        for key, one in named.items()
    )


def find_prefix(
    state: Mapping[str, Tensor], own: Collection[str], where: str
) -> tuple[str, Layout | None]:
    """The prefix below which the names are this package's, or of a known layout.

    An average is preferred, then the outermost, then the usual names.
    """
    overlaps = Counter(
        key[: place + 1]
        for key in state
        for place in (found.start() for found in re.finditer(r"\.", key))
        if key[place + 1 :] in own
    )
    found: dict[str, Layout | None] = {
        prefix: None for prefix, count in overlaps.items() if 2 * count > len(own)
    }
    for layout in LAYOUTS:
        first, *others = layout.signature
        for prefix in [key.removesuffix(first) for key in state if key.endswith(f".{first}")]:
            if all(f"{prefix}{key}" in state for key in others):
                found.setdefault(prefix, layout)
    if not found and any(key.startswith("network.") for key in state):
        found["network."] = None  # a run of another network: what follows says what does not fit
    if not found:
        raise InputError(
            f"{where}: the keys ({', '.join(list(state)[:3])}, ...) belong to no known layout; "
            f"known are {'; '.join(one.name for one in LAYOUTS)}"
        )

    def rank(prefix: str) -> tuple[bool, int, int]:
        last = f"{prefix.split('.')[-2]}."
        usual = PREFIXES.index(last) if last in PREFIXES else len(PREFIXES)
        return not AVERAGE.search(prefix), prefix.count("."), usual

    best, *others = sorted(found, key=rank)
    if others and rank(others[0]) == rank(best):
        raise InputError(
            f"{where} has several networks ({best}*, {others[0]}*): save the state dict of one"
        )
    return best, found[best]


def prefix_note(prefix: str, left_out: list[str]) -> str:
    """One line on a prefix that was cut off."""
    average = "the average of weights, " if AVERAGE.search(prefix) else ""
    more = f", ... ({len(left_out)})" if len(left_out) > 1 else ""
    others = f", and {left_out[0]}{more} left out" if left_out else ""
    return f"{average}prefix {prefix} cut off{others}"
