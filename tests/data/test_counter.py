"""Random numbers by counter: the published answers, and what a draw depends on."""

import pytest
import torch

from attention_vision.data.counter import philox, uniforms

# Random123 1.14, tests/kat_vectors, "philox4x32 10": counter, key, answer.
KNOWN = (
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
)  # fmt: skip


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(counter: str, key: str, answer: str) -> None:
    counters = torch.tensor([words(counter), [1, 2, 3, 4]])
    first, second = words(key)
    assert philox(counters, (first, second))[0].tolist() == words(answer)


def test_a_draw_depends_on_seed_epoch_sample_and_number_alone() -> None:
    indices = torch.tensor([0, 7, 2**32 + 7, 50_000])
    whole = uniforms(3, 5, indices, 11)
    for number, index in enumerate(indices):
        alone = uniforms(3, 5, index[None], 6)
        assert torch.equal(alone[0], whole[number, :6])
    others = [uniforms(4, 5, indices, 11), uniforms(3, 6, indices, 11), uniforms(5, 3, indices, 11)]
    assert len({tuple(one.flatten().tolist()) for one in [whole, *others]}) == 4
    assert len(set(whole.flatten().tolist())) == whole.numel()


def test_draws_are_uniform_and_unrelated() -> None:
    drawn = uniforms(0, 0, torch.arange(50_000), 6)
    assert drawn.dtype == torch.float32
    assert 0 <= drawn.min() < 1e-4
    assert 1 - 1e-4 < drawn.max() < 1
    tenths = (drawn * 10).long().flatten().bincount()  # 30,000 each, with a deviation of 164
    assert (tenths - 30_000).abs().max() < 5 * 164
    neighbors = torch.cat((drawn[:-1], drawn[1:]), 1).T.corrcoef() - torch.eye(12)
    assert neighbors.abs().max() < 5 / 50_000**0.5
