"""Contract of the terms added to a classifier's loss: `distillation` and `penalty`."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from attention_vision.backbones import Backbone
from attention_vision.classification.data import ClassificationData

Maps = dict[str, Tensor]  # name of a layer -> what was recorded of it
Output = Tensor | tuple[Tensor, Tensor]  # logits (B, num_classes), or those of both tokens


class Term(Protocol):
    """A term of the loss that looks into the forward pass of the network.

    ```python
    with term.record(network) as maps:
        output = network(images)
    loss = cross_entropy(output, labels) + term(images, output, maps)
    ```
    """

    def prepare(self, network: Backbone, data: ClassificationData | None) -> None:
        """Once before training. Raises InputError when the term does not fit network or data."""

    def record(self, network: Backbone) -> AbstractContextManager[Maps]:
        """Records, of a forward pass inside the block, what the term needs to see."""
        ...

    def __call__(self, images: Tensor, output: Output, maps: Maps) -> Tensor:
        """The summand of the loss, a scalar; images (B, 3, H, W) as the network saw them."""
        ...


@contextmanager
def record_terms(terms: Mapping[str, Term], network: Backbone) -> Iterator[dict[str, Maps]]:
    """Records for each term, by its name, the forward pass inside the block."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(term.record(network)) for name, term in terms.items()}


@contextmanager
def trial(network: nn.Module) -> Iterator[None]:
    """The network in eval mode and without gradients; afterwards as it was."""
    modes = {module: module.training for module in network.modules()}
    try:
        with torch.no_grad():
            network.eval()
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def blank_image(network: nn.Module, data: ClassificationData) -> Tensor:
    """One image (1, 3, H, W) of the data's size, for a trial of the network."""
    first = next(network.parameters())
    return torch.zeros(1, 3, data.image_size, data.image_size).to(first)
