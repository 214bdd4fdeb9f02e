"""A codebook is deterministic, uses its codes, and says so."""

import math

import pytest
import torch

from ssl_models.models import codebook


def pictures(count: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, 3, 8, 12), dtype=torch.uint8, generator=generator)


def test_the_same_pictures_and_seed_give_the_same_codebook():
    first, second = (codebook.fit(pictures(), 4, 16, seed=1) for _ in range(2))
    assert torch.equal(first.centres, second.centres)
    assert not torch.equal(first.centres, codebook.fit(pictures(), 4, 16, seed=2).centres)


def test_a_code_is_the_nearest_centre():
    book = codebook.fit(pictures(), 4, 16, seed=0)
    patches = pictures(2)[:, :, 4:8, 8:12].permute(0, 2, 3, 1).reshape(2, -1).float() / 255
    nearest = torch.cdist(patches, book.centres).argmin(dim=1)
    assert torch.equal(book.encode(pictures(2))[:, 5], nearest)


def test_as_few_different_patches_as_codes_are_kept_exactly():
    prototypes = pictures(4)[:, :, :4, :4]
    many = prototypes[torch.arange(200) % 4]
    book = codebook.fit(many, 4, 32, seed=0)
    assert len(book.centres) == 4
    restored = book.decode(book.encode(many), 4, 4)
    torch.testing.assert_close(restored, many / 255)
    assert codebook.usage(book.encode(many), 4) == codebook.Usage(4, pytest.approx(4.0))


def test_more_codes_restore_better_and_all_are_used():
    errors = []
    for codes in (4, 16, 64):
        book = codebook.fit(pictures(), 4, codes, seed=0)
        found = book.encode(pictures())
        assert codebook.usage(found, codes).used == codes
        errors.append(float(((book.decode(found, 8, 12) - pictures() / 255) ** 2).mean()))
    assert errors == sorted(errors, reverse=True)


def test_usage_shows_a_collapse():
    assert codebook.usage(torch.zeros(100, dtype=torch.int64), 64) == codebook.Usage(1, 1.0)
    uneven = torch.tensor([0, 0, 0, 1])
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert codebook.usage(uneven, 64) == codebook.Usage(2, pytest.approx(expected))


def test_saved_and_loaded_it_is_the_same(tmp_path):
    book = codebook.fit(pictures(), 2, 8, seed=0)
    book.save(tmp_path)
    loaded = codebook.load(tmp_path)
    assert loaded.side == 2 and torch.equal(loaded.centres, book.centres)


@pytest.mark.parametrize("content", [None, b"", b"nonsense"])
def test_a_missing_or_damaged_file_is_one_sentence(tmp_path, content):
    if content is not None:
        (tmp_path / codebook.FILE).write_bytes(content)
    with pytest.raises(ValueError, match=r"codebook\.safetensors: is missing or damaged"):
        codebook.load(tmp_path)


def test_patches_must_tile_the_pictures():
    with pytest.raises(ValueError, match="5 pixels do not tile pictures of 8x12"):
        codebook.fit(pictures(), 5, 8, seed=0)
