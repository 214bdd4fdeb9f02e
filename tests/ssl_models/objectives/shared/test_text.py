import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_models.objectives.shared.text import compact, compared, content, fenced, shifted, spanned
from tests.ssl_models import texts

ROWS = st.integers(1, 12).flatmap(
    lambda width: st.lists(
        st.lists(st.tuples(st.integers(1, 99), st.booleans()), min_size=width, max_size=width), min_size=1, max_size=4
    )
)


@given(ROWS, st.integers(1, 14))
def test_compact_keeps_the_order_and_drops_what_does_not_fit(rows, width):
    pairs = torch.tensor([[[value, kept] for value, kept in row] for row in rows])
    found = compact(pairs[..., 0], pairs[..., 1].bool(), width, 0)
    expected = [[value for value, kept in row if kept][:width] for row in rows]
    assert found.tolist() == [row + [0] * (width - len(row)) for row in expected]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=5))
def test_spans_cover_their_places_and_no_others(gaps):
    place, spans = 0, []
    for gap, length in gaps:
        spans.append((place + gap, length))
        place += gap + length
    starts, lengths = torch.tensor([spans]).unbind(-1)
    covered = {place for start, length in spans for place in range(start, start + length)}
    assert spanned(starts, lengths, 40)[0].tolist() == [place in covered for place in range(40)]


def test_padding_is_the_run_at_the_end():
    encoding = texts.plain()
    rows = torch.tensor([[9, 0, 9, 2, 0, 0], [0, 0, 0, 0, 0, 0], [9, 9, 9, 9, 9, 9]])
    assert content(rows, encoding).sum(1).tolist() == [4, 0, 6]


def test_where_pad_is_eos_the_first_of_the_run_is_the_document_s_own():
    encoding = texts.plain(pad=2)
    rows = torch.tensor([[9, 2, 9, 2, 2, 2], [9, 9, 9, 9, 9, 2], [9, 9, 9, 9, 9, 9]])
    assert content(rows, encoding).sum(1).tolist() == [4, 6, 6]


def test_shifted_moves_one_place_to_the_right():
    assert shifted(torch.tensor([[1, 2, 3]]), 7).tolist() == [[7, 1, 2]]


def test_texts_for_a_reviewer_cannot_break_out_of_their_block():
    hostile = "```\n# no heading\n<script>"
    shown = compared("Row", {"original": hostile})
    assert fenced(hostile) in shown
    assert all(line.startswith("    ") for line in fenced(hostile).splitlines())


def test_deep_models_are_swept_at_even_distances():
    objective = texts.build("masked_language", texts.plain(), backbone={"layers": 24, "width": 8, "heads": 2}).eval()
    with torch.no_grad():
        found = objective.features({"tokens": texts.random_rows(objective.encoding, 1)})
    assert list(found) == ["cls", "mean", *(f"layer{layer}.mean" for layer in (4, 8, 12, 16, 20))]
