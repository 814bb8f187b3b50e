from __future__ import annotations

import pytest
import torch

from vlp.data.collate import collate
from vlp.data.stages import Item
from vlp.text.clip_bpe import ClipBPE
from vlp.types import UNLABELLED, Skip

TOKENIZER = ClipBPE().build()
SHORT = ClipBPE(context=10).build()


def item(number: int, captions: list[str], label: int | None = None, **extra: torch.Tensor) -> Item:
    return Item(torch.full((3, 4, 6), number, dtype=torch.uint8), captions, label, extra, f"s:{number}")


def test_slots_captions_and_masks() -> None:
    skip = Skip("no_caption", "src", "s.tar", "k")
    texts = ["a red circle", "two", "a much longer caption with more words in it"]
    items = [item(1, texts[:2], 5), None, item(3, texts[2:])]
    batch = collate(items, tokenizer=TOKENIZER, captions=2, size=(4, 6), skips=[skip], sources=[0, 1, 1])
    assert batch.image.dtype == torch.uint8
    assert batch.image[:, 0, 0, 0].tolist() == [1, 0, 3]
    assert batch.valid.tolist() == [True, False, True]
    assert batch.caption_mask.tolist() == [[True, True], [False, False], [True, False]]
    assert batch.text.shape == batch.token_mask.shape == (3, 2, 16)
    for (slot, number), text in {(0, 0): texts[0], (0, 1): texts[1], (2, 0): texts[2]}.items():
        ids = TOKENIZER.encode([text])[0]
        assert batch.text[slot, number].tolist() == ids + [0] * (16 - len(ids))
        assert batch.token_mask[slot, number].tolist() == [True] * len(ids) + [False] * (16 - len(ids))
    assert not batch.token_mask[1].any()
    assert not batch.token_mask[2, 1].any()
    assert batch.label.tolist() == [5, UNLABELLED + 1, UNLABELLED + 2]
    assert batch.source.tolist() == [0, 1, 1]
    assert batch.keys == ("s:1", "", "s:3")
    assert batch.skips == (skip,)
    assert not batch.extra


def test_length_is_rounded_up_and_at_most_the_context() -> None:
    long = item(1, ["word " * 50])
    assert collate([long], tokenizer=SHORT, captions=1, size=(4, 6)).text.shape == (1, 1, 10)
    assert collate([long], tokenizer=TOKENIZER, captions=1, size=(4, 6)).text.shape == (1, 1, 56)
    assert collate([item(1, ["a b c d e f"])], tokenizer=TOKENIZER, captions=1, size=(4, 6)).text.shape == (1, 1, 8)
    assert collate([item(1, ["a"])], tokenizer=TOKENIZER, captions=1, size=(4, 6), round_to=1).text.shape == (1, 1, 3)


def test_captions_beyond_k_are_left_out() -> None:
    batch = collate([item(1, ["a", "b", "word " * 60])], tokenizer=TOKENIZER, captions=2, size=(4, 6))
    assert batch.text.shape == (1, 2, 8)


def test_a_caption_without_tokens_is_no_caption() -> None:
    """It would count as one whose features are zeros."""

    class Letters:
        context, vocab_size, pad, fingerprint = 8, 128, 0, "letters"  # and no start or end

        def encode(self, texts: list[str]) -> list[list[int]]:
            return [[ord(char) for char in text if char.isalpha()] for text in texts]

    items = [item(1, ["!", "ab"])._replace(negatives=("?",)), item(2, ["..."])._replace(negatives=("c",)), None]
    batch = collate(items, tokenizer=Letters(), captions=2, size=(4, 6), negatives=1)  # type: ignore[arg-type]
    assert batch.caption_mask.tolist() == [[False, True], [False, False], [False, False]]
    assert torch.equal(batch.token_mask.any(dim=2), batch.caption_mask)
    assert batch.extra["negative_mask"].any(dim=2).tolist() == [[False], [True], [False]]
    assert batch.valid.tolist() == [True, True, False]
    assert batch.notes == ("caption_without_tokens",) * 2


def test_a_batch_without_a_sample() -> None:
    batch = collate([None, None], tokenizer=TOKENIZER, captions=3, size=(4, 6))
    assert batch.text.shape == (2, 3, 8)
    assert batch.image.shape == (2, 3, 4, 6)
    assert not batch.valid.any()
    assert not batch.caption_mask.any()


def test_extra_columns_are_stacked_with_zeros_for_empty_slots() -> None:
    items = [item(1, ["a"], box=torch.tensor([1.0, 2.0])), None, item(2, ["b"], box=torch.tensor([3.0, 4.0]))]
    batch = collate(items, tokenizer=TOKENIZER, captions=1, size=(4, 6), labels=[7, 8, 9], keys=["x", "y", "z"])
    assert batch.extra["box"].tolist() == [[1, 2], [0, 0], [3, 4]]
    assert batch.label.tolist() == [7, 8, 9]
    assert batch.keys == ("x", "y", "z")
    with pytest.raises(ValueError, match='column "box" is missing in s:5'):
        collate([items[0], item(5, ["a"])], tokenizer=TOKENIZER, captions=1, size=(4, 6))


def test_a_picture_of_another_size_is_named() -> None:
    with pytest.raises(ValueError, match=r"s:1: picture \[3, 4, 6\], the batch holds \[3, 8, 8\]"):
        collate([item(1, ["a"])], tokenizer=TOKENIZER, captions=1, size=(8, 8))


def test_a_batch_without_a_sample_has_every_column_that_is_known() -> None:
    blank = {"box": torch.zeros(2), "views": torch.zeros(1, 3, 4, 6, dtype=torch.uint8)}
    empty = collate([None, None], tokenizer=TOKENIZER, captions=1, size=(4, 6), negatives=2, blank=blank)
    assert {name: (value.shape, value.dtype) for name, value in empty.extra.items()} == {
        "box": ((2, 2), torch.float32),
        "views": ((2, 1, 3, 4, 6), torch.uint8),
        "negative_text": ((2, 2, 8), torch.long),
        "negative_mask": ((2, 2, 8), torch.bool),
    }
    assert not any(value.any() for value in empty.extra.values())
    with pytest.raises(ValueError, match='column "box" is missing in s:1'):
        collate([item(1, ["a"])], tokenizer=TOKENIZER, captions=1, size=(4, 6), blank=blank)


def test_negatives_are_tokenised_with_the_captions_and_padded_on_their_own() -> None:
    calls = []

    class Counting:
        context, vocab_size, pad, fingerprint = 77, 49408, 0, "counting"

        def encode(self, texts: list[str]) -> list[list[int]]:
            calls.append(list(texts))
            return TOKENIZER.encode(texts)

    long = "a much longer false caption with more words in it"
    items = [item(1, ["a cat", "two"])._replace(negatives=("two", long, "beyond M")), None, item(3, ["a dog"])]
    batch = collate(items, tokenizer=Counting(), captions=2, size=(4, 6), negatives=2)  # type: ignore[arg-type]
    assert calls == [["a cat", "two", "a dog", "two", long]], "one call"
    text, mask = batch.extra["negative_text"], batch.extra["negative_mask"]
    assert batch.text.shape == (3, 2, 8)
    assert text.shape == mask.shape == (3, 2, 16)
    ids = TOKENIZER.encode([long])[0]
    assert text[0, 1][mask[0, 1]].tolist() == ids
    assert mask.any(dim=2).tolist() == [[False, True], [False, False], [False, False]], "a caption is no negative"
    assert not text[~mask].any()
    assert batch.notes == ("negative_is_caption",)
    assert "negative_text" not in collate(items, tokenizer=TOKENIZER, captions=2, size=(4, 6)).extra
