"""A mistake in params.yaml or compute.yaml is one sentence that names the key."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from pathlib import Path

import pytest

from stages import params
from stages.digests import policy as code
from stages.params import UserError

CORPUS = """corpora:
  mine:
    modality: text
    ingest: {reader: jsonl, source: raw}
    dedup: {}
    tokenize: {}
    shard: {}
"""
MODEL = """probe: {}
models: {m: {corpus: mine, objective: next_token, backbone: {preset: llama}, train: {steps: 1, batch: 1}}}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    params.load_params.cache_clear()
    params.load_compute.cache_clear()


def load(text: str) -> params.Params:
    Path("params.yaml").write_text(text)
    return params.load_params()


def test_reader_options_are_the_further_keys_of_ingest() -> None:
    corpus = load(CORPUS.replace("source: raw", "source: raw, text: body, max_reject_fraction: 0")).corpora["mine"]
    assert corpus.ingest.options == {"text": "body"}
    assert corpus.ingest.max_reject_fraction == 0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (CORPUS + "probee: 1\n", r"params\.yaml: probee: no such key"),
        (CORPUS.replace("shard: {}", "shards: {}"), r"corpora\.mine\.shard: is required"),
        (CORPUS.replace("text", "txt"), r"corpora\.mine\.modality: must be 'text', .* \(got 'txt'\)"),
        (CORPUS.replace("raw", "3"), r"corpora\.mine\.ingest\.source: must be a valid string \(got 3\)"),
        (CORPUS.replace("raw", "'https://u:p@h/x'"), r"corpora\.mine\.ingest\.source: holds a password [^@]*$"),
        (CORPUS.replace("raw", "raw, max_reject_fraction: 2"), r"max_reject_fraction: must be less than or equal to 1"),
        (CORPUS.replace("dedup: {}", "dedup: []"), r"corpora\.mine\.dedup: must be a mapping of keys .* not a list"),
        ("- a\n", r"params\.yaml: must be a mapping of keys to values, not a list"),
        ("corpora:\n", r"corpora: must be a mapping of keys to values, not nothing"),
        ("", r"corpora: is required"),
        (CORPUS + CORPUS, r"line 8: is not valid YAML: found duplicate key \"corpora\""),
        (CORPUS.replace("    shard", "\tshard"), r"line 7: is not valid YAML"),
        (CORPUS.replace("mine:", "../mine:"), r"corpora\.\.\./mine: a name must be text of letters"),
        (CORPUS.replace("mine:", "my corpus:"), r"corpora\.my corpus: a name must be"),
        (CORPUS.replace("mine:", "3:"), r"corpora\.3: a name must be"),
        (CORPUS + MODEL.replace("mine", "yours"), r"models\.m\.corpus: there is no corpus 'yours' \(corpora: mine\)"),
        (CORPUS + MODEL.replace("steps: 1", "steps: 0"), r"models\.m\.train\.steps: must be greater than"),
        (
            CORPUS + MODEL.replace("batch: 1", "batch: 1, learning_rate: -1"),
            r"learning_rate: must be greater than 0",
        ),
        (
            CORPUS + MODEL.replace("next_token", "next_tok"),
            r"models\.m\.objective: there is no 'next_tok' .*next_t",
        ),
        (CORPUS + MODEL.replace("llama", "lama"), r"models\.m\.backbone\.preset: there is no transformer 'lama'"),
        (CORPUS + MODEL.replace("llama", "llama, heads: 5"), r"models\.m\.backbone\.heads: 5 heads do not divide"),
        (
            CORPUS + MODEL.replace("probe: {}", ""),
            r"params\.yaml: probe: is required where there are models",
        ),
        (CORPUS + MODEL.replace("probe: {}", "probe:"), r"probe: must be a mapping of keys to values, not nothing"),
        (CORPUS + "models:\n", r"models: must be a mapping of keys to values, not nothing"),
        ("\x00", "is not valid YAML"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_key(text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        load(text)
    assert all(line.startswith("params.yaml") for line in str(caught.value).splitlines())


def test_sizes_are_the_folders_where_a_model_starts_from_one() -> None:
    text = CORPUS + MODEL.replace("llama}", "llama, width: 32}, init_from: folder")
    assert load(text).models["m"].backbone.overrides == {"width": 32}
    params.load_params.cache_clear()
    with pytest.raises(UserError, match=r"models\.m\.backbone\.preset: there is no transformer 'lama'"):
        load(text.replace("llama", "lama"))


def test_a_missing_file_says_where_to_run() -> None:
    with pytest.raises(UserError, match=r"params\.yaml is missing: run the stage from the root"):
        params.load_params()
    assert params.load_compute() == params.Compute()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("workers: 0", "workers: must be greater than or equal to 1"),
        ("local: {processes: 0}", "local.processes: must be greater than or equal to 1"),
        ("workers: some", "workers: must be a valid integer"),
        ("precision: half", "precision: must be 'auto'"),
        ("local: 3", "local: must be a mapping"),
    ],
)
def test_compute_is_checked_as_well(text: str, sentence: str) -> None:
    Path("compute.yaml").write_text(text + "\n")
    with pytest.raises(UserError, match=rf"compute\.yaml: {sentence}"):
        params.load_compute()


def test_names_that_are_not_there_list_those_that_are() -> None:
    load(CORPUS + MODEL)
    with pytest.raises(UserError, match=r"there is no such corpus \(corpora: mine\)"):
        params.corpus("yours")
    with pytest.raises(UserError, match=r"there is no such model \(models: m\)"):
        params.model("gpt")
    with pytest.raises(UserError, match=r"x\.reader: there is no 'xml' in stages/readers \(there are: .*csv.*jsonl"):
        params.find("stages.readers", "xml", "x.reader")


@pytest.mark.parametrize(
    ("edited", "status"), [("{reader: csv, source: other}", 2), ("{reader: csv, source: x}", None)]
)
def test_an_edit_while_the_stage_runs_is_refused_where_it_decides_the_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], edited: str, status: int | None
) -> None:
    text = "corpora: {mine: {modality: text, ingest: {reader: csv, source: x}, dedup: {}, tokenize: {}, shard: %s}}\n"
    load(text % "{}")

    def stage(name: str) -> None:
        params.corpus(name)
        edit = (text % "{sequence: 9}").replace("{reader: csv, source: x}", edited)
        params.PARAMS.write_text(edit)

    monkeypatch.setattr(sys, "argv", ["stages/ingest.py", "mine"])
    if status is None:
        params.main(stage)
    else:
        with pytest.raises(SystemExit) as caught:
            params.main(stage)
        assert caught.value.code == status
        said = capsys.readouterr().err
        assert "what decides ingest@mine was edited while it ran" in said and said.count("\n") == 1


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the code, which the stage is taken to be made of."""
    root = Path(params.__file__).parents[1]
    for name in ("stages", "ssl_models"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(params, "Digests", functools.partial(params.Digests, tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("place", "addition", "edited"),
    [
        ("stages/readers/jsonl.py", "EDITED = 1\n", "ingest.readers.jsonl"),
        ("stages/modalities/text/ingest.py", "EDITED = 1\n", "ingest.modalities.text"),
        ("stages/readers/jsonl.py", "# EDITED = 1\n", None),
        ("stages/readers/csv.py", "EDITED = 1\n", None),
    ],
)
def test_code_that_is_edited_while_its_stage_runs_fails_the_stage(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    place: str, addition: str, edited: str | None,
) -> None:  # fmt: skip
    load(CORPUS)

    def stage(name: str) -> None:
        params.corpus(name)
        with (copied / place).open("a") as file:
            file.write(addition)

    monkeypatch.setattr(sys, "argv", ["stages/ingest.py", "mine"])
    if edited is None:
        params.main(stage)
        return
    with pytest.raises(SystemExit) as caught:
        params.main(stage)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert (
        said.startswith(f"error: {edited}: what decides ingest@mine was edited while it ran") and said.count("\n") == 1
    )


def test_a_folder_that_changes_while_its_stage_runs_fails_the_stage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = Path("theirs/tokenizer.json")
    tokenizer.parent.mkdir()
    tokenizer.write_text("{}")
    load(CORPUS.replace("tokenize: {}", "tokenize: {tokenizer: theirs}"))
    monkeypatch.setattr(sys, "argv", ["stages/tokenize.py", "mine"])
    with pytest.raises(SystemExit):
        params.main(lambda name: params.corpus(name) and tokenizer.write_text("[]"))
    assert "error: folders.corpora.mine: what decides tokenize@mine was edited while" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "name"),
    [("ingest@mine", "mine"), ("../dvc.yaml:ingest@mine", "mine"), ("shard@mine", None), ("", None)],
)
def test_below_dvc_a_stage_has_its_name_from_dvc(
    monkeypatch: pytest.MonkeyPatch, address: str, name: str | None
) -> None:
    load(CORPUS)
    monkeypatch.setattr(sys, "argv", ["stages/ingest.py"])
    monkeypatch.setenv("DVC_STAGE", address)
    called: list[str] = []
    if name is None:
        with pytest.raises(SystemExit, match="usage: "):
            params.main(called.append)
    else:
        params.main(called.append)
    assert called == [name] * (name is not None)


def test_below_dvc_a_stage_whose_digests_are_stale_does_not_begin(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load(CORPUS)
    code.write()
    monkeypatch.setattr(sys, "argv", ["stages/ingest.py"])
    monkeypatch.setenv("DVC_STAGE", "ingest@mine")
    called: list[str] = []
    params.main(called.append)
    said = json.loads(code.FILE.read_text())
    said["ingest"]["readers"]["jsonl"] = "0" * 16
    code.FILE.write_text(json.dumps(said))
    with pytest.raises(SystemExit):
        params.main(called.append)
    assert called == ["mine"]
    assert "run `python -m stages.code`, then `dvc repro ingest@mine`" in capsys.readouterr().err


def test_a_user_error_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stage(name: str) -> None:
        raise UserError(f"{name} is wrong")

    load(CORPUS)
    monkeypatch.setattr(sys, "argv", ["stages/ingest.py", "mine"])
    with pytest.raises(SystemExit) as caught:
        params.main(stage)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: mine is wrong\n"
