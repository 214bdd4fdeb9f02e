import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ssl_models.data.encoding import Encoding
from ssl_models.data.shards import Shards
from stages import shard, tokenize
from stages.files import tables
from stages.params import UserError


def sharded(root: Path, workers: int = 1, *, write_corpus, run_stages, documents, **options) -> Shards:
    write_corpus(root, documents, **options)
    run_stages(root, tokenize.run, shard.run, workers=workers)
    return Shards.open(root / "data/shard/tiny/shards")


@pytest.fixture
def make(tmp_path, write_corpus, run_stages):
    def build(documents, name="corpus", workers=1, **options):
        root = tmp_path / name
        root.mkdir()
        return sharded(root, workers, write_corpus=write_corpus, run_stages=run_stages, documents=documents, **options)

    return build


def metrics(shards: Shards) -> dict:
    return json.loads((shards.folder.parent / "report.json").read_text())


def encoded(shards: Shards) -> list[dict]:
    rows = tables.partitions(shards.folder.parents[2] / "tokenize/tiny/rows")
    return [row for path in rows for row in pq.read_table(path).to_pylist()]


def everything(shards: Shards, split: str) -> dict[str, np.ndarray]:
    opened = shards.split(split)
    return {name: values.numpy() for name, values in opened.rows(range(len(opened))).items()}


def test_no_token_is_lost_or_invented(make, little_documents):
    shards = make(little_documents(300))
    rows, counts = encoded(shards), metrics(shards)
    eos = Encoding.load(shards.folder / "encoding").eos
    given = Counter(token for row in rows for token in [*row["tokens"], eos])
    packed = Counter(everything(shards, "train")["tokens"].ravel().tolist())
    packed += Counter(everything(shards, "validation")["tokens"].ravel().tolist())
    assert not packed - given
    held = len(rows) - counts["train"]["documents"] - counts["validation"]["documents"]
    assert counts["probe"]["documents"] + sum(counts["left_out"].values()) == held
    assert packed.total() == counts["tokens"]
    assert packed[eos] <= counts["train"]["documents"] + counts["validation"]["documents"]


def test_documents_are_whole_inside_a_row_and_across_rows(make, little_documents):
    shards = make(little_documents(300))
    eos = Encoding.load(shards.folder / "encoding").eos
    known = {tuple(row["tokens"]) for row in encoded(shards)}
    for row in everything(shards, "train")["tokens"].tolist():
        inner = [index for index, token in enumerate(row) if token == eos]
        for start, end in itertools.pairwise(inner):
            assert tuple(row[start + 1 : end]) in known


def test_probe_rows_are_the_documents_with_their_labels(make, little_documents):
    shards = make(little_documents(300))
    probe, encoding = everything(shards, "probe"), Encoding.load(shards.folder / "encoding")
    labels = {tuple(row["tokens"][:32]): row["label"] for row in encoded(shards)}
    for tokens, label in zip(probe["tokens"].tolist(), probe["label"], strict=True):
        document = tokens[: tokens.index(encoding.eos)] if encoding.eos in tokens else tokens
        assert labels[tuple(document)] == shards.manifest.labels[label]
        assert set(tokens[len(document) + 1 :]) <= {encoding.pad}
    assert set(zip(probe["label"], probe["test"], strict=True)) == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_a_group_lies_in_one_place_only(make, little_documents):
    marked = [
        document._replace(text=f"{document.group} " * 40, label=document.label or "log")
        for document in little_documents(300)
    ]
    shards = make(marked, tokenize_options={"vocabulary": 2000})
    group_of = {tuple(row["tokens"][:31]): row["group"] for row in encoded(shards)}
    probe = everything(shards, "probe")
    held = [{group_of[tuple(t[:31])] for t in probe["tokens"][probe["test"] == part].tolist()} for part in (0, 1)]
    assert held[0] and held[1] and not held[0] & held[1]
    counts = metrics(shards)
    assert counts["train"]["groups"] + counts["validation"]["groups"] + counts["probe"]["groups"] == 100


def test_one_and_two_workers_give_the_same_bytes(make, little_documents):
    documents = little_documents(200)
    one, two = make(documents, "one"), make(documents, "two", workers=2)
    files = sorted(path.relative_to(one.folder) for path in one.folder.rglob("*") if path.is_file())
    assert len(files) == 6
    assert all((one.folder / path).read_bytes() == (two.folder / path).read_bytes() for path in files)


def test_partitions_do_not_change_the_shards(make, little_documents):
    documents = little_documents(200)
    one, five = make(documents, "one", partitions=1), make(documents, "five", partitions=5)
    assert one.manifest == five.manifest


def test_another_seed_is_another_split(make, little_documents):
    documents = little_documents(200)
    one, two = make(documents, "one"), make(documents, "two", shard_options={"seed": 1})
    assert one.manifest.splits["probe"] != two.manifest.splits["probe"]


def test_a_corpus_of_ten_documents_has_every_split(make, little_documents):
    documents = [document._replace(group=None) for document in little_documents(10)]
    shards = make(documents, shard_options={"sequence": 8})
    shards.verify()
    assert all(split.rows > 0 for split in shards.manifest.splits.values())


def test_a_corpus_without_labels_has_an_empty_probe(make, little_documents):
    shards = make([document._replace(label=None) for document in little_documents(60)])
    assert len(shards.split("probe")) == 0 and shards.manifest.labels == ()
    assert set(shards.split("probe").rows([])) == {"tokens", "label", "test", "group", "id"}


def test_one_group_trains_and_says_so(make, little_documents, capsys):
    shards = make([document._replace(group="all") for document in little_documents(60)])
    assert [shards.manifest.splits[split].rows > 0 for split in ("train", "validation", "probe")] == [
        True,
        False,
        False,
    ]
    assert "no validation rows" in capsys.readouterr().err


def test_empty_documents_are_left_out_and_counted(make, little_documents):
    documents = little_documents(60)
    shards = make([*documents, documents[0]._replace(text="", group="void")])
    counts = metrics(shards)
    assert counts["left_out"]["empty"] == 1 and counts["rows_in"] == 61
    assert counts["rows_out"] + counts["rejects"] == 61


def test_too_little_text_for_one_row_is_one_sentence(make, little_documents):
    with pytest.raises(UserError, match=r"corpora\.tiny\.shard\.sequence: the \d+ tokens to train on do not fill"):
        make(little_documents(10), shard_options={"sequence": 4096})


def test_a_short_validation_is_padded_to_a_row(make):
    documents = [("word " * 400, None, "long"), ("brief note", None, "short")]
    shards = make([type("D", (tuple,), {})(d) for d in documents], shard_options={"sequence": 64})
    validation, encoding = everything(shards, "validation")["tokens"], Encoding.load(shards.folder / "encoding")
    assert validation.shape == (1, 64) and (validation == encoding.pad).any()


def test_a_failed_stage_leaves_nothing_that_looks_whole(make, tmp_path, little_documents):
    with pytest.raises(UserError):
        make(little_documents(10), shard_options={"sequence": 4096})
    assert not list((tmp_path / "corpus/data/shard/tiny").glob("*"))


def test_large_shards_are_cut_into_files(make, little_documents, monkeypatch):
    monkeypatch.setattr(shard, "SHARD_BYTES", 64 * 50)
    shards = make(little_documents(300))
    files = shards.manifest.splits["train"].shards
    assert len(files) > 2 and all(file.rows == 50 for file in files[:-1])
    shards.verify()
    assert len(everything(shards, "train")["tokens"]) == shards.manifest.splits["train"].rows


def test_a_group_has_only_so_many_rows_in_the_probe_and_the_rest_is_counted(make, little_documents):
    documents = [
        document._replace(group=f"file-{number // 12}") for number, document in enumerate(little_documents(240))
    ]
    shards = make(documents, shard_options={"probe": 0.5, "group_rows": 4})
    probe, counts = shards.split("probe"), metrics(shards)
    rows = np.bincount(np.concatenate([file["group"] for file in probe.files]))
    assert rows.max() == 4 and counts["left_out"]["beyond_group_rows"] > 0
    assert counts["rows_in"] == counts["rows_out"] + sum(counts["left_out"].values()) == 240
    assert counts["probe_test_rows"] == sum(int(file["test"].sum()) for file in probe.files)


def test_a_row_of_the_probe_has_the_beginning_of_its_documents_id(make, little_documents):
    shards = make(little_documents(90))
    ids = np.concatenate([file["id"] for file in shards.split("probe").files]).view(np.uint64)
    known = {row["id"][:16] for row in encoded(shards)}
    assert len(ids) and {f"{number:016x}" for number in ids.tolist()} <= known
