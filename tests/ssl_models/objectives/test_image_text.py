"""CLIP and SigLIP: two encoders, the whole matrix, the text read at its end."""

import math

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.ssl_models.objectives.pictures import EOS, encoding, keys, objective, train, vit

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
    for part in task.embed(coloured()).values():
        torch.testing.assert_close(part.norm(dim=1), torch.ones(9))


def test_equal_logits_cost_ln_n(folder):
    task = learner(folder)
    same = torch.nn.functional.normalize(torch.ones(256, 8), dim=1)
    assert float(task.couple({"image": same, "text": same}, keys(256)).loss.detach()) / 256 == pytest.approx(
        math.log(256), abs=1e-5
    )


def test_siglip_starts_at_its_bias(folder):
    task = learner(folder, loss="siglip")
    image, text = torch.eye(512).chunk(2)
    assert float(task.couple({"image": image, "text": text}, keys(256)).loss.detach()) / 256 == pytest.approx(
        10.012, abs=1e-3
    )
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
    sums = task.couple({"image": image, "text": image}, keys()).sums
    assert all(float(hits) == 8 for hits, _ in sums.values())
    sums = task.couple({"image": image, "text": text}, keys()).sums
    assert float(sums["image_to_text_recall_1"][0]) == float(sums["text_to_image_recall_1"][0]) == 0


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
