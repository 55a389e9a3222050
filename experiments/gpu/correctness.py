"""Does a GPU compute what the CPU does? Every mechanism and every network.

The reference is the CPU in float64. Errors are |a - b| / |b|, of outputs and of all gradients taken
as one vector: a gradient that ought to be 0, as that of a bias before a softmax, is rounding alone.
In float64 both devices must agree almost to the last digit, whatever order they add in: what they
do not agree on is a fault, not rounding.
"""

import copy
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

import torch
from run import Part
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from attention_vision.attention import CBAM, SqueezeExcite, attention_backend
from attention_vision.backbones import CCT, EfficientNet, ResNet, Swin, ViT
from attention_vision.detection import DETR, AttentionRCNN, DETRDetector, RCNNDetector
from attention_vision.generation import AttentionUNet, Discriminator, Generator
from attention_vision.generation.gan.hinge import discriminator_loss, generator_loss
from attention_vision.generation.gan.spectral_norm import add_spectral_norm
from attention_vision.profiling.cost import tensors_in
from attention_vision.profiling.mechanisms import mechanism_workloads

Loss = Callable[[nn.Module, tuple[Tensor, ...]], tuple[list[Tensor], Tensor]]

# Of mechanisms, outputs; gradients may be 4 times as far. fp8 is rounded on the CPU alike.
BOUNDS = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 5e-2, "fp8": 2**-4}
NETWORK_BOUNDS = {"float64": 1e-6, "float32": 1e-3, "bfloat16": 0.3}  # of networks, outputs


def exact_float32() -> None:
    """No TF32: its mantissa of 10 bits would be the error that is measured."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def moved(inputs: tuple[object, ...], device: str, dtype: torch.dtype) -> tuple[object, ...]:
    """Copies on a device; what is floating in `dtype`, asking for gradients as its original."""

    def one(x: object) -> object:
        if isinstance(x, list | tuple):
            return [one(part) for part in x]
        if isinstance(x, dict):
            return {key: one(part) for key, part in x.items()}
        y = x.detach().to(device, dtype if x.is_floating_point() else x.dtype)
        return y.requires_grad_(x.requires_grad)

    return tuple(one(x) for x in inputs)


def results(
    module: nn.Module, inputs: tuple, loss: Loss, device: str, dtype: torch.dtype, autocast=False
) -> tuple[Tensor, Tensor]:
    """Outputs and gradients, each as one vector in float64 on the CPU."""
    module = copy.deepcopy(module).to(device, dtype)
    inputs = moved(inputs, device, dtype)
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        outputs, value = loss(module, inputs)
    value.backward()
    leaves = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    leaves += [p for p in module.parameters() if p.requires_grad]
    gradients = [x.grad if x.grad is not None else torch.zeros_like(x) for x in leaves]
    return vector([*outputs, value]), vector(gradients)


def vector(parts: list[Tensor]) -> Tensor:
    if not parts:
        return torch.zeros(1, dtype=torch.float64)
    return torch.cat([part.detach().flatten().double().cpu() for part in parts])


def error(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|; infinite where `a` is not finite."""
    if not a.isfinite().all():
        return float("inf")
    return ((a - b).norm() / b.norm().clamp_min(1e-30)).item()


def square(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[list[Tensor], Tensor]:
    outputs = list(tensors_in(module(*inputs)))
    return outputs, sum(output.double().square().mean() for output in outputs)


WAYS = (  # label, type, autocast, backend
    ("float64", torch.float64, False, "fused"),
    ("float32", torch.float32, False, "fused"),
    ("float32 eager", torch.float32, False, "eager"),
    ("bfloat16", torch.float32, True, "fused"),
    ("fp8", torch.float32, False, "fp8"),
)


def mechanism_cases(smoke: bool) -> Iterator[tuple[str, nn.Module, tuple[Tensor, ...]]]:
    """Those of the contract tests, and every mechanism at sizes that networks have."""
    import test_contracts
    from redraw import redraw

    cases = list(test_contracts.CASES.items())
    for name, case in cases[:: 8 if smoke else 1]:
        module, inputs = test_contracts.build(case)
        yield name, module, tuple(inputs)
    sizes = [(16, 8, 8)] if smoke else [(64, 32, 32), (256, 14, 14)]
    for size in sizes:
        for one in mechanism_workloads([size], 2, torch.device("cpu")):
            yield f"{one.name} {size}", redraw(one.network, 0).eval(), one.batch


def mechanisms(part: Part) -> None:
    exact_float32()
    rows, failures = [], []
    for name, module, inputs in mechanism_cases(part.smoke):
        row = {"name": name}
        expected = results(module, inputs, square, "cpu", torch.float64)
        for label, dtype, autocast, backend in WAYS:
            try:
                with attention_backend(backend):
                    y, gradient = results(module, inputs, square, part.device, dtype, autocast)
            except Exception as problem:
                row[label] = f"{type(problem).__name__}: {problem}"[:400]
                failures.append(f"{name}, {label}: {row[label]}")
                continue
            row[label] = {"output": error(y, expected[0]), "gradient": error(gradient, expected[1])}
            bound = BOUNDS[label.split()[0]]
            if row[label]["output"] > bound or row[label]["gradient"] > 4 * bound:
                failures.append(f"{name}, {label}: {row[label]}")
        rows.append(row)
        part.save(bounds=BOUNDS, rows=rows, failures=failures)
    kernels = attention_kernels(part)
    worst = {
        label: max(row[label]["output"] for row in rows if isinstance(row[label], dict))
        for label, *_ in WAYS
    }
    lines = [f"{len(rows)} mechanisms; largest error of an output: {shown(worst)}"]
    part.save(kernels=kernels, summary=[*lines, *(f"beyond: {line}" for line in failures)])


def shown(numbers: dict[str, float]) -> str:
    return ", ".join(f"{key} {value:.1e}" for key, value in numbers.items())


def attention_kernels(part: Part) -> dict[str, list[str]]:
    """Which of the GPU's kernels the fused path of each mechanism runs under bf16 autocast."""
    if part.device == "cpu":
        return {}
    from torch.profiler import ProfilerActivity, profile

    chosen = {}
    for one in mechanism_workloads([(256, 32, 32)], 4, torch.device(part.device)):
        with torch.autocast(part.device, torch.bfloat16):
            one.loss().backward()
            with profile(activities=[ProfilerActivity.CUDA]) as record:
                one.loss().backward()
                torch.cuda.synchronize()
        names = {event.key for event in record.key_averages()}
        marks = re.compile("flash|fmha|cudnn.*(attn|sdpa)|softmax|efficient", re.IGNORECASE)
        chosen[one.name] = sorted(name[:160] for name in names if marks.search(name))
    return chosen


# Networks


def still(network: nn.Module) -> nn.Module:
    """In training, but with nothing random in it."""
    network.train()
    for module in network.modules():
        if isinstance(module, nn.Dropout) or type(module).__name__ == "StochasticDepth":
            module.eval()
        if isinstance(getattr(module, "dropout", None), float):  # of attention weights
            module.dropout = 0.0
    return network


def classify(network: nn.Module, inputs: tuple) -> tuple[list[Tensor], Tensor]:
    logits = network(inputs[0])
    return [logits], cross_entropy(logits, inputs[1])


def look(network: nn.Module, inputs: tuple) -> tuple[list[Tensor], Tensor]:
    """DETR without its criterion, which is in single precision whatever the network is in."""
    return square(network, inputs[:2])


def detect(detector: nn.Module, inputs: tuple) -> tuple[list[Tensor], Tensor]:
    with SameChoices():
        losses = detector.losses(inputs)
    total = losses["total"]
    return [loss[None] for key, loss in losses.items() if key != "total"], total


class SameChoices:
    """Random permutations, by which R-CNN samples, drawn on the CPU on every device."""

    def __enter__(self) -> None:
        self.before, generator = torch.randperm, torch.Generator().manual_seed(0)

        def drawn(n: int, device: object = None, **_: object) -> Tensor:
            return self.before(n, generator=generator).to(device)

        torch.randperm = drawn

    def __exit__(self, *_: object) -> None:
        torch.randperm = self.before


class GAN(nn.Module):
    """Generator and discriminator with spectral norm, as one network to check."""

    def __init__(self, generator: Generator, discriminator: Discriminator):
        super().__init__()
        self.generator, self.discriminator = generator, discriminator
        for network in (generator, discriminator):
            add_spectral_norm(network)


def adversarial(gan: GAN, inputs: tuple) -> tuple[list[Tensor], Tensor]:
    z, labels, images = inputs
    fake = gan.generator(z, labels)
    on_fake, on_real = gan.discriminator(fake, labels), gan.discriminator(images, labels)
    # Twice the one, or the two may cancel on generated images.
    loss = discriminator_loss(on_real, on_fake) + 2 * generator_loss(on_fake)
    return [fake, on_fake, on_real], loss


def restore(network: nn.Module, inputs: tuple) -> tuple[list[Tensor], Tensor]:
    output = network(inputs[0])
    return [output], (output - inputs[1]).square().mean()


def scene(size: tuple[int, int], classes: int) -> tuple:
    """Two images, one of them padded, and their objects."""
    images, padding = torch.randn(2, 3, *size), torch.zeros(2, *size, dtype=torch.bool)
    padding[1, :, size[1] * 3 // 4 :] = True
    images = images.masked_fill(padding[:, None], 0)
    targets = [
        {
            "boxes": torch.cat((0.3 + 0.4 * torch.rand(n, 2), 0.1 + 0.4 * torch.rand(n, 2)), 1),
            "labels": torch.randint(classes, (n,)),
        }
        for n in (5, 2)
    ]
    return images, padding, targets


def network_cases(smoke: bool) -> Iterator[tuple[str, nn.Module, tuple, Loss, bool]]:
    """Name, network, inputs, loss; whether float64 goes through."""
    side, batch = (32, 4) if smoke else (224, 4)
    small = {"width": 16} if smoke else {}
    images, labels = torch.randn(batch, 3, side, side), torch.arange(batch)
    tiny = {"width": 32, "depth": 2, "heads": 2} if smoke else {}
    yield "ViT-B/16", ViT(side, **tiny), (images, labels), classify, True
    windows = {"width": 8, "depths": (1, 1), "heads": (1, 2), "window": 4} if smoke else {}
    yield "Swin-T", Swin(side, **windows), (images, labels), classify, True
    depth = 8 if smoke else 50
    squeeze = partial(SqueezeExcite, reduction=16)
    yield "SE-ResNet-50", ResNet(depth, squeeze, **small), (images, labels), classify, True
    yield "CBAM-ResNet-50", ResNet(depth, CBAM, **small), (images, labels), classify, True
    if not smoke:  # which is as large at any size of the images
        yield "EfficientNet-B0", EfficientNet("b0"), (images, labels), classify, True
    yield "CCT-7/3x1", CCT(**tiny), (torch.randn(batch, 3, 32, 32), labels), classify, True
    size = (64, 96) if smoke else (256, 352)
    layers = {"encoder_layers": 1, "decoder_layers": 1}
    tiny = {"width": 32, "heads": 2, "hidden": 32, **layers} if smoke else {}
    for mask_padding in (False, True):
        backbone = ResNet(8, width=8) if smoke else None
        network = DETR(dropout=0.0, mask_padding=mask_padding, backbone=backbone, **tiny)
        name = "DETR-R50" + ", padding masked" * mask_padding
        yield name, network, scene(size, 91), look, True
        yield f"{name}, losses", DETRDetector(network), scene(size, 91), detect, False
    few = {"pyramid_channels": 8, "backbone": ResNet(8, width=8, dilation=True)}
    tiny = few if smoke else {}
    classes = 2 if smoke else 90
    network = RCNNDetector(AttentionRCNN(classes, **tiny))
    yield "Attention R-CNN", network, scene((32, 32) if smoke else size, classes), detect, False
    width = {"width": 16} if smoke else {}
    gan = GAN(Generator(32, **width), Discriminator(32, **width))
    z, labels = torch.randn(8, 128), torch.arange(8)
    yield "SAGAN-32", gan, (z, labels, torch.rand(8, 3, 32, 32)), adversarial, True
    pair = torch.rand(2, 3, side, side), torch.rand(2, 3, side, side)
    yield "Attention U-Net", AttentionUNet(width=8 if smoke else 32), pair, restore, True


def networks(part: Part) -> None:
    exact_float32()
    torch.manual_seed(0)
    rows, failures = [], []
    for case in islice(network_cases(part.smoke), 0, None, 2 if part.smoke else 1):
        name, network, inputs, loss, double = case
        start = time.perf_counter()
        still(network)
        dtype = torch.float64 if double else torch.float32
        row: dict[str, object] = {"name": name, "reference": f"CPU, {dtype}".replace("torch.", "")}
        try:
            expected = results(network, inputs, loss, "cpu", dtype)
            row["CPU float32"] = compared(
                results(network, inputs, loss, "cpu", torch.float32), expected
            )
        except Exception as problem:
            failures.append(f"{name}, on the CPU: {type(problem).__name__}: {problem}"[:400])
            continue
        for label, kind, autocast in (
            ("float64", torch.float64, False),
            ("float32", torch.float32, False),
            ("bfloat16", torch.float32, True),
        ):
            if kind == torch.float64 and not double:
                continue
            try:
                found = results(network, inputs, loss, part.device, kind, autocast)
            except Exception as problem:
                row[label] = f"{type(problem).__name__}: {problem}"[:400]
                failures.append(f"{name}, {label}: {row[label]}")
                continue
            row[label] = compared(found, expected)
            if not row[label]["output"] <= NETWORK_BOUNDS[label]:
                failures.append(f"{name}, {label}: {row[label]}")
        row["seconds"] = round(time.perf_counter() - start, 1)
        rows.append(row)
        part.save(bounds=NETWORK_BOUNDS, rows=rows, failures=failures)
    lines = []
    for row in rows:
        ways = {key: row[key] for key in ("float64", "float32", "CPU float32", "bfloat16")
                if isinstance(row.get(key), dict)}  # fmt: skip
        numbers = (f"{k} {v['output']:.0e}/{v['gradient']:.0e}" for k, v in ways.items())
        lines.append(f"{row['name']:<32}" + "  ".join(numbers))
    part.save(summary=[*lines, *(f"beyond: {line}" for line in failures)])


def compared(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> dict[str, float]:
    return {"output": error(found[0], expected[0]), "gradient": error(found[1], expected[1])}


PARTS = {"mechanisms": mechanisms, "networks": networks}
