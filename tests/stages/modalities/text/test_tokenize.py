import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from stages.files import tables
from stages.modalities.text import tokenize, unigram
from stages.params import UserError

TEXTS = [
    "def f(x):\n    return x + 1\n",
    "naïve café — 日本語 🙂",
    "<s> is text, so are </s>, <mask> and <extra_id_0>",
] * 20


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder, encoding) of both algorithms, trained on little text."""
    made = {}
    for algorithm in ("bpe", "unigram"):
        folder = tmp_path_factory.mktemp(algorithm)
        rows = pa.table({"id": [str(number) for number in range(len(TEXTS))], "text": TEXTS})
        tables.write_parquet(folder / "part-00000.parquet", rows)
        options = tokenize.Options(algorithm=algorithm, vocabulary=600)
        encoding = tokenize.fit([folder / "part-00000.parquet"], options, folder)
        made[algorithm] = folder, encoding.model_copy(update={"folder": folder})
    return made


def encode(trained, algorithm, texts):
    _, encoding = trained[algorithm]
    encoder = tokenize.Encoder(encoding, tokenize.Options())
    (tokens,) = encoder.encode(pa.record_batch({"text": pa.array(texts, pa.string())}))
    return tokens.to_pylist(), encoder.counts


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_sentinels_descend_from_the_top(trained, algorithm):
    folder, encoding = trained[algorithm]
    assert encoding.sentinels == tuple(range(encoding.vocabulary - 1, encoding.vocabulary - 101, -1))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == encoding.vocabulary <= 600
    assert tokenizer.token_to_id("<extra_id_0>") == encoding.vocabulary - 1
    roles = [encoding.pad, encoding.bos, encoding.eos, encoding.mask, encoding.cls, encoding.sep]
    assert (
        len(set(roles)) == 6 and set(roles) < set(encoding.special) and set(encoding.sentinels) < set(encoding.special)
    )


# The character that marks a space in a Unigram piece is the one that does not come back.
ANY_TEXT = st.text(st.characters(exclude_characters=tokenize.SPACE, exclude_categories=["Cs"]), max_size=80)


@given(text=ANY_TEXT | st.sampled_from([*tokenize.SPECIAL, "<0x0A>", "a <extra_id_7> b", "  \n\n  x"]))
@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_every_text_comes_back_and_none_is_special(trained, algorithm, text):
    folder, encoding = trained[algorithm]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    (tokens,), _ = encode(trained, algorithm, [text])
    assert not set(tokens) & set(encoding.special)
    assert tokenizer.decode(tokens, skip_special_tokens=False) == text


def test_both_engines_give_the_same_ids(trained):
    folder, _ = trained["bpe"]
    fast = tokenize.fast_engine(folder / "tokenizer.json")
    slow = tokenize.reference_engine(Tokenizer.from_file(str(folder / "tokenizer.json")))
    texts = [*TEXTS, "", "x" * 10_000, "   \t\n", "\x00é"]
    assert all(np.array_equal(a, b) for a, b in zip(fast(texts), slow(texts), strict=True))


def test_an_engine_that_disagrees_is_not_used(trained, monkeypatch, capsys):
    def wrong(texts):
        return np.arange(len(texts), dtype=np.uint32), np.arange(len(texts) + 1)

    expected, _ = encode(trained, "bpe", TEXTS)
    monkeypatch.setattr(tokenize, "fast_engine", lambda path: wrong)
    tokens, counts = encode(trained, "bpe", TEXTS)
    assert tokens == expected and counts["slow"] == 1
    assert "disagrees" in capsys.readouterr().err


def test_without_the_fast_engine_the_ids_are_the_same(trained, monkeypatch, capsys):
    expected, _ = encode(trained, "bpe", TEXTS)
    monkeypatch.setitem(__import__("sys").modules, "fastokens", None)
    assert encode(trained, "bpe", TEXTS)[0] == expected
    assert "not installed" in capsys.readouterr().err


def imported(tmp_path, words, special, config=None):
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(special)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    if config:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "out").mkdir()
    return tokenize.fit([], tokenize.Options(tokenizer=tmp_path), tmp_path / "out")


def test_an_imported_tokenizer_keeps_its_ids_and_neither_cuts_nor_pads(tmp_path):
    encoding = imported(tmp_path, ["[UNK]", "a", "[PAD]", "[CLS]", "[SEP]", "[MASK]"], ["[CLS]", "[SEP]"])
    assert (encoding.pad, encoding.bos, encoding.eos, encoding.mask, encoding.cls, encoding.sep) == (2, 3, 4, 5, 3, 4)
    kept = Tokenizer.from_file(str(tmp_path / "out/tokenizer.json"))
    assert kept.encode("a a a a a a").ids == [1] * 6 and encoding.vocabulary == 6


def test_a_tokenizer_with_one_special_token_uses_it_for_every_role(tmp_path):
    encoding = imported(tmp_path, ["a", "b"], ["<|endoftext|>"])
    assert {encoding.pad, encoding.bos, encoding.eos, encoding.cls, encoding.sep, encoding.mask} == {2}
    assert encoding.sentinels == ()


def test_the_folder_says_what_its_tokens_are(tmp_path):
    config = {"eos_token": {"content": "b"}, "pad_token": "a"}
    encoding = imported(tmp_path, ["a", "b"], [], config)
    assert (encoding.eos, encoding.pad) == (1, 0)


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
    with pytest.raises(UserError, match="no end-of-document token"):
        imported(tmp_path, ["a", "b"], [])


def test_a_large_vocabulary_takes_four_bytes():
    encoding = tokenize.Encoding(modality="text", vocabulary=2**16)
    assert tokenize.fields(encoding)[0].type.value_type == pa.uint16()
    assert tokenize.fields(encoding.model_copy(update={"vocabulary": 2**16 + 1}))[0].type.value_type == pa.uint32()


def test_training_reads_a_fixed_sample_of_a_large_corpus(tmp_path):
    texts = [f"document {number} " * 10 for number in range(1000)]
    path = tmp_path / "part-00000.parquet"
    tables.write_parquet(path, pa.table({"id": [str(number) for number in range(1000)], "text": texts}))
    size = sum(map(len, texts))
    sample = list(tokenize._sample([path], size // 10))
    assert sample == list(tokenize._sample([path], size // 10))
    assert 0.06 < sum(map(len, sample)) / size < 0.11
    assert list(tokenize._sample([path], 10 * size)) == texts
    assert list(tokenize._sample([path], 5)) == [texts[0][:5]]


def test_unigram_learns_the_words_that_repeat():
    words = Counter({f"{stem}{end}": 50 for stem in ("walk", "jump", "cook") for end in ("", "ed", "ing", "s")})
    pieces = dict(unigram.train(words, 22))
    assert {"walk", "jump", "cook"} <= set(pieces)
    assert abs(sum(np.exp(list(pieces.values()))) - 1) < 0.1


@given(st.dictionaries(st.text("abcé日", min_size=1, max_size=300), st.integers(1, 9), max_size=8), st.integers(3, 60))
def test_unigram_never_exceeds_the_size_and_spells_its_alphabet(words, size):
    pieces = [piece for piece, _ in unigram.train(words, size, always="ab")]
    assert len(pieces) == len(set(pieces)) <= size and {"a", "b"} <= set(pieces)
