from __future__ import annotations

import functools
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.files import tables
from stages.grouping.clusters import Clusters, Sketch, gather
from stages.modalities.text import dedup
from stages.modalities.text.dedup import Options, shingles, signatures
from stages.params import UserError

SCHEMA = tables.rows_schema([pa.field("text", pa.string())])
OPTIONS = Options()


def words(random: np.random.Generator, count: int) -> list[str]:
    return [f"w{number}" for number in random.integers(0, 2**40, count)]


def pair(random: np.random.Generator, shared: int, own: int) -> tuple[str, str]:
    """Two documents whose word 5-grams number `shared` in common and `own` in each alone."""
    common = words(random, shared + 4)
    return " ".join(common + words(random, own)), " ".join(common + words(random, own))


def partition(folder: Path, index: int, texts: list[str]) -> Path:
    rows = [
        {"id": tables.content_id({"text": text}), "text": text, "label": None, "source": f"{index}:{i}", "group": None}
        for i, text in enumerate(texts)
    ]
    path = folder / tables.part(index)
    tables.write_parquet(path, pa.Table.from_pylist(rows, schema=SCHEMA))
    return path


def clustered(*sketches: Sketch, labelled: Collection[int] = (), options: Options = OPTIONS) -> Clusters:
    rows = sum(len(sketch.exact) for sketch in sketches)
    return dedup.cluster(gather(sketches, np.isin(np.arange(rows), list(labelled))), options)


def clusters(folder: Path, *parts: list[str], labelled: Collection[int] = (), options: Options = OPTIONS) -> Clusters:
    paths = [partition(folder, index, texts) for index, texts in enumerate(parts)]
    return clustered(*(dedup.sketch(path, options) for path in paths), labelled=labelled, options=options)


def similarity(a: str, b: str) -> float:
    one, other = set(shingles(a, OPTIONS).tolist()), set(shingles(b, OPTIONS).tolist())
    return len(one & other) / len(one | other)


def found(result: Clusters, first: int, second: int) -> bool:
    return bool(result.kept[first] == result.kept[second])


def test_shingles_are_the_distinct_word_n_grams() -> None:
    assert len(shingles("a b c d e f", OPTIONS)) == 2
    assert len(shingles("a b a b a b a b", Options(ngram=2))) == 2
    assert similarity("a b c d e f", "b c d e f g") == pytest.approx(1 / 3)


def test_case_and_punctuation_do_not_tell_documents_apart_but_letters_and_order_do() -> None:
    assert similarity("The cat, (sat) on\tthe mat!", "the CAT sat on the\nmat") == 1
    assert similarity("the cat sat on", "the cat sat in") == 0
    assert similarity("a b c d e", "e d c b a") == 0
    assert similarity("ab c", "a bc") == 0
    assert similarity("naïve café", "naive cafe") == 0
    assert similarity("snake_case", "snake case") == 0


def test_scripts_without_spaces_are_compared_character_by_character() -> None:
    assert len(shingles("自己教師あり学習", OPTIONS)) == 4
    assert 0 < similarity("自己教師あり学習の研究", "自己教師あり学習の応用") < 1


def test_documents_without_words_are_alike_only_if_equal() -> None:
    assert similarity("!!!", "???") == 0
    assert similarity("", "-") == 0
    assert similarity("", "") == 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=8), st.integers(1, 6))
def test_a_signature_depends_on_its_own_document_only(texts: list[str], ngram: int) -> None:
    options = Options(ngram=ngram)
    together = signatures(pa.array(texts), options)
    for row, text in enumerate(texts):
        alone = signatures(pa.array([text]), options)
        assert (together[row] == alone[0]).all()
    assert (signatures(pa.array(texts, pa.large_string()), options) == together).all()
    assert (signatures(pa.array(texts)[1:], options) == together[1:]).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=40), st.integers(1, 7))
def test_shingles_match_a_plain_python_count(letters: list[str], ngram: int) -> None:
    expected = {tuple(letters[i : i + ngram]) for i in range(max(1, len(letters) - ngram + 1))}
    assert len(shingles(" ".join(letters), Options(ngram=ngram))) == len(expected)


def test_the_estimate_of_jaccard_is_unbiased() -> None:
    random = np.random.default_rng(7)
    errors = []
    for shared in (20, 50, 80):  # of 100 distinct shingles in the two documents
        pairs = [pair(random, shared, (100 - shared) // 2) for _ in range(2000)]
        first, second = (signatures(pa.array(side), OPTIONS) for side in zip(*pairs, strict=True))
        estimates = (first == second).mean(axis=1)
        errors.append(estimates - shared / 100)
        assert abs(errors[-1].mean()) < 0.003
        assert errors[-1].std() == pytest.approx(np.sqrt(shared / 100 * (1 - shared / 100) / 100), rel=0.15)
    assert abs(np.mean(errors)) < 0.003


@pytest.mark.parametrize("own", [10, 5, 1])
def test_near_duplicates_from_the_threshold_on_are_found(tmp_path: Path, own: int) -> None:
    random = np.random.default_rng(own)
    pairs = [pair(random, 80, own) for _ in range(1000)]  # Jaccard 80 / (80 + 2 * own): 0.8 exactly for 10
    result = clusters(tmp_path, [a for a, _ in pairs], [b for _, b in pairs])
    assert sum(found(result, i, 1000 + i) for i in range(1000)) >= 990
    gone = result.kept != np.arange(2000)
    assert gone.sum() <= 1000 and not gone[:1000].any() and not result.exact[gone].any()
    assert np.allclose(result.similarity[gone], 80 / (80 + 2 * own))


def test_pairs_below_the_threshold_stay(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    pairs = [pair(random, 80, own) for own in (11, 27, 80) for _ in range(300)]  # Jaccard 0.784, 0.6, 0.33
    result = clusters(tmp_path, [a for a, _ in pairs], [b for _, b in pairs])
    assert (result.kept == np.arange(1800)).all()


def test_every_exact_duplicate_is_found_and_the_first_stays(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    texts = [" ".join(words(random, int(count))) for count in random.integers(0, 50, 500)]
    copies = random.permutation(500)
    result = clusters(tmp_path, texts, [texts[i] for i in copies])
    first = [texts.index(text) for text in texts]  # the empty text may occur twice
    assert result.kept[:500].tolist() == first
    assert result.kept[500:].tolist() == [first[i] for i in copies]
    assert result.exact.all() and (result.similarity == 1).all()


def test_a_chain_of_near_duplicates_is_one_cluster_and_says_how_far_its_ends_are(tmp_path: Path) -> None:
    text = words(np.random.default_rng(9), 124)
    chain = [" ".join(text[10 * i : 10 * i + 104]) for i in range(3)]  # Jaccard 90 / 110 of neighbours
    result = clusters(tmp_path, chain)
    assert result.kept.tolist() == [0, 0, 0]
    assert result.similarity[1] == pytest.approx(90 / 110)
    assert result.similarity[2] == pytest.approx(80 / 120)


def test_an_exact_copy_of_a_near_duplicate_follows_it(tmp_path: Path) -> None:
    a, b = pair(np.random.default_rng(2), 90, 2)
    result = clusters(tmp_path, [a, b], [b, a])
    assert result.kept.tolist() == [0, 0, 0, 0]
    assert result.exact.tolist() == [True, False, False, True]


def test_a_bucket_of_thousands_is_linked_in_linear_time(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    boilerplate = words(random, 200)
    texts = [" ".join([*boilerplate, *words(random, 3)]) for _ in range(5000)]
    result = clusters(tmp_path, texts)
    assert (result.kept == 0).all()


def test_unrelated_documents_between_members_of_a_popular_bucket_do_not_hide_them(tmp_path: Path) -> None:
    random = np.random.default_rng(6)
    boilerplate = words(random, 60)
    texts = [" ".join([*boilerplate, *words(random, 40)]) for _ in range(300)]  # Jaccard 0.41 with one another
    twins = [text + " " + " ".join(words(random, 2)) for text in texts]
    result = clusters(tmp_path, texts, twins)
    assert sum(found(result, i, 300 + i) for i in range(300)) >= 297
    assert (result.kept[:300] == np.arange(300)).all()


def test_near_false_drops_exact_duplicates_only(tmp_path: Path) -> None:
    a, b = pair(np.random.default_rng(2), 90, 1)
    result = clusters(tmp_path, [a, b, a], options=Options(near=False))
    assert result.kept.tolist() == [0, 1, 0]


def test_a_full_temporary_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = pair(np.random.default_rng(2), 90, 1)
    monkeypatch.setattr(dedup.tempfile, "TemporaryFile", functools.partial(Path("/dev/full").open, "w+b"))
    with pytest.raises(UserError, match="set TMPDIR"):
        clusters(tmp_path, [a, b])


def test_empty_partitions_and_no_partitions_are_fine(tmp_path: Path) -> None:
    a, b = pair(np.random.default_rng(2), 90, 1)
    assert clusters(tmp_path, [], [a], [], [b]).kept.tolist() == [0, 0]
    assert len(clustered().kept) == 0


def test_a_partition_of_many_batches_is_sketched_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(8)
    texts = [" ".join(words(random, 20)) for _ in range(25)]
    path = partition(tmp_path, 0, texts + texts[:3])
    whole = dedup.sketch(path, OPTIONS)
    monkeypatch.setattr(dedup, "BATCH_ROWS", 4)
    assert (dedup.sketch(path, OPTIONS).near == whole.near).all()
    assert whole.payload_bytes == sum(len(text.encode()) for text in texts + texts[:3])
    assert clustered(whole).kept[25:].tolist() == [0, 1, 2]


def test_the_row_that_stays_is_the_first_with_a_label(tmp_path: Path) -> None:
    a, b = pair(np.random.default_rng(2), 90, 2)
    near = similarity(a, b)
    for labelled, kept, alike in (
        (set(), [0, 0, 0, 0], [1, near, near, 1]),
        ({2, 3}, [2, 2, 2, 2], [near, 1, 1, near]),
        ({3}, [3, 3, 3, 3], [1, near, near, 1]),
    ):
        result = clusters(tmp_path, [a, b], [b, a], labelled=labelled)
        assert result.kept.tolist() == kept
        assert result.similarity == pytest.approx(alike)
        assert result.exact.tolist() == [value == 1 for value in alike]


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("abc"), max_size=7).map(" ".join), max_size=12),
    st.integers(0, 12),
    st.sets(st.integers(0, 11)),
)
def test_clusters_do_not_depend_on_partition_bounds_or_labels(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], cut: int, labelled: set[int]
) -> None:
    options = Options(ngram=2, threshold=0.6)
    folder = tmp_path_factory.mktemp("rows")
    one = clusters(folder, texts, labelled=labelled, options=options)
    two = clusters(folder, texts[:cut], texts[cut:], labelled=labelled, options=options)
    bare = clusters(folder, texts, options=options)
    assert (one.kept == two.kept).all() and (one.similarity == two.similarity).all()
    assert (one.kept[one.kept] == one.kept).all() and (bare.kept <= np.arange(len(texts))).all()
    for first in set(bare.kept.tolist()):
        members = np.flatnonzero(bare.kept == first).tolist()
        known = [row for row in members if row in labelled]
        assert set(one.kept[members].tolist()) == {(known or members)[0]}
