"""Random numbers by counter: functions of (seed, epoch, index, number of the draw), not a stream.

Philox-4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3"
(SC11, 2011), in int64 arithmetic of torch: the same bits on every device.
"""

import torch
from torch import Tensor

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)  # of words 0 and 2, reference code of the paper, philox.h
WEYL = (0x9E3779B9, 0xBB67AE85)  # what a round adds to the key
LOW = 0xFFFFFFFF


def philox(counters: Tensor, key: tuple[int, int]) -> Tensor:
    """Encrypt counters (..., 4) int64 under a key; words are in 0..2^32 - 1, as are the results."""
    even, odd = counters[..., 0::2], counters[..., 1::2]
    multipliers = torch.tensor(MULTIPLIERS, device=counters.device)
    for number in range(ROUNDS):
        keys = [(word + number * step) & LOW for word, step in zip(key, WEYL, strict=True)]
        product = even * multipliers  # modulo 2^64: its upper half, unsigned, is bits 32 to 63
        high = (product >> 32 & LOW).flip(-1)
        even = high ^ odd ^ torch.tensor(keys, device=counters.device)
        odd = (product & LOW).flip(-1)
    return torch.stack((even, odd), -1).flatten(-2)


def uniforms(seed: int, epoch: int, indices: Tensor, count: int) -> Tensor:
    """Draw numbers for the samples of an epoch.

    Args:
        seed, epoch: below 2^32.
        indices: of the samples, (B,) int64.
        count: of the numbers for each sample.

    Returns:
        (B, count) float32 in [0, 1), multiples of 2^-24; draw k of a sample is the same whatever
        the count and the other samples are.
    """
    counters = torch.zeros(len(indices), -(-count // 4), 4, dtype=torch.int64)
    counters = counters.to(indices.device)
    counters[..., 0] = torch.arange(counters.shape[1], device=indices.device)
    counters[..., 1], counters[..., 2] = indices[:, None] & LOW, indices[:, None] >> 32
    words = philox(counters, (seed, epoch)).flatten(1)[:, :count]
    return (words >> 8).float() * 2.0**-24
