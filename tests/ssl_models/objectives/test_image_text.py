"""CLIP and SigLIP: two encoders, the whole matrix, the text read at its end."""

import math

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.ssl_models.objectives.pictures import EOS, LENGTH, encoding, keys, objective, train, vit

WORDS = {"<pad>": 0, "<eos>": 1, "red": 2, "green": 3, "blue": 4, "a": 5, "picture": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoding")
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def learner(folder, **task):
    return objective("image_text", vit("clip-vision"), encoding("image_text", folder=folder), **task)


def pairs(image: torch.Tensor, text: torch.Tensor, captions: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """Embeddings as `embed` gives them; `captions` `[pairs]` by number, by default all different."""
    numbers = torch.arange(len(image)) if captions is None else captions
    return {"image": image, "text": text, "caption": numbers[:, None].expand(-1, LENGTH).to(image.dtype)}


def recalls(task, embeddings: dict[str, torch.Tensor]) -> dict[str, float]:
    sums = task.couple(embeddings, keys(len(embeddings["image"]))).sums
    return {name: float(hits / of) for name, (hits, of) in sums.items()}


def coloured() -> dict[str, torch.Tensor]:
    """Nine pictures of three colours in three shades, with captions that name the colour."""
    rows = torch.zeros(9, 3, 16, 16, dtype=torch.uint8)
    tokens = torch.zeros(9, 9, dtype=torch.int64)
    for row in range(9):
        rows[row, row % 3] = 255 - 40 * (row // 3)
        tokens[row, :4] = torch.tensor([5, 2 + row % 3, 6, EOS])
    return {"pixels": rows, "tokens": tokens}


def test_the_text_is_read_at_its_first_end_of_text(folder):
    task = learner(folder).eval()
    tokens = coloured()["tokens"]
    before = task.encode_text(tokens)
    after = tokens.clone()
    after[:, 4:] = torch.tensor([3, 1, 4, 2, 1])
    torch.testing.assert_close(task.encode_text(after), before)
    changed = tokens.clone()
    changed[:, 0] = 6
    assert (task.encode_text(changed) - before).abs().max() > 1e-3
    full = torch.full((2, 9), 3)
    assert task.encode_text(full).isfinite().all()


def test_embeddings_have_length_one(folder):
    task = learner(folder)
    embedded = task.embed(coloured())
    for part in (embedded["image"], embedded["text"]):
        torch.testing.assert_close(part.norm(dim=1), torch.ones(9))


def test_equal_logits_cost_ln_n(folder):
    task = learner(folder)
    same = torch.nn.functional.normalize(torch.ones(256, 8), dim=1)
    loss = task.couple(pairs(same, same), keys(256)).loss.detach()
    assert float(loss) / 256 == pytest.approx(math.log(256), abs=1e-5)


def test_siglip_starts_at_its_bias(folder):
    task = learner(folder, loss="siglip")
    image, text = torch.eye(512).chunk(2)
    loss = task.couple(pairs(image, text), keys(256)).loss.detach()
    assert float(loss) / 256 == pytest.approx(10.012, abs=1e-3)
    assert float(task.scale.detach().exp()) == pytest.approx(10) and float(task.bias.detach()) == -10


def test_the_scale_starts_and_stays_where_the_paper_says(folder):
    task = learner(folder)
    assert float(task.scale.detach()) == pytest.approx(math.log(1 / 0.07))
    assert task.scale.ndim == 1  # so it is not decayed
    task.couple({name: part.detach() for name, part in task.embed(coloured()).items()}, keys(9)).loss.backward()
    assert task.scale.grad is not None
    with torch.no_grad():
        task.scale.fill_(9.0)
        task.after_step(0, 1, {})
    assert float(task.scale.detach()) == pytest.approx(math.log(100))


def test_recall_counts_both_directions(folder):
    task = learner(folder)
    image = torch.eye(8)
    text = torch.eye(8).roll(1, dims=0)
    assert set(recalls(task, pairs(image, image)).values()) == {1.0}
    found = recalls(task, pairs(image, text))
    assert found["image_to_text_recall_1"] == found["text_to_image_recall_1"] == 0


@pytest.mark.parametrize("collapsed", ["both", "image", "text"])
def test_the_recall_of_a_collapsed_encoder_is_that_of_guessing(folder, collapsed):
    image, text = (torch.nn.functional.normalize(torch.randn(2, 40, 8), dim=2)).unbind()
    image = image[:1].expand_as(image) if collapsed in ("both", "image") else image
    text = text[:1].expand_as(text) if collapsed in ("both", "text") else text
    found = recalls(learner(folder), pairs(image, text))
    assert {name: round(value, 5) for name, value in found.items()} == {
        f"{way}_recall_{k}": k / 40 for way in ("image_to_text", "text_to_image") for k in (1, 5)
    }


def test_equal_captions_are_one_target_in_both_directions(folder):
    captions = torch.arange(12) % 3
    image = torch.eye(3)[captions]
    assert set(recalls(learner(folder), pairs(image, image, captions)).values()) == {1.0}
    same = recalls(learner(folder), pairs(torch.ones(12, 3), torch.ones(12, 3), captions))
    assert same["image_to_text_recall_1"] == pytest.approx(1 / 3)
    assert same["text_to_image_recall_1"] == pytest.approx(1 / 3)


def test_captions_are_equal_if_they_are_up_to_where_they_are_read(folder):
    tokens = torch.tensor([[2, 3, EOS, 4, 4], [2, 3, EOS, 0, 0], [2, 4, EOS, 0, 0], [2, 3, 4, 0, EOS]])
    rows = {"pixels": coloured()["pixels"][:4], "tokens": torch.nn.functional.pad(tokens, (0, LENGTH - 5))}
    captions = learner(folder).embed(rows)["caption"]
    assert captions.unique(dim=0, return_inverse=True)[1].unique().numel() == 3
    assert torch.equal(captions[0], captions[1])


def test_clip_s_gradient_on_equal_captions_is_that_of_an_even_target(folder):
    captions = torch.tensor([0, 0, 0, 1, 2, 2])
    image, text = torch.randn(2, 6, 4, dtype=torch.float64).unbind()
    image, text = (torch.nn.functional.normalize(x, dim=1) for x in (image, text[captions]))
    task = learner(folder).double()
    embeddings = pairs(image.requires_grad_(), text.requires_grad_(), captions)
    ours = torch.autograd.grad(task.couple(embeddings, keys(6)).loss, (image, text))
    right = (captions[:, None] == captions).double()
    unit = [torch.nn.functional.normalize(part, dim=1) for part in (image, text)]
    logits = task.scale.exp() * unit[0] @ unit[1].T
    even = right / right.sum(1, keepdim=True)
    loss = sum(torch.nn.functional.cross_entropy(each, even, reduction="sum") for each in (logits, logits.T)) / 2
    for mine, even_target in zip(ours, torch.autograd.grad(loss, (image, text)), strict=True):
        summed = [torch.zeros(3, 4, dtype=torch.float64).index_add_(0, captions, each) for each in (mine, even_target)]
        torch.testing.assert_close(*summed)


def test_the_sigmoid_loss_calls_every_pair_of_equal_captions_right(folder):
    captions = torch.arange(12) % 3
    image = torch.eye(3)[captions]
    task = learner(folder, loss="siglip")
    with torch.no_grad():
        task.scale.fill_(math.log(60)), task.bias.fill_(-30)
    assert float(task.couple(pairs(image, image, captions), keys(12)).loss.detach()) < 1e-6
    assert float(task.couple(pairs(image, image), keys(12)).loss.detach()) > 30


def test_zero_shot_finds_the_class_from_its_prompt(folder):
    task = learner(folder, prompts=["a {} picture", "{}"])
    train(task, coloured(), 40)
    task.eval()
    with torch.no_grad():
        found = task.zero_shot(["red", "green", "blue"])(coloured())
    assert torch.equal(found, torch.arange(9) % 3)


def test_zero_shot_without_a_tokenizer_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="zero-shot prompts need it"):
        learner(tmp_path).zero_shot(["red"])


def test_examples_show_what_was_retrieved(folder):
    found = learner(folder).examples(coloured(), keys(9)).pictures
    assert found.keys() == {"retrieval", "similarity"}


def test_pictures_are_augmented_in_training_alone_and_captions_never(folder):
    task = learner(folder, augment={"crop": (0.3, 0.5)})
    rows = coloured()
    rows["pixels"] = torch.randint(0, 256, rows["pixels"].shape, dtype=torch.uint8)
    trained, evaluated = task.train().prepare(rows, keys(9)), task.eval().prepare(rows, keys(9))
    assert (trained["pixels"] * 255 - rows["pixels"]).abs().max() > 20
    assert torch.equal(evaluated["pixels"], rows["pixels"])
    assert torch.equal(trained["tokens"], rows["tokens"])
