"""No look-ahead, no look across documents, no look at padding; one token at a time gives what all at once gives."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import flex_attention

from ssl_models.config import Backbone
from ssl_models.models import attention, compiler, transformer
from ssl_models.models.attention import RelativeBias, apply_rope, attention_mask, rope
from ssl_models.models.presets import PRESETS, Architecture, resolve
from ssl_models.models.transformer import (
    Stack,
    Transformer,
    document_positions,
    sine_cosine,
)

VOCABULARY, LENGTH = 61, 16
LANGUAGE = ["gpt2", "llama", "bert", "t5", "bart"]
DECODERS = ["gpt2", "llama", "t5", "bart"]
VARIANTS: list[dict[str, Any]] = [
    {"preset": "gpt2"},
    {"preset": "llama"},
    {"preset": "llama", "kv_heads": 1},
    {"preset": "llama", "mlp": "relu2", "qk_norm": True},
    {"preset": "gpt2", "positions": "sincos", "biases": False},
    {"preset": "gpt2", "positions": "relative", "norm_place": "post"},
]


def architecture(preset: str, **overrides: Any) -> Architecture:
    sizes = {"layers": 2, "width": 32, "heads": 4}
    return resolve(
        Backbone.model_validate({"preset": preset, **sizes, **overrides}), vocabulary=VOCABULARY, context=2 * LENGTH
    )


def model(preset: str, **overrides: Any) -> Transformer:
    """In float64 and with weights far from their small initial values, so that a leak would show."""
    torch.manual_seed(0)
    made = Transformer(architecture(preset, **overrides)).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


def ids(rows: int = 2, length: int = LENGTH, seed: int = 1) -> Tensor:
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def decode(made: Transformer, tokens: Tensor, **more: Any) -> Tensor:
    """Logits of a decoder; an encoder-decoder is given a fixed memory."""
    if made.architecture.structure == "encoder-decoder":
        more["memory"] = made.encode(ids(len(tokens), 5, seed=2))
    return made.logits(made.decode(tokens, **more))


def name(variant: dict[str, Any]) -> str:
    return "-".join(str(value) for value in variant.values())


@pytest.mark.parametrize("variant", [*VARIANTS, {"preset": "t5"}, {"preset": "bart"}], ids=name)
@torch.no_grad()
def test_a_token_changes_no_logit_before_it_and_every_logit_from_it_on(variant: dict[str, Any]) -> None:
    made, tokens = model(**variant), ids(1)
    before = decode(made, tokens)
    for place in (0, 7, LENGTH - 1):
        changed = tokens.clone()
        changed[0, place] = (changed[0, place] + 1) % VOCABULARY
        differs = (decode(made, changed) != before).any(dim=2)[0]
        assert not differs[:place].any()
        assert differs[place:].all()


@torch.no_grad()
def test_an_encoder_looks_both_ways() -> None:
    made, tokens = model("bert"), ids(1)
    changed = tokens.clone()
    changed[0, 7] += 1
    assert (made(changed) != made(tokens)).any(dim=2).all()


@pytest.mark.parametrize("variant", [*VARIANTS, {"preset": "bert"}], ids=name)
@torch.no_grad()
def test_packed_documents_are_computed_as_if_alone(variant: dict[str, Any]) -> None:
    made, tokens = model(**variant), ids(2)
    documents = torch.tensor([[0] * 5 + [1] + [2] * 6 + [3] * 4, [7] * 16])
    forward = made.encode if variant["preset"] == "bert" else made.decode
    packed = forward(tokens, documents=documents)
    for row, first, end in [(0, 0, 5), (0, 5, 6), (0, 6, 12), (0, 12, 16), (1, 0, 16)]:
        alone = forward(tokens[row : row + 1, first:end])
        torch.testing.assert_close(packed[row : row + 1, first:end], alone, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(packed, forward(tokens))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 1), min_size=9, max_size=9), min_size=1, max_size=3))
def test_positions_begin_anew_with_every_document(steps: list[list[int]]) -> None:
    documents = torch.tensor(steps).cumsum(1)
    for row, places in zip(documents.tolist(), document_positions(documents).tolist(), strict=True):
        assert places == [index - row.index(number) for index, number in enumerate(row)]


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_the_block_mask_of_a_gpu_shows_what_the_mask_of_a_cpu_shows() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 200, 16, generator=generator).unbind()
    documents = (torch.rand(2, 200, generator=generator) < 0.03).long().cumsum(1)
    for causal in (True, False):
        common = {"causal": causal, "device": q.device, "documents": documents}
        mask, blocks = attention_mask(200, 200, **common).mask, attention_mask(200, 200, **common, flex=True).blocks
        expected = functional.scaled_dot_product_attention(q, k, v, mask)
        torch.testing.assert_close(flex_attention(q, k, v, block_mask=blocks), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("override", [{}, {"qk_norm": True}, {"kv_heads": 1}], ids=name)
def test_packed_documents_of_a_gpu_are_one_graph_and_compute_the_same(
    override: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU runs, but for the kernels: `flex_attention` under autocast, traced whole, its gradient too."""
    monkeypatch.setattr(torch.nn.attention.flex_attention, "_validate_device", lambda *tensors: None)
    backbone = Backbone.model_validate({"preset": "llama", "layers": 1, "width": 32, "heads": 2, **override})
    model = Transformer(resolve(backbone, vocabulary=VOCABULARY, context=256))
    tokens = torch.randint(VOCABULARY, (2, 201), generator=torch.Generator().manual_seed(0))
    documents = (tokens == 3).long().cumsum(1)

    def loss() -> torch.Tensor:
        return model.logits(model.decode(tokens, documents=documents)).float().square().mean()

    found = []
    for flexible in (False, True):
        monkeypatch.setattr(transformer, "flexible", lambda x, a, flexible=flexible: flexible)
        run = torch.compile(loss, backend="aot_eager", fullgraph=True) if flexible else loss
        with torch.autocast("cpu", torch.bfloat16):
            value = run()
        gradient = torch.autograd.grad(value, model.tokens.weight)[0]
        found.append((value.detach(), gradient / gradient.norm()))
    torch.testing.assert_close(*(value for value, _ in found), rtol=2e-3, atol=0)
    assert (found[0][1] - found[1][1]).norm() < 0.01


def test_normalised_queries_and_keys_enter_flex_attention_in_the_precision_of_the_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rms_norm = functional.rms_norm  # CUDA's autocast, unlike a CPU's, computes it in float32
    monkeypatch.setattr(functional, "rms_norm", lambda x, *more: rms_norm(x.float(), *more))
    monkeypatch.setattr(transformer, "flexible", lambda x, a: True)
    entered: list[torch.dtype] = []

    def flex(q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        entered.extend((q.dtype, k.dtype, v.dtype))
        return v

    monkeypatch.setattr(attention, "_compiled_flex", lambda: flex)
    model = Transformer(architecture("llama", qk_norm=True, layers=1))
    tokens = torch.zeros(2, LENGTH, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16):
        model.decode(tokens, documents=tokens)
    assert entered == [torch.bfloat16] * 3


def test_flex_attention_is_for_gpus_that_can_compile_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGPU:
        is_cuda = True

    wide, narrow = (
        resolve(Backbone.model_validate({"preset": "gpt2", "width": 32, "heads": heads}), vocabulary=9, context=9)
        for heads in (2, 4)
    )
    monkeypatch.setattr(compiler, "lacking", lambda: None)
    assert attention.flexible(OnGPU(), wide)  # type: ignore[arg-type]
    assert not attention.flexible(OnGPU(), narrow)  # type: ignore[arg-type]
    assert not attention.flexible(torch.zeros(1), wide)
    monkeypatch.setattr(compiler, "lacking", lambda: "a C compiler")
    assert not attention.flexible(OnGPU(), wide)  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", [*VARIANTS, {"preset": "t5"}, {"preset": "bart"}], ids=name)
@pytest.mark.parametrize("steps", [[1] * LENGTH, [6, 1, 1, 5, 3], [LENGTH]], ids=["singly", "mixed", "at-once"])
@torch.no_grad()
def test_a_cache_gives_what_the_whole_row_gives(variant: dict[str, Any], steps: list[int]) -> None:
    made, tokens = model(**variant), ids()
    cache = made.cache(LENGTH)
    pieces = [decode(made, piece, cache=cache) for piece in tokens.split(steps, dim=1)]
    assert cache.length == LENGTH
    torch.testing.assert_close(torch.cat(pieces, dim=1), decode(made, tokens), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("preset", LANGUAGE)
@torch.no_grad()
def test_padding_changes_no_token(preset: str) -> None:
    made, tokens = model(preset), ids()
    padding = torch.arange(LENGTH) >= torch.tensor([LENGTH, 9])[:, None]
    other = torch.where(padding, 5, tokens)
    whole = made(tokens, tokens if made.architecture.structure == "encoder-decoder" else None, padding=padding)
    again = made(other, tokens if made.architecture.structure == "encoder-decoder" else None, padding=padding)
    if made.architecture.structure == "encoder-decoder":
        alone = made(tokens[1:, :9], tokens[1:])
        torch.testing.assert_close(whole, again, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(whole[1:], alone, rtol=1e-9, atol=1e-9)
    else:
        torch.testing.assert_close(whole[~padding], again[~padding], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(whole[1:, :9], made(tokens[1:, :9]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("preset", LANGUAGE)
def test_a_row_of_nothing_but_padding_gives_no_nan(preset: str) -> None:
    made, tokens = model(preset), ids()
    padding = torch.tensor([[True] * LENGTH, [True] * 4 + [False] * (LENGTH - 4)])
    logits = made(tokens, tokens if made.architecture.structure == "encoder-decoder" else None, padding=padding)
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in made.parameters() if p.grad is not None)


@pytest.mark.parametrize("preset", LANGUAGE)
@pytest.mark.parametrize("width", [64, 192])
def test_the_first_loss_is_that_of_guessing(preset: str, width: int) -> None:
    torch.manual_seed(0)
    made = Transformer(architecture(preset, width=width, vocabulary=2000))
    tokens, targets = ids(4), torch.randint(0, 2000, (4, LENGTH))
    logits = made(tokens, tokens if made.architecture.structure == "encoder-decoder" else None)
    loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).item()
    assert loss == pytest.approx(math.log(2000), abs=0.08)


@pytest.mark.parametrize("variant", [*VARIANTS, *({"preset": preset} for preset in LANGUAGE)], ids=name)
def test_gradient_reaches_every_parameter(variant: dict[str, Any]) -> None:
    torch.manual_seed(0)
    made = Transformer(architecture(**variant))
    tokens = ids(4, 2 * LENGTH)
    logits = made(tokens, tokens.flip(1) if made.architecture.structure == "encoder-decoder" else None)
    functional.cross_entropy(logits.flatten(0, 1), ids(4, 2 * LENGTH, seed=3).flatten()).backward()
    starved = [key for key, value in made.named_parameters() if value.grad is None or not value.grad.any()]
    assert starved == []


@torch.no_grad()
def test_grouped_queries_are_full_heads_whose_keys_and_values_are_repeated() -> None:
    grouped, full = model("llama", kv_heads=2), model("llama", kv_heads=4)
    state = grouped.state_dict()
    for key in [key for key in state if key.endswith("attention.qkv.weight")]:
        queries, keys, values = state[key].split([32, 16, 16])
        twice = [part.view(2, 8, 32).repeat_interleave(2, dim=0).flatten(0, 1) for part in (keys, values)]
        state[key] = torch.cat([queries, *twice])
    full.load_state_dict(state)
    torch.testing.assert_close(grouped(ids()), full(ids()), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_rotary_scores_depend_on_distance_alone_and_pair_halves() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64).unbind()
    angles = [rope(torch.tensor([[place]]), 8, 10_000.0) for place in (3, 10, 13, 20)]
    near = (apply_rope(q, angles[0]) * apply_rope(k, angles[1])).sum()
    far = (apply_rope(q, angles[2]) * apply_rope(k, angles[3])).sum()
    assert near == pytest.approx(far.item(), abs=1e-5)
    one = torch.zeros(1, 1, 1, 8)
    one[..., 1] = 1.0
    moved = apply_rope(one, angles[0])[0, 0, 0]
    assert moved.nonzero().flatten().tolist() == [1, 5]


def test_distances_fall_into_the_buckets_of_t5() -> None:
    """Golden: the paper's 32 buckets up to 128, half of them exact, of T5's own code."""
    both = RelativeBias(architecture("t5"), causal=False)
    distance = torch.tensor([0, 1, -1, 7, -7, 8, -8, 15, 16, -64, 127, 128, 5000])
    assert both.buckets(distance).tolist() == [0, 17, 1, 23, 7, 24, 8, 25, 26, 14, 31, 31, 31]
    back = RelativeBias(architecture("t5"), causal=True)
    assert back.buckets(torch.tensor([5, 0, -1, -15, -16, -20, -127, -128])).tolist() == [0, 0, 1, 15, 16, 17, 31, 31]


def test_cross_attention_has_no_position_bias_and_stacks_share_one_table_each() -> None:
    names = [key for key, _ in Transformer(architecture("t5", layers=3)).named_parameters() if "bias" in key]
    assert names == ["encoder.bias.table.weight", "decoder.bias.table.weight"]


def test_sine_cosine_positions_are_those_of_the_paper() -> None:
    found = sine_cosine(torch.tensor([3]), 8)[0]
    expected = [math.sin(3 / 10_000 ** (i / 4)) for i in range(4)] + [math.cos(3 / 10_000 ** (i / 4)) for i in range(4)]
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("preset", DECODERS)
@torch.no_grad()
def test_a_trace_holds_the_input_and_every_block(preset: str) -> None:
    made, trace = model(preset, decoder_layers=3) if preset in ("t5", "bart") else model(preset, layers=3), []
    memory = made.encode(ids(), trace=[]) if preset in ("t5", "bart") else None
    hidden = made.decode(ids(), memory=memory, trace=trace)
    assert len(trace) == 4
    assert trace[-1] is hidden
    assert {tuple(value.shape) for value in trace} == {(2, LENGTH, 32)}


@torch.no_grad()
def test_a_stack_takes_pictures_and_a_bias_per_block() -> None:
    torch.manual_seed(0)
    stack = Stack(architecture("beit", patch=4)).eval()
    patches = torch.randn(2, 9, 32)
    biases = [torch.zeros(1, 4, 9, 9) for _ in stack.blocks]
    torch.testing.assert_close(stack(patches, biases=biases), stack(patches))
    biases[1][..., 3] = -torch.inf
    hidden = stack(patches, biases=biases)
    assert not torch.allclose(hidden, stack(patches))
    assert stack.blocks[0].mlp_residual.scale.factor.tolist() == pytest.approx([0.1] * 32)


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset not in LANGUAGE])
def test_every_preset_of_pictures_builds_a_stack(preset: str) -> None:
    stack = Stack(architecture(preset, patch=4))
    stack(torch.randn(2, 5, 32)).sum().backward()
    assert all(value.grad is not None for value in stack.parameters())


def test_residual_projections_of_gpt2_begin_smaller_with_depth() -> None:
    torch.manual_seed(0)
    made = Transformer(architecture("gpt2", layers=8, width=128))
    block = made.decoder.blocks[3]
    assert block.attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.attention.out.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert block.mlp.down.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)


def test_dropout_is_off_in_evaluation() -> None:
    made = model("gpt2", dropout=0.5)
    torch.testing.assert_close(made(ids()), made(ids()))
    made.train()
    assert not torch.allclose(made(ids()), made(ids()))


def test_more_tokens_than_learned_positions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^context: 33 tokens do not fit into 32 learned positions$"):
        model("gpt2")(ids(1, 33))
    assert model("llama")(ids(1, 33)).shape == (1, 33, VOCABULARY)
