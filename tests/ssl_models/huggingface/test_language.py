"""The same weights compute the same numbers in `transformers` and here, in both directions; the rest is refused."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from ssl_models import artifact
from ssl_models.config import Backbone, Model, Train
from ssl_models.data.encoding import Encoding
from ssl_models.huggingface import (
    complete,
    fits,
    from_hugging_face,
    hugging_face_config,
    start_from,
    state_to_hugging_face,
    to_hugging_face,
)
from ssl_models.huggingface.tokenizer import save_tokenizer
from ssl_models.models.presets import resolve
from ssl_models.models.transformer import Transformer
from ssl_models.objectives.shared.sampling import continuation
from ssl_models.objectives.span_corruption import SpanCorruption
from tests.ssl_models import texts

transformers = pytest.importorskip("transformers")

VOCABULARY, LENGTH = 59, 12
ENCODING = Encoding(modality="text", vocabulary=VOCABULARY, length=LENGTH, pad=0, bos=1, eos=2, special=(0, 1, 2))
T5 = {"vocab_size": VOCABULARY, "d_model": 24, "d_kv": 6, "num_heads": 2, "num_layers": 2, "num_decoder_layers": 3}
BART = {
    "vocab_size": VOCABULARY,
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "max_position_embeddings": 32,
}
BART |= {f"{side}_attention_heads": 4 for side in ("encoder", "decoder")}
BART |= {f"{side}_ffn_dim": 40 for side in ("encoder", "decoder")}

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"vocab_size": VOCABULARY, "n_positions": 32, "n_embd": 24, "n_layer": 3, "n_head": 4},
    ),
    "gpt2-untied": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"vocab_size": VOCABULARY, "n_positions": 32, "n_embd": 24, "n_layer": 1, "n_head": 4, "n_inner": 20}
        | {"tie_word_embeddings": False, "activation_function": "relu"},
    ),
    "llama": (
        "LlamaConfig",
        "LlamaForCausalLM",
        {"vocab_size": VOCABULARY, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3}
        | {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e3},
        },
    ),
    "llama-tied": (
        "LlamaConfig",
        "LlamaForCausalLM",
        {"vocab_size": VOCABULARY, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
        | {"num_attention_heads": 4, "head_dim": 8, "tie_word_embeddings": True},
    ),
    "bert": (
        "BertConfig",
        "BertForMaskedLM",
        {"vocab_size": VOCABULARY, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3}
        | {"num_attention_heads": 4, "max_position_embeddings": 32},
    ),
    "bert-untied": (
        "BertConfig",
        "BertForMaskedLM",
        {"vocab_size": VOCABULARY, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1}
        | {"num_attention_heads": 4, "max_position_embeddings": 32, "tie_word_embeddings": False},
    ),
    "t5-1.0": ("T5Config", "T5ForConditionalGeneration", {**T5, "d_ff": 40, "feed_forward_proj": "relu"}),
    "t5-1.1": (
        "T5Config",
        "T5ForConditionalGeneration",
        {**T5, "d_ff": 40, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "bart": ("BartConfig", "BartForConditionalGeneration", BART),
}


def random_peer(case: str, **changed: int) -> Any:
    """A small model of `transformers`, every weight and bias drawn at random, none left at 0 or 1."""
    config_name, model_name, sizes = CASES[case]
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if case == "bart":
        special["decoder_start_token_id"] = 2
    torch.manual_seed(0)
    peer = getattr(transformers, model_name)(getattr(transformers, config_name)(**{**sizes, **special, **changed}))
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return peer.eval()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Ids `[3, 12]` and which are padding, on the right, as every row begins with a token."""
    tokens = torch.randint(3, VOCABULARY, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    padding = torch.arange(LENGTH) >= torch.tensor([LENGTH, 7, 1])[:, None]
    return tokens.masked_fill(padding, 0), padding


@torch.no_grad()
def assert_same_logits(peer: Any, ours: Transformer) -> None:
    tokens, padding = batch()
    target = tokens.flip(0)[:, :9].clamp(min=1)
    present = (~padding).long()
    if ours.architecture.structure == "encoder-decoder":
        expected = peer(input_ids=tokens, attention_mask=present, decoder_input_ids=target).logits
        found = ours(tokens, target, padding=padding)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        return
    expected = peer(input_ids=tokens, attention_mask=present).logits
    found = ours(tokens, padding=padding)
    torch.testing.assert_close(found[~padding], expected[~padding], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours(tokens), peer(input_ids=tokens).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_a_folder_of_transformers_computes_the_same_here_and_after_going_back(case: str, tmp_path: Path) -> None:
    peer = random_peer(case)
    peer.save_pretrained(tmp_path / "theirs")
    ours = from_hugging_face(tmp_path / "theirs")
    assert_same_logits(peer, ours)
    to_hugging_face(ours, ENCODING, tmp_path / "ours")
    again = type(peer).from_pretrained(tmp_path / "ours").eval()
    assert_same_logits(again, ours)
    assert_same_logits(again, from_hugging_face(tmp_path / "ours"))


@pytest.mark.parametrize("preset", ["gpt2", "llama", "bert", "t5", "bart"])
def test_a_model_made_here_opens_with_the_auto_class(preset: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = Backbone.model_validate({"preset": preset, "layers": 2, "width": 24, "heads": 2})
    ours = Transformer(resolve(backbone, vocabulary=VOCABULARY, context=32)).eval()
    to_hugging_face(ours, ENCODING, tmp_path)
    classes = {"encoder": "AutoModelForMaskedLM", "decoder": "AutoModelForCausalLM"}
    auto = getattr(transformers, classes.get(ours.architecture.structure, "AutoModelForSeq2SeqLM"))
    peer, report = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same_logits(peer.eval(), ours)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [type(peer).__name__]


@pytest.mark.parametrize("preset", ["gpt2", "llama", "t5", "bart"])
@torch.no_grad()
def test_transformers_writes_from_the_folder_what_we_write(preset: str, tmp_path: Path) -> None:
    # the cache of transformers 5.23 gives a T5 decoder no more layers than its encoder has
    made = random_peer("t5-1.1", num_decoder_layers=2) if preset == "t5" else random_peer(preset)
    made.save_pretrained(tmp_path / "theirs")
    ours = from_hugging_face(tmp_path / "theirs")
    to_hugging_face(ours, ENCODING, tmp_path / "ours")
    both = ours.architecture.structure == "encoder-decoder"
    auto = transformers.AutoModelForSeq2SeqLM if both else transformers.AutoModelForCausalLM
    peer = auto.from_pretrained(tmp_path / "ours").eval()
    prompt = batch()[0][:1]
    memory = ours.encode(prompt) if both else None
    begin = torch.tensor([[{"t5": 0, "bart": 2}[preset]]]) if both else prompt
    written = continuation(ours, begin, limit=8, end=2, vocabulary=VOCABULARY, temperature=0, memory=memory)
    theirs = peer.generate(prompt, max_new_tokens=8, do_sample=False, num_beams=1)
    assert torch.equal(theirs, torch.cat([begin, written], dim=1))


@pytest.mark.parametrize("case", ["gpt2", "bert", "bart"])
def test_shards_and_the_headless_prefix_are_read(case: str, tmp_path: Path) -> None:
    """Early checkpoints on the hub lack the prefix of the model below the head."""
    peer = random_peer(case)
    peer.save_pretrained(tmp_path / "sharded", max_shard_size="10KB")
    assert not (tmp_path / "sharded" / "model.safetensors").exists()
    assert_same_logits(peer, from_hugging_face(tmp_path / "sharded"))
    if case == "bert":  # without its head there is no masked language model
        peer.bert.save_pretrained(tmp_path / "headless")
        with pytest.raises(ValueError, match=r"lacks the tensor cls\.predictions\."):
            from_hugging_face(tmp_path / "headless")
        return
    peer.base_model.save_pretrained(tmp_path / "headless")
    assert_same_logits(peer, from_hugging_face(tmp_path / "headless"))


def test_names_of_early_bert_checkpoints_are_read_and_heads_of_other_tasks_named(tmp_path: Path) -> None:
    peer = random_peer("bert")
    peer.save_pretrained(tmp_path)
    state = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in load_file(tmp_path / "model.safetensors").items()
    }
    state["bert.pooler.dense.weight"] = torch.zeros(24, 24)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.warns(UserWarning, match=r"left out: bert\.pooler\.dense\.weight"):
        ours = from_hugging_face(tmp_path)
    assert_same_logits(peer, ours)


@pytest.mark.parametrize(
    ("case", "change", "sentence"),
    [
        ("gpt2", {"model_type": "mamba"}, "model_type: 'mamba' is not supported here (supported: gpt2, llama, "),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx: True is not supported"),
        ("gpt2", {"activation_function": "silu"}, "activation_function: 'silu' is not supported here, only gelu_new"),
        ("gpt2", {"activation_function": ["gelu_new"]}, "activation_function: ['gelu_new'] is not supported here"),
        ("llama", {"rope_parameters": [1]}, "rope_parameters: [1] is not understood"),
        ("gpt2", {"n_head": 5}, "heads: 5 heads do not divide a width of 24"),
        ("gpt2", {"n_layer": 4}, "lacks the tensor transformer.h.3."),
        ("gpt2", {"n_layer": 2}, "holds the tensor transformer.h.2."),
        ("gpt2", {"n_positions": 31}, "transformer.wpe.weight has the shape [32, 24]"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}},
            "rope_parameters: scaled rotary positions (llama3) are not supported here",
        ),
        (
            "llama",
            {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2}},
            "rope_parameters: scaled",
        ),
        ("llama", {"attention_bias": True}, "attention_bias: True is not supported here, only False"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type: 'relative_key' is not"),
        ("bert", {"is_decoder": True}, "is_decoder: True is not supported"),
        ("t5-1.0", {"feed_forward_proj": "swish"}, "feed_forward_proj: 'swish' is not supported here, only relu"),
        ("bart", {"scale_embedding": True}, "scale_embedding: True is not supported"),
        ("bart", {"decoder_attention_heads": 2}, "decoder_attention_heads: 2 is not supported here"),
    ],
)
def test_what_would_compute_something_else_is_refused(
    case: str, change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    random_peer(case).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the sentence is the assertion
        from_hugging_face(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}: {sentence}")


def test_a_shard_that_is_no_name_is_refused(tmp_path: Path) -> None:
    random_peer("gpt2").save_pretrained(tmp_path, max_shard_size="10KB")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": 3, "b": "model.safetensors"}}')
    with pytest.raises(ValueError, match=r"index\.json: weight_map: 3 is not understood$"):
        from_hugging_face(tmp_path)


def test_values_of_a_wrong_kind_name_the_file(tmp_path: Path) -> None:
    random_peer("llama").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_parameters": {"rope_theta": [1]}}))
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the sentence is the assertion
        from_hugging_face(tmp_path)
    assert str(error.value).startswith(f"{path}: is not understood")


@pytest.mark.parametrize(
    ("preset", "pad"), [("llama", None), ("bert", None), ("bart", None), ("gpt2", None), ("t5", 2)]
)
def test_the_embedding_of_an_end_that_is_also_the_padding_is_trained_over_there(
    preset: str, pad: int | None, tmp_path: Path
) -> None:
    backbone = Backbone.model_validate({"preset": preset, "layers": 1, "width": 24, "heads": 2})
    ours = Transformer(resolve(backbone, vocabulary=VOCABULARY, context=32))
    to_hugging_face(ours, ENCODING.model_copy(update={"pad": 2}), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["pad_token_id"] == pad
    kinds = {"decoder": "CausalLM", "encoder": "MaskedLM", "encoder-decoder": "Seq2SeqLM"}
    peer = getattr(transformers, f"AutoModelFor{kinds[ours.architecture.structure]}").from_pretrained(tmp_path)
    assert peer.get_input_embeddings().padding_idx is None


def test_a_bart_whose_sides_have_embeddings_of_their_own_is_refused(tmp_path: Path) -> None:
    random_peer("bart", tie_word_embeddings=False).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model\.encoder\.embed_tokens\.weight is not model\.shared\.weight"):
        from_hugging_face(tmp_path)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision_are_read_as_float32(kind: torch.dtype, tmp_path: Path) -> None:
    peer = random_peer("gpt2").to(kind)
    peer.save_pretrained(tmp_path)
    assert_same_logits(peer.float(), from_hugging_face(tmp_path))


def test_folders_that_are_no_models_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json: is missing, so this is no Hugging Face model folder"):
        from_hugging_face(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: cannot be read"):
        from_hugging_face(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match=r"holds no model\.safetensors; other formats are not read"):
        from_hugging_face(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no such thing")
    with pytest.raises(ValueError, match=r"model\.safetensors: cannot be read"):
        from_hugging_face(tmp_path)


@pytest.mark.parametrize(
    ("preset", "override", "key"),
    [
        ("llama", {"qk_norm": True}, "qk_norm"),
        ("llama", {"mlp": "relu2"}, "mlp"),
        ("gpt2", {"positions": "rotary"}, "positions"),
        ("bert", {"norm_place": "pre"}, "norm_place"),
        ("t5", {"kv_heads": 1}, "kv_heads"),
        ("vit", {}, "preset"),
    ],
)
def test_architectures_that_hugging_face_lacks_are_not_exported(
    preset: str, override: dict[str, Any], key: str
) -> None:
    sizes = {"preset": preset, "layers": 1, "width": 24, "heads": 2}
    architecture = resolve(Backbone.model_validate({**sizes, **override}), vocabulary=VOCABULARY, context=32)
    assert not fits(architecture)
    with pytest.raises(ValueError, match=f"^{key}: "):
        hugging_face_config(architecture, ENCODING)


def test_exported_tensors_share_no_memory() -> None:
    backbone = Backbone.model_validate({"preset": "t5", "layers": 1, "width": 24, "heads": 2, "tied": True})
    model = Transformer(resolve(backbone, vocabulary=VOCABULARY, context=32))
    state = state_to_hugging_face(model.state_dict(), model.architecture)
    assert len({value.data_ptr() for value in state.values()}) == len(state)


def test_the_tokenizer_opens_with_its_special_tokens(tmp_path: Path) -> None:
    source = tmp_path / "encoding"
    source.mkdir()
    words = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", "a", "b", "<extra_id_0>"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>", "<unk>", "<extra_id_0>"])
    tokenizer.save(str(source / "tokenizer.json"))
    special = {"vocabulary": 7, "length": 8, "bos": 1, "eos": 2, "sentinels": (6,), "special": (0, 1, 2, 3, 6)}
    Encoding.model_validate({"modality": "text", **special}).save(source)
    encoding = Encoding.load(source)
    for preset in ("gpt2", "llama", "bert", "t5", "bart"):
        backbone = Backbone.model_validate({"preset": preset, "layers": 1, "width": 8, "heads": 2})
        to_hugging_face(Transformer(resolve(backbone, vocabulary=7, context=8)), encoding, tmp_path / preset)
        opened = transformers.AutoTokenizer.from_pretrained(tmp_path / preset)
        assert opened("a b zebra")["input_ids"] == [4, 5, 3]
        found = (opened.pad_token_id, opened.bos_token_id, opened.eos_token_id, opened.unk_token_id)
        assert found == (0, 1, 2, 3)
        assert opened.mask_token is None
        assert "<extra_id_0>" in opened.all_special_tokens
        assert opened.model_max_length == 8


@pytest.mark.parametrize("preset", ["gpt2", "llama", "bert", "t5", "bart"])
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_the_tokenizer_of_a_folder_gives_the_ids_of_training_and_the_text_back(
    preset: str, kind: str, tmp_path: Path
) -> None:
    encoding = getattr(texts, kind)(tmp_path / "encoding")
    backbone = Backbone.model_validate({"preset": preset, **texts.SMALL})
    architecture = resolve(backbone, vocabulary=encoding.vocabulary, context=encoding.length)
    to_hugging_face(Transformer(architecture), encoding, tmp_path / "model")
    opened = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    ids = texts.encode(encoding, texts.TEXT)
    assert opened(texts.TEXT, add_special_tokens=False)["input_ids"] == ids
    tokenizer = Tokenizer.from_file(str(encoding.folder / "tokenizer.json"))
    assert opened.decode(ids) == tokenizer.decode(ids, skip_special_tokens=False)
    assert opened.mask_token_id == encoding.mask
    first = opened("<extra_id_0>", add_special_tokens=False)["input_ids"]
    assert first[-1] == tokenizer.token_to_id("<extra_id_0>")


def test_training_starts_from_a_folder_and_takes_its_sizes(tmp_path: Path) -> None:
    random_peer("gpt2").save_pretrained(tmp_path)
    backbone = complete(Backbone.model_validate({"preset": "gpt2", "dropout": 0.1}), tmp_path)
    model = Transformer(resolve(backbone, vocabulary=VOCABULARY, context=LENGTH))
    assert (model.architecture.layers, model.architecture.context, model.architecture.dropout) == (3, 32, 0.1)
    start_from(torch.nn.ModuleDict({"transformer": model}), tmp_path)
    assert_same_logits(random_peer("gpt2"), model.eval())


def test_a_backbone_that_contradicts_the_folder_is_refused(tmp_path: Path) -> None:
    random_peer("gpt2").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^layers: is 5, but the model in .* has 3: leave it out$"):
        complete(Backbone.model_validate({"preset": "gpt2", "layers": 5}), tmp_path)
    with pytest.raises(ValueError, match=r"^preset: 'llama' cannot start from .*, which holds 'gpt2'$"):
        complete(Backbone(preset="llama"), tmp_path)
    other = resolve(
        Backbone.model_validate({"preset": "gpt2", "width": 48, "layers": 3, "heads": 4}), vocabulary=59, context=32
    )
    with pytest.raises(ValueError, match=r"^head_width: is 12, but the model in .* has 6$"):
        start_from(Transformer(other), tmp_path)


def special_tokens(folder: Path, kind: Any, pieces: list[str]) -> Encoding:
    """An encoding without roles, and its `tokenizer.json` of these special tokens."""
    folder.mkdir()
    tokenizer = Tokenizer(kind({piece: number for number, piece in enumerate(pieces)}))
    tokenizer.add_special_tokens(pieces)
    tokenizer.save(str(folder / "tokenizer.json"))
    size = len(pieces)
    return Encoding(modality="text", folder=folder, length=8, vocabulary=size, special=tuple(range(size)))


def configuration(encoding: Encoding, folder: Path, source: Path | None = None) -> dict[str, Any]:
    save_tokenizer(encoding, 8, folder, source=source)
    found: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_text())
    return found


def test_roles_that_the_source_named_are_carried_over(tmp_path: Path) -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    encoding = special_tokens(tmp_path / "encoding", models.WordPiece, pieces)
    encoding = encoding.model_copy(update={"bos": 2, "eos": 3, "mask": 4, "cls": 2, "sep": 3})
    (tmp_path / "source").mkdir()
    named = {"cls_token": "[CLS]", "sep_token": {"content": "[SEP]"}, "unk_token": "[UNK]", "eos_token": "[X]"}
    (tmp_path / "source" / "tokenizer_config.json").write_text(json.dumps(named))
    (tmp_path / "out").mkdir()
    found = configuration(encoding, tmp_path / "out", tmp_path / "source")
    assert {role: found[f"{role}_token"] for role in ("pad", "unk", "mask", "cls", "sep", "bos", "eos")} == {
        "pad": "[PAD]", "unk": "[UNK]", "mask": "[MASK]", "cls": "[CLS]", "sep": "[SEP]", "bos": "[CLS]", "eos": "[SEP]"
    }  # fmt: skip


def test_the_unknown_token_of_byte_level_bpe_is_carried_over_and_is_no_mask(tmp_path: Path) -> None:
    encoding = special_tokens(tmp_path / "encoding", lambda vocab: models.BPE(vocab, []), ["</s>", "<unk>"])
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "special_tokens_map.json").write_text('{"unk_token": "<unk>"}')
    (tmp_path / "out").mkdir()
    found = configuration(encoding.model_copy(update={"mask": 1}), tmp_path / "out", tmp_path / "source")
    assert found["unk_token"] == "<unk>"
    assert "mask_token" not in found


def test_the_unknown_token_is_not_exported_as_the_mask(tmp_path: Path) -> None:
    kind = functools.partial(models.WordLevel, unk_token="<unk>")
    encoding = special_tokens(tmp_path / "encoding", kind, ["</s>", "<unk>"])
    (tmp_path / "out").mkdir()
    assert "mask_token" not in configuration(encoding.model_copy(update={"mask": 1}), tmp_path / "out")


@pytest.mark.parametrize("start", [1, None])
def test_a_decoder_goes_on_starting_as_in_the_folder(start: int | None, tmp_path: Path) -> None:
    peer = random_peer("bart")
    peer.save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"decoder_start_token_id": start}))
    encoding = ENCODING.model_copy(update={"length": 10, "mask": 3})
    wanted = Model(
        corpus="x",
        objective="text_infilling",
        backbone=Backbone(preset="bart"),
        train=Train(steps=1, batch=1),
        init_from=str(tmp_path / "theirs"),
    )
    wanted = artifact.completed(wanted)
    objective = artifact.build(wanted, encoding)
    artifact.start_from(objective, tmp_path / "theirs")
    artifact.save(objective, wanted, encoding, tmp_path / "ours")
    assert artifact.load(tmp_path / "ours").begin == (2 if start is None else start)


@pytest.mark.parametrize("start", [59, "x"])
def test_a_start_that_is_no_id_is_refused(start: Any, tmp_path: Path) -> None:
    random_peer("t5-1.0").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"decoder_start_token_id": start}))
    backbone = complete(Backbone(preset="t5"), tmp_path)
    objective = SpanCorruption(backbone, SpanCorruption.Options(), texts.plain(VOCABULARY, LENGTH, 20))
    with pytest.raises(ValueError, match=r"config\.json: decoder_start_token_id: .* is not understood$"):
        start_from(objective, tmp_path)
