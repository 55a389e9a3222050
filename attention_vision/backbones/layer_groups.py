"""Groups of parameters by depth (stem, blocks, head), for layer-wise learning-rate decay."""

from torch import nn


def layers_by_depth(network: nn.Module, class_token: bool = False) -> list[list[str]]:
    """Names of the parameters, layer by layer from the stem to the head.

    The first layer is everything before the blocks (patches, class token, positions; a stem), then
    each block is a layer, the last is everything after (norm, head), as in BEiT (arXiv 2106.08254).

    Blocks are the children of the network's largest row; a row is a ModuleList or Sequential of
    numbered modules that have children. If these are stages, the blocks are in the stages' own
    rows, all of one class; other parts of a stage belong to its first block if they come before it,
    else to its last. A row of the same length after the blocks, such as a bias for each of them, is
    divided among them one by one.

    Args:
        class_token: whether `pool` is a class token, and so comes before the blocks, not after.
    """
    rows = {name: child for name, child in network.named_children() if is_row(child)}
    row = largest(rows)
    if row is None:
        return [[name for name, _ in network.named_parameters()]]
    stages = numbered(rows[row])
    blocks = [
        (number, start)
        for number, stage in stages.items()
        for start in block_names(f"{row}.{number}", stage)
    ]
    of_stage: dict[str, list[int]] = {}  # number of a stage -> depths of its blocks
    for depth, (number, _) in enumerate(blocks, start=1):
        of_stage.setdefault(number, []).append(depth)

    begun = set()  # stages of which a block has been seen
    children = list(network._modules)
    behind = set(children[children.index(row) + 1 :]) | (set() if class_token else {"pool"})
    layers: list[list[str]] = [[] for _ in range(len(blocks) + 2)]
    for name, _ in network.named_parameters():
        child, number, *_ = [*name.split("."), ""]
        if child == row:
            depths = of_stage[number]
            own = [depth for depth in depths if name.startswith(blocks[depth - 1][1])]
            if own:
                begun.add(number)
            depth = own[0] if own else depths[-1] if number in begun else depths[0]
        elif child in behind:
            beside = numbered(getattr(network, child)).keys() == stages.keys()
            depth = of_stage[number][0] if beside else len(blocks) + 1
        else:
            depth = 0
        layers[depth].append(name)
    return [layer for layer in layers if layer]


def numbered(module: nn.Module) -> dict[str, nn.Module]:
    """The children of a ModuleList or Sequential that are named by number."""
    if not isinstance(module, nn.ModuleList | nn.Sequential):
        return {}
    return {name: child for name, child in module.named_children() if name.isdigit()}


def is_row(module: nn.Module) -> bool:
    children = numbered(module).values()
    return bool(children) and all(any(child.children()) for child in children)


def is_row_of_blocks(module: nn.Module) -> bool:
    return is_row(module) and len({type(child) for child in numbered(module).values()}) == 1


def largest(modules: dict[str, nn.Module]) -> str | None:
    """Name of the module that contains most modules; None if there are none.

    Not with most parameters: a stem of convolutions can have more than small blocks.
    """
    sizes = {name: len(list(module.modules())) for name, module in modules.items()}
    return max(sizes, key=sizes.__getitem__, default=None)


def block_names(name: str, stage: nn.Module) -> list[str]:
    """Name prefixes of a stage's blocks; that of the stage itself if it is a block."""
    if is_row_of_blocks(stage):
        return [f"{name}.{number}." for number in numbered(stage)]
    rows = {name: child for name, child in stage.named_children() if is_row_of_blocks(child)}
    if (row := largest(rows)) is not None:
        return [f"{name}.{row}.{number}." for number in numbered(rows[row])]
    return [f"{name}."]
