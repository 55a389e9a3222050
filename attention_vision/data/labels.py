"""Mapping of labels by their names."""

from collections.abc import Sequence

from attention_vision.errors import InputError

SHOWN = 6  # names in a message


def labels_by_name(trained: Sequence[str], here: Sequence[str], where: str) -> list[int]:
    """The trained label of each label of some data, found by their names.

    Args:
        trained: names of the classes that the weights know.
        here: names of the classes of the data.
        where: the data, for the message.

    Raises:
        InputError: the data has classes that the weights do not know; it names them.
    """
    numbers = {name: number for number, name in enumerate(trained)}
    unknown = [name for name in here if name not in numbers]
    if unknown:
        raise InputError(
            f"{where}: {shown(unknown)} {'is' if len(unknown) == 1 else 'are'} not among the"
            f" {len(trained)} classes that the weights were trained on ({shown(trained)}): take"
            " data of those, or train on this data"
        )
    return [numbers[name] for name in here]


def shown(names: Sequence[str]) -> str:
    """The first names in words."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(str, names[:SHOWN])) + more
