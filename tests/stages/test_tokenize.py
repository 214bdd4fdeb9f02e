import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from ssl_models.data.encoding import Encoding
from stages import tokenize
from stages.files import tables
from stages.params import UserError


@pytest.fixture
def run(tmp_path, write_corpus, run_stages):
    def build(documents, name="corpus", workers=1, partitions=2, **options):
        root = tmp_path / name
        root.mkdir()
        write_corpus(root, documents, tokenize_options=options, partitions=partitions)
        run_stages(root, tokenize.run, workers=workers)
        return root / "data/tokenize/tiny"

    return build


def test_rows_keep_their_order_ids_labels_and_groups(run, little_documents):
    documents = little_documents(50)
    out = run(documents, vocabulary=512, partitions=3)
    rows = [row for path in tables.partitions(out / "rows") for row in pq.read_table(path).to_pylist()]
    tokenizer = Tokenizer.from_file(str(out / "encoding/tokenizer.json"))
    assert [tokenizer.decode(row["tokens"], skip_special_tokens=False) for row in rows] == [d.text for d in documents]
    assert [(row["label"], row["group"]) for row in rows] == [(d.label, d.group) for d in documents]
    assert [row["id"] for row in rows] == [tables.content_id({"text": d.text}) for d in documents]


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_one_and_two_workers_and_another_run_give_the_same_bytes(run, little_documents, algorithm):
    documents = little_documents(100)
    one = run(documents, "one", algorithm=algorithm, vocabulary=600)
    two = run(documents, "two", algorithm=algorithm, vocabulary=600, workers=2)
    files = [*sorted(path.relative_to(one) for path in one.rglob("part-*")), "encoding/tokenizer.json"]
    assert len(files) == 3
    assert all((one / path).read_bytes() == (two / path).read_bytes() for path in files)


def test_metrics_account_for_every_row(run, little_documents):
    documents = little_documents(50)
    out = run([*documents, documents[0]._replace(text="")], vocabulary=512)
    metrics = json.loads((out / "report.json").read_text())
    assert metrics["rows_in"] == metrics["rows_out"] == 51
    assert metrics["empty"] == 1 and metrics["engine"] == "fastokens" and metrics["exact_decodes"] == 1
    assert metrics["bytes_in"] == sum(len(document.text.encode()) for document in documents)
    assert metrics["vocabulary"] == Encoding.load(out / "encoding").vocabulary


def test_no_rows_is_one_sentence(run):
    with pytest.raises(UserError, match="no rows to tokenize"):
        run([])


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"vocabulary": 10}, "vocabulary must be at least 363"),
        ({"algorithm": "wordpiece"}, "tokenize.algorithm"),
        ({"vocab": 512}, "tokenize.vocab: no such key"),
        ({"tokenizer": "there/tokenizer.json", "vocabulary": 512}, "remove vocabulary"),
        ({"tokenizer": "there/tokenizer.json"}, "there/tokenizer.json: cannot be read"),
    ],
)
def test_a_wrong_option_is_one_sentence(run, little_documents, wrong, sentence):
    with pytest.raises(UserError, match=sentence):
        run(little_documents(10), **wrong)


def test_the_stage_starts_quickly_without_torch():
    modules = "('torch', 'mlflow', 'numba')"
    code = f"import stages.tokenize, stages.shard, sys; print([m for m in {modules} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
