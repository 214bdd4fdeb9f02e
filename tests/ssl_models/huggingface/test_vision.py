"""The same weights see the same in `transformers` and here, in both directions; the rest is refused or keeps our
names."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from ssl_models import artifact
from ssl_models.config import Backbone, Model, Train
from ssl_models.data.encoding import Encoding
from ssl_models.huggingface.vision import picture_config
from ssl_models.models.codebook import Codebook
from ssl_models.objectives import Objective
from stages.modalities.image_text import tokenize as image_text
from stages.modalities.text import tokenize as text
from tests.ssl_models.objectives import pictures
from tests.ssl_models.objectives.pictures import EOS, LENGTH, SIDE, VOCABULARY, keys, pixels, vit

transformers = pytest.importorskip("transformers")

PATCH, CODES, BATCH = 4, 11, 8
ENCODER = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
PICTURE = {**ENCODER, "image_size": SIDE, "patch_size": PATCH}
DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
TEXT = {"vocab_size": VOCABULARY + 2, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT |= {"intermediate_size": 20, "max_position_embeddings": LENGTH + 3, "eos_token_id": EOS, "bos_token_id": 2}
BEIT = {"vocab_size": CODES, "use_mask_token": True, "use_relative_position_bias": True, "layer_scale_init_value": 0.3}

CASES: dict[str, tuple[str, str, dict[str, Any], str, str]] = {
    "vit": ("ViTConfig", "ViTModel", PICTURE, "rotation", "vit"),
    "vit_mae": (
        "ViTMAEConfig",
        "ViTMAEForPreTraining",
        {**PICTURE, **DECODER, "decoder_intermediate_size": 20, "norm_pix_loss": True},
        "masked_pixels",
        "mae",
    ),
    "beit": ("BeitConfig", "BeitForMaskedImageModeling", {**PICTURE, **BEIT}, "masked_visual_tokens", "beit"),
    "clip": (
        "CLIPConfig",
        "CLIPModel",
        {"vision_config": PICTURE, "text_config": {**TEXT, "pad_token_id": 0}, "projection_dim": 10},
        "image_text",
        "clip-vision",
    ),
}
"""Configuration, class and sizes there; objective and preset here."""


def random_peer(case: str, **changed: Any) -> Any:
    """A small model of `transformers`, every number drawn at random, the tables of fixed positions too."""
    config_name, model_name, sizes, _, _ = CASES[case]
    torch.manual_seed(0)
    peer = getattr(transformers, model_name)(getattr(transformers, config_name)(**{**sizes, **changed}))
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return peer.eval()


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a codebook and a tokenizer."""
    folder = tmp_path_factory.mktemp("encoding")
    Codebook(torch.rand(CODES, PATCH * PATCH * 3), PATCH).save(folder)
    words = {"<pad>": 0, "<eos>": EOS, "<s>": 2, "a": 3, "picture": 4, "<unk>": 5}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<pad>", "<eos>", "<s>", "<unk>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def encoding(case: str, book: Path, **fields: Any) -> Encoding:
    statistics = {"mean": (0.4, 0.5, 0.6), "std": (0.3, 0.2, 0.25)}
    modality = fields.pop("modality", "image_text" if case == "clip" else "image")
    return pictures.encoding(modality, folder=book, **{**statistics, **fields})


def entry(case: str, folder: Path | None = None, **fields: Any) -> Model:
    _, _, _, objective, preset = CASES[case]
    model = Model(corpus="x", objective=objective, backbone=Backbone(preset=preset), train=Train(steps=1, batch=BATCH))
    return model.model_copy(update={"init_from": str(folder) if folder else None, **fields})


def started(model: Model, data: Encoding) -> Objective:
    """What a training job begins with."""
    torch.manual_seed(1)
    model = artifact.completed(model)
    objective = artifact.build(model, data)
    artifact.start_from(objective, Path(str(model.init_from)))
    return objective.eval()


def seen(objective: Any, rows: Tensor) -> Tensor:
    """What `transformers` calls `pixel_values`."""
    encoder = objective.image if hasattr(objective, "image") else objective.encoder
    values: Tensor = encoder.normalise(rows)
    return values


def captions() -> Tensor:
    tokens = torch.randint(3, VOCABULARY, (BATCH, LENGTH), generator=torch.Generator().manual_seed(3))
    for row in range(BATCH):
        tokens[row, 1 + row % (LENGTH - 1)] = EOS
        tokens[row, 2 + row % (LENGTH - 1) :] = 0
    return tokens


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def assert_same(peer: Any, ours: Any) -> None:
    """Logits, hidden states and losses on one batch."""
    rows = pixels(BATCH)
    values = seen(ours, rows)
    if type(peer).__name__ == "ViTModel":
        encoded = ours.encoder(rows)
        close(torch.cat([encoded.cls[:, None], encoded.tokens], dim=1), peer(pixel_values=values).last_hidden_state)
        return
    if type(peer).__name__ == "ViTMAEForPreTraining":
        batch = ours.prepare({"pixels": rows}, keys(BATCH))
        noise = batch["order"].argsort(dim=1).float()  # sorted, it gives the order back
        there = peer(pixel_values=values, noise=noise)
        close(ours.predict(batch), there.logits)
        close(ours(batch).loss / ours.count(batch), there.loss)
        return
    if type(peer).__name__ == "BeitForMaskedImageModeling":
        batch = ours.prepare({"pixels": rows}, keys(BATCH))
        labels = batch["codes"][batch["masked"]]
        there = peer(pixel_values=values, bool_masked_pos=batch["masked"], labels=labels)
        hit = batch["masked"].gather(1, batch["positions"])
        close(ours.logits(batch)[hit], there.logits[batch["masked"]])
        close(ours(batch).loss / ours.count(batch), there.loss)
        return
    tokens = captions()
    there = peer(input_ids=tokens, pixel_values=values, return_loss=True)
    image, caption = ours.encode_image(rows), ours.encode_text(tokens)
    close(image, there.image_embeds)
    close(caption, there.text_embeds)
    close(ours.scale.exp() * image @ caption.T, there.logits_per_image)
    batch = {"pixels": rows, "tokens": tokens, "keys": keys(len(tokens))}
    close(ours(batch).loss / ours.count(batch), there.loss)


@pytest.mark.parametrize("case", CASES)
def test_a_folder_of_transformers_sees_the_same_here_and_after_going_back(
    case: str, book: Path, tmp_path: Path
) -> None:
    peer, data = random_peer(case), encoding(case, book)
    peer.save_pretrained(tmp_path / "theirs")
    with warnings.catch_warnings():
        warnings.simplefilter("error" if case != "vit" else "ignore")  # a ViT's pooler has no place here
        ours = started(entry(case, tmp_path / "theirs"), data)
    assert_same(peer, ours)
    model = artifact.completed(entry(case, tmp_path / "theirs"))
    artifact.save(ours, model, data, tmp_path / "ours")
    again, report = type(peer).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same(again.eval(), ours)
    assert_same(again.eval(), artifact.load(tmp_path / "ours"))


SMALL: dict[str, dict[str, Any]] = {
    "vit": {},
    "vit_mae": {"decoder": {"layers": 1, "width": 8, "heads": 2}},
    "beit": {},
    "clip": {"width": 6, "text": {"layers": 1, "width": 8, "heads": 2}},
}


def made(case: str, data: Encoding, **fields: Any) -> tuple[Objective, Model]:
    """A model made here, no number left at its start."""
    model = entry(case, backbone=vit(CASES[case][4]), task=SMALL[case]).model_copy(update=fields)
    torch.manual_seed(2)
    objective = artifact.build(model, data)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return objective.eval(), model


@pytest.mark.parametrize("case", CASES)
def test_a_model_made_here_opens_with_transformers_and_is_whole_when_it_comes_back(
    case: str, book: Path, tmp_path: Path
) -> None:
    data = encoding(case, book)
    ours, model = made(case, data)
    artifact.save(ours, model, data, tmp_path / "model")
    peer, report = getattr(transformers, CASES[case][1]).from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same(peer.eval(), ours)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["architectures"] == [CASES[case][1]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = artifact.load(tmp_path / "model")
    for name, value in back.state_dict().items():
        if case == "beit" and ".qkv.bias" in name:
            continue  # without the keys' part, which changes nothing
        assert torch.equal(value, ours.state_dict()[name]), name
    rows = {"pixels": pixels(BATCH)}
    for name, values in back.features(rows).items():
        torch.testing.assert_close(values, ours.features(rows)[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_the_auto_classes_open_it_and_make_the_same_pixels(case: str, book: Path, tmp_path: Path) -> None:
    data = encoding(case, book)
    ours, model = made(case, data)
    artifact.save(ours, model, data, tmp_path / "model")
    opened = transformers.AutoModel.from_pretrained(tmp_path / "model")
    assert opened.config.model_type == case
    pytest.importorskip("PIL", reason="the image processors of transformers need Pillow")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "model")
    rows = pixels(BATCH)
    made_there = processor([np.asarray(row.permute(1, 2, 0)) for row in rows], return_tensors="pt")["pixel_values"]
    close(made_there, seen(ours, rows))


def test_the_pooler_of_an_exported_vit_is_our_cls(book: Path, tmp_path: Path) -> None:
    data = encoding("vit", book)
    ours, model = made("vit", data)
    artifact.save(ours, model, data, tmp_path / "model")
    rows = pixels(BATCH)
    with torch.no_grad():
        pooled = transformers.AutoModel.from_pretrained(tmp_path / "model")(seen(ours, rows)).pooler_output
        close(pooled, ours.features({"pixels": rows})["cls"])


def test_what_transformers_has_no_name_for_lies_beside(book: Path, tmp_path: Path) -> None:
    data = encoding("beit", book)
    ours, model = made("beit", data)
    artifact.save(ours, model, data, tmp_path / "beit")
    assert set(load_file(tmp_path / "beit" / "pretext.safetensors")) == {"centres"}
    ours, model = made("vit", data, objective="contrastive", task={"projector": (8, 4)})
    artifact.save(ours, model, data, tmp_path / "vit")
    rest = load_file(tmp_path / "vit" / "pretext.safetensors")
    assert {name.split(".")[0] for name in rest} == {"projector"}
    (tmp_path / "vit" / "pretext.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks 'projector\.0\.bias', which this model has"):
        artifact.load(tmp_path / "vit")


def test_other_statistics_of_the_pixels_are_folded_into_the_patches(book: Path, tmp_path: Path) -> None:
    rows = pixels(BATCH)
    processor = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.5, 0.4], "rescale_factor": 1 / 255}
    mean, std = (torch.tensor(processor[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
    values = (rows / 255 - mean) / std
    for case in ("vit", "clip"):  # with and without a bias of the patches
        peer = random_peer(case)
        peer.save_pretrained(tmp_path / case)
        (tmp_path / case / "preprocessor_config.json").write_text(json.dumps(processor))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ours: Any = started(entry(case, tmp_path / case), encoding(case, book))
        with torch.no_grad():
            if case == "vit":
                close(ours.encoder(rows).cls, peer(values).last_hidden_state[:, 0])
            else:
                features = peer.get_image_features(pixel_values=values).pooler_output
                close(ours.encode_image(rows), torch.nn.functional.normalize(features, dim=1))


def test_any_objective_starts_from_the_encoder_of_a_folder(book: Path, tmp_path: Path) -> None:
    random_peer("vit_mae").save_pretrained(tmp_path / "mae")
    data = encoding("vit", book)
    for preset in ("mae", "vit"):
        model = entry("vit", tmp_path / "mae", objective="contrastive", backbone=Backbone(preset=preset))
        with pytest.warns(UserWarning, match=r"left out: decoder\.decoder_embed\.bias"):
            ours: Any = started(model, data)
        mae: Any = started(entry("vit_mae", tmp_path / "mae"), data)
        rows = {"pixels": pixels(BATCH)}
        close(ours.features(rows)["cls"], mae.features(rows)["cls"])


@pytest.mark.parametrize("case", ["vit_mae", "beit"])
def test_an_encoder_alone_starts_the_objective_with_fresh_heads(case: str, book: Path, tmp_path: Path) -> None:
    peer = random_peer(case)
    if case == "vit_mae":
        peer.vit.save_pretrained(tmp_path / "model")
    else:
        folder = tmp_path / "model"
        peer.save_pretrained(folder)
        state = {
            name: value for name, value in load_file(folder / "model.safetensors").items() if "lm_head" not in name
        }
        del state["beit.embeddings.mask_token"]
        artifact.save_file(state, folder / "model.safetensors")
    with pytest.warns(UserWarning, match="the heads of this objective start afresh"):
        ours: Any = started(entry(case, tmp_path / "model"), encoding(case, book))
    assert ours.encoder.embedding.weight.std() > 0.05


def test_a_vit_with_the_head_of_another_task_is_read(book: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    peer = transformers.ViTForImageClassification(transformers.ViTConfig(**PICTURE)).eval()
    peer.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"left out: classifier\.bias, classifier\.weight"):
        ours: Any = started(entry("vit", tmp_path), encoding("vit", book))
    rows = pixels(BATCH)
    with torch.no_grad():
        there = peer.vit(seen(ours, rows)).last_hidden_state
        close(ours.encoder(rows).tokens, there[:, 1:])


@pytest.mark.parametrize(
    ("case", "change", "sentence"),
    [
        ("vit", {"qkv_bias": False}, "qkv_bias: False is not supported here, only True"),
        ("vit", {"hidden_act": "silu"}, "hidden_act: 'silu' is not supported here, only "),
        ("vit", {"patch_size": [4, 2]}, "patch_size: [4, 2] is not supported here, only squares"),
        (
            "vit",
            {"image_size": 32},
            "image_size: the corpus has pictures of 16x16 with 3 channels, the model reads 32x32",
        ),
        ("vit", {"num_channels": 1}, "image_size: the corpus has pictures of 16x16 with 3 channels, the model reads"),
        ("vit", {"num_attention_heads": 5}, "heads: 5 heads do not divide a width of 24"),
        ("vit", {"num_hidden_layers": 3}, "lacks the tensor encoder.layer.2."),
        ("vit", {"num_hidden_layers": 1}, "holds the tensor encoder.layer.1."),
        ("vit_mae", {"decoder_num_hidden_layers": 2}, "lacks the tensor decoder.decoder_encoder.layer.1."),
        ("beit", {"use_relative_position_bias": False}, "use_relative_position_bias: False is not supported"),
        ("beit", {"use_shared_relative_position_bias": True}, "use_shared_relative_position_bias: True is not"),
        ("beit", {"use_absolute_position_embeddings": True}, "use_absolute_position_embeddings: True is not"),
        ("beit", {"use_mean_pooling": False}, "use_mean_pooling: False is not supported here, only True"),
        (
            "clip",
            {"text_config": {**TEXT, "eos_token_id": 7}},
            "eos_token_id: captions of the corpus end with the id 1",
        ),
        (
            "clip",
            {"text_config": {**TEXT, "eos_token_id": 2}},
            "eos_token_id: captions of the corpus end with the id 1",
        ),
        ("clip", {"vision_config": 3}, "vision_config: 3 is no configuration"),
    ],
)
@pytest.mark.filterwarnings("ignore:weights with no place here")
def test_what_would_compute_something_else_is_refused(
    case: str, change: dict[str, Any], sentence: str, book: Path, tmp_path: Path
) -> None:
    random_peer(case).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the sentence is the assertion
        started(entry(case, tmp_path), encoding(case, book))
    assert str(error.value).removeprefix("init_from: ").startswith(f"{tmp_path}: {sentence}")


@pytest.mark.parametrize(
    ("case", "fields", "sentence"),
    [
        ("vit", {"backbone": Backbone(preset="vit", width=32)}, r"^backbone\.width: is 32, but the model in .* has 24"),
        ("vit", {"backbone": Backbone(preset="beit")}, r"^backbone\.preset: 'beit' cannot start from .* holds 'vit'"),
        ("vit_mae", {"task": {"decoder": {"width": 32}}}, r"^task\.decoder\.width: is 32, but the model in .* has 16"),
    ],
)
def test_sizes_that_contradict_the_folder_are_named(
    case: str, fields: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    random_peer(case).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        artifact.completed(entry(case, tmp_path, **fields))


@pytest.mark.parametrize(
    ("case", "fields", "data", "key"),
    [
        ("vit", {"backbone": vit("vit", qk_norm=True)}, {}, "qk_norm"),
        ("vit", {"backbone": vit("beit")}, {}, "layer_scale"),
        ("vit", {"objective": "next_frame"}, {"modality": "video", "frames": 3}, "architecture"),
        ("vit", {"backbone": vit("clip-vision")}, {}, "embedding_norm"),
        ("vit", {"backbone": pictures.resnet()}, {}, "architecture"),
        ("vit_mae", {}, {"height": 8}, "height"),
        ("vit_mae", {"backbone": vit("mae", biases=False)}, {}, "biases"),
        ("beit", {"backbone": vit("vit")}, {}, "positions"),
        ("clip", {"task": {"loss": "siglip"}}, {}, "loss"),
        ("clip", {}, {"eos": 2}, "eos"),
    ],
)
def test_what_hugging_face_lacks_keeps_our_names(
    case: str, fields: dict[str, Any], data: dict[str, Any], key: str, book: Path, tmp_path: Path
) -> None:
    described = encoding(case, book, **data)
    ours, model = made(case, described, **fields)
    with pytest.raises(ValueError, match=f"^{key}: "):
        picture_config(ours, described)
    artifact.save(ours, model, described, tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "pretext"
    back = artifact.load(tmp_path / "model")
    torch.testing.assert_close(back.state_dict(), ours.state_dict(), rtol=0, atol=0)


def test_the_tokenizer_of_an_exported_clip_ends_captions_where_they_are_read(book: Path, tmp_path: Path) -> None:
    data = encoding("clip", book)
    ours, model = made("clip", data)
    artifact.save(ours, model, data, tmp_path / "model")
    opened = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert opened("a picture")["input_ids"] == [3, 4, EOS]
    assert opened(["a", "a picture"], padding=True)["input_ids"] == [[3, EOS, 0], [3, 4, EOS]]
    kept = json.loads((tmp_path / "model" / "encoding" / "tokenizer.json").read_text())
    assert kept["post_processor"] is None


def test_captions_of_our_own_tokenizers_end_with_an_id_that_clip_reads() -> None:
    assert sorted(image_text.SPECIAL) == sorted(text.SPECIAL)
    assert image_text.SPECIAL.index("</s>") != 2


def test_a_processor_that_makes_other_pixels_is_refused(book: Path, tmp_path: Path) -> None:
    random_peer("vit").save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_rescale": False}))
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(ValueError, match=r"makes other pixels than \[0, 1\]"),
    ):
        started(entry("vit", tmp_path), encoding("vit", book))
