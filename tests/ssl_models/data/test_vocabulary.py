import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ssl_models.data.vocabulary import Vocabulary, pieces
from tests.ssl_models import texts


def lengths(vocabulary, ids):
    return int(vocabulary.lengths[torch.tensor(ids)].sum())


@pytest.mark.parametrize("made", [texts.bpe, texts.unigram])
def test_lengths_of_the_tokens_add_up_to_the_bytes_of_the_text(made, tmp_path):
    encoding = made(tmp_path)
    text = texts.TEXT.replace("\n", " ") * 3 if made is texts.unigram else texts.TEXT * 3
    assert lengths(Vocabulary(encoding), texts.encode(encoding, text)) == len(text.encode())


def test_byte_fallback_pieces_count_one_byte_each(tmp_path):
    encoding = texts.plain(7 + 5, sentinels=0).model_copy(update={"folder": tmp_path})
    vocabulary = {piece: 7 + number for number, piece in enumerate(["<0xE6>", "\u2581the", "東", "a", "<0x0A>"])}
    content = {"model": {"type": "BPE", "byte_fallback": True, "vocab": vocabulary}, "added_tokens": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    read = Vocabulary(encoding)
    assert read.lengths[7:].tolist() == [1, 4, 3, 1, 1]
    assert read.opens[7:].tolist() == [False, True, False, False, True]
    assert read.breaks[7:].tolist() == [False, False, False, False, True]


def test_word_pieces_begin_a_word_unless_they_continue_one():
    tokenizer = {
        "model": {"type": "WordPiece", "continuing_subword_prefix": "##", "vocab": {"play": 0, "##ing": 1, ".": 2}}
    }
    assert pieces(tokenizer, 3) == [b" play", b"ing", b" ."]


def test_words_and_sentences_are_told_from_the_pieces(tmp_path):
    encoding = texts.bpe(tmp_path)
    vocabulary, ids = Vocabulary(encoding), texts.encode(encoding, 'He ran. "Stop!"\nNow (see 3.5).')
    text = [Tokenizer.from_file(str(tmp_path / "tokenizer.json")).decode([index]) for index in ids]
    for piece, index in zip(text, ids, strict=True):
        assert bool(vocabulary.opens[index]) == piece[:1].isspace()
        assert bool(vocabulary.breaks[index]) == ("\n" in piece)
        assert bool(vocabulary.stops[index]) == (piece.strip().rstrip("\"')")[-1:] in {".", "!", "?"})


def test_special_tokens_have_no_bytes_and_are_not_ordinary(tmp_path):
    encoding = texts.bpe(tmp_path)
    vocabulary = Vocabulary(encoding)
    special = torch.tensor(encoding.special)
    assert vocabulary.special[special].all() and (vocabulary.lengths[special] == 0).all()
    assert sorted([*vocabulary.ordinary.tolist(), *special.tolist()]) == list(range(encoding.vocabulary))


def test_the_bag_counts_ordinary_tokens_and_stays_sparse():
    vocabulary = Vocabulary(texts.plain())
    bag = vocabulary.bag(torch.tensor([[10, 11, 10, 2, 0], [2, 0, 0, 0, 0]]))
    assert bag.is_sparse and bag.shape == (2, 120)
    dense = bag.to_dense()
    assert dense[0, 10] == 2 and dense[0, 11] == 1 and dense.sum() == 3


def test_tables_follow_the_device_but_are_in_no_checkpoint():
    assert Vocabulary(texts.plain()).state_dict() == {}


def test_without_a_tokenizer_every_id_is_a_word():
    vocabulary = Vocabulary(texts.plain())
    assert not vocabulary.known and vocabulary.opens[10] and not vocabulary.stops.any()
    assert vocabulary.decode([10, 11]) == "10 11"


@pytest.mark.parametrize("content", ["{", "[]", '{"model": {}}', '{"model": {"vocab": 3}}'])
def test_a_broken_tokenizer_is_named_in_one_sentence(content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer\.json is no tokenizer"):
        Vocabulary(texts.plain().model_copy(update={"folder": tmp_path}))


def test_decoding_gives_the_text_back(tmp_path):
    encoding = texts.bpe(tmp_path)
    assert Vocabulary(encoding).decode(texts.encode(encoding, texts.TEXT)) == texts.TEXT


def test_llama_style_pieces_are_bytes_of_text():
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(vocab_size=80, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(["a text of words, and words again"] * 3, trainer)
    found = pieces(json.loads(tokenizer.to_str()), tokenizer.get_vocab_size())
    ids = tokenizer.encode("and words of text").ids
    assert b"".join(found[index] for index in ids) == b"and words of text"
