"""Operations on batches of images, each image with parameters of its own.

Images are (B, C, H, W) uint8 of 1 or 3 channels, parameters (B,) on the device of the images. The
functions equal those of torchvision.transforms.v2 that they name, image by image: what else is in
the batch does not count.
"""

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad

LUMA = (0.2989, 0.587, 0.114)  # of red, green and blue, in torchvision


def crop(images: Tensor, padding: int, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
    """Pad with zeros, cut out the size of the images, then mirror: `pad`, `crop`, `hflip`.

    Args:
        images: (B, C, H, W) of any dtype.
        padding: on each side, in pixels.
        top, left: corner of the cut in the padded image, 0 to 2 · padding.
        flip: whether an image is mirrored, bool.
    """
    height, width = images.shape[-2:]
    down = torch.arange(height, device=images.device)
    across = torch.arange(width, device=images.device)
    rows = top[:, None] + down
    columns = left[:, None] + across.where(~flip[:, None], width - 1 - across)
    padded = pad(images, (padding,) * 4)
    positions = (rows * padded.shape[-1])[:, :, None] + columns[:, None, :]
    positions = positions.flatten(1)[:, None].expand(-1, images.shape[1], -1)
    return padded.flatten(2).gather(2, positions).view(images.shape)


def inverse_matrices(
    angle: Tensor,
    shift: tuple[Tensor, Tensor],
    scale: Tensor,
    shear: tuple[Tensor, Tensor],
    center: tuple[float, float] = (0.0, 0.0),
) -> Tensor:
    """Matrices (B, 2, 3) from positions in the output to positions in the input, in pixels.

    Args:
        angle: clockwise, in radians, (B,) float64.
        shift: across and down, in pixels.
        scale: factor.
        shear: along x and along y, in radians.
        center: of turn and shear, from the middle of the image.
    """
    along_x, along_y = shear
    a = (angle - along_y).cos() / along_y.cos()
    c = (angle - along_y).sin() / along_y.cos()
    b, d = -(a * along_x.tan() + angle.sin()), angle.cos() - c * along_x.tan()
    linear = torch.stack((d, -b, -c, a), -1).unflatten(-1, (2, 2)) / scale[:, None, None]
    middle = torch.tensor(center, dtype=linear.dtype)
    moved = middle - (linear * (middle + torch.stack(shift, -1))[:, None]).sum(-1)
    return torch.cat((linear, moved[..., None]), -1)


def affine(images: Tensor, matrices: Tensor, bilinear: bool = False) -> Tensor:
    """Turn, move and shear: `affine`, by default with the nearest pixel and zeros around the image.

    Args:
        images: (B, C, H, W) uint8.
        matrices: of `inverse_matrices`, on any device.
        bilinear: interpolate, and blend with zeros at the border, as `fill=0` does.
    """
    height, width = images.shape[-2:]
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    y = torch.arange(height, device=images.device)[:, None] - (height - 1) / 2
    coefficients = to(matrices.float(), images.device)[..., None, None]
    grid = torch.stack(
        [
            a / half * x + b / half * y + c / half
            for (a, b, c), half in (
                (coefficients[:, 0].unbind(1), width / 2),
                (coefficients[:, 1].unbind(1), height / 2),
            )
        ],
        -1,
    )
    pixels = images.float()
    if not bilinear:
        return grid_sample(pixels, grid, "nearest", align_corners=False).byte()
    pixels = torch.cat((pixels, torch.ones_like(pixels[:, :1])), 1)
    moved = grid_sample(pixels, grid, "bilinear", align_corners=False)
    return (moved[:, :-1] * moved[:, -1:]).round_().byte()


def resized_crop(
    images: Tensor,
    rows: Tensor,
    columns: Tensor,
    size: int,
    bicubic: bool,
    flip: Tensor,
) -> Tensor:
    """Resize a part of each image to (size, size), with antialiasing, then mirror: `resized_crop`.

    Args:
        images: (B, C, H, W) uint8.
        rows, columns: the first and the number of them in each part, (B, 2) float32.
        size: of the result, in pixels.
        bicubic: interpolate so, else bilinearly.
        flip: whether a result is mirrored, bool.
    """
    down = resizing(images.shape[-2], rows, size, bicubic)
    across = resizing(images.shape[-1], columns, size, bicubic)
    across = across.where(~flip[:, None, None], across.flip(1))
    narrowed = images.float().flatten(1, 2) @ across.mT  # (B, C · H, size)
    narrowed = rounded(narrowed)  # as in torchvision's kernel
    narrowed = narrowed.unflatten(1, images.shape[1:3])
    return rounded(down[:, None] @ narrowed).byte()


def rounded(values: Tensor) -> Tensor:
    """To whole numbers in 0..255, halves upward."""
    return values.add_(0.5).floor_().clamp_(0, 255)


def resizing(length: int, part: Tensor, size: int, bicubic: bool) -> Tensor:
    """Weights (B, size, length) of the pixels of a line in the `size` pixels that it becomes.

    Args:
        length: pixels of the line.
        part: the first of those that count, and their number, (B, 2) float32.
        size, bicubic: as in `resized_crop`.
    """
    start, count = part[:, :, None, None].unbind(1)
    scale, end = count / size, start + count
    pixels = torch.arange(length, device=part.device)
    targets = torch.arange(size, device=part.device)[:, None] + 0.5
    distance = ((pixels + 0.5 - start - targets * scale) / scale.clamp(min=1)).abs()
    if bicubic:  # Keys' kernel with a = -0.5
        near = (1.5 * distance - 2.5) * distance.square() + 1
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        weights = near.where(distance < 1, far.where(distance < 2, 0.0))
    else:
        weights = (1 - distance).clamp(min=0)
    weights = weights.where((pixels >= start) & (pixels < end), 0.0)
    return weights / weights.sum(-1, keepdim=True)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    return (images * factor[:, None, None, None]).clamp_(0, 255).byte()


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    return blend(images, gray(images), factor) if images.shape[1] == 3 else images


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    return blend(images, gray(images).mean((1, 2, 3), keepdim=True), factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with a blurred image, whose border is not blurred: `adjust_sharpness`."""
    if min(images.shape[-2:]) <= 2:
        return images
    whole = images.short()
    rows = whole[..., :-2, :] + whole[..., 1:-1, :] + whole[..., 2:, :]
    around = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    inner = whole[..., 1:-1, 1:-1]
    # (8 neighbors + 5 · center) / 13, rounded; 13 is odd: nothing lies halfway.
    blurred = (2 * (around + 4 * inner) + 13) // 26
    sharp = inner + (blurred - inner) * (1 - factor)[:, None, None, None]
    result = images.clone()
    result[..., 1:-1, 1:-1] = sharp.clamp_(0, 255).byte()
    return result


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the upper `bits` of 8, int32."""
    return images & (256 - 2 ** (8 - bits)).byte()[:, None, None, None]


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(images >= threshold[:, None, None, None], ~images, images)


def gray(images: Tensor) -> Tensor:
    """Whole gray levels, (B, 1, H, W) float32."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = (images[:, channel, None] * LUMA[channel] for channel in range(3))
    return (red + green + blue).floor_()


def blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """factor · images + (1 - factor) · other, cut to 0..255."""
    factor = factor[:, None, None, None]
    return (images * factor + other * (1 - factor)).clamp_(0, 255).byte()


def to(values: Tensor, device: torch.device) -> Tensor:
    """Values of the host on a device, without waiting for it."""
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
