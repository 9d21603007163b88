"""A caption as one position: the fast path of text-conditional LlamaGen against all positions with their masks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avarc_cli.layers.dropout import set_dropout, set_rows
from avarc_cli.layers.rows import Rows
from avarc_cli.models.llamagen_t2i import reference
from avarc_cli.models.llamagen_t2i.config import NULL, CaptionLlamaGenConfig
from avarc_cli.models.llamagen_t2i.likelihood import CaptionLlamaGenLikelihood
from avarc_cli.models.llamagen_t2i.network import CaptionLlamaGen, Prefix
from avarc_cli.text.features import CaptionFeatures

WIDTH, HEADS, VOCABULARY, CAPTION_WIDTH = 32, 4, 11, 6


def random_model(kv_heads, side, positions, seed=0):
    generator = torch.Generator().manual_seed(seed)
    config = CaptionLlamaGenConfig(
        depth=3,
        width=WIDTH,
        heads=HEADS,
        kv_heads=kv_heads,
        ffn=48,
        num_classes=0,
        vocab_size=VOCABULARY,
        side=side,
        caption_width=CAPTION_WIDTH,
        positions=positions,
    )
    network = CaptionLlamaGen(config).eval().requires_grad_(False)
    for tensor in network.state_dict().values():
        scale = 1.5 * tensor.shape[-1] ** -0.5 if tensor.ndim == 2 else 0.1
        noise = scale * torch.randn(tensor.shape, generator=generator)
        tensor.copy_(noise if tensor.ndim == 2 else 1 + noise)
    return CaptionLlamaGenLikelihood(network)


def random_captions(lengths, positions, seed):
    """Features whose padding is large numbers: none may count."""
    generator = torch.Generator().manual_seed(seed)
    sequence = torch.randn(len(lengths), positions, CAPTION_WIDTH, generator=generator)
    for row, length in enumerate(lengths):
        sequence[row, length:] = 1e4
    names = tuple(map(str, range(len(lengths))))
    return CaptionFeatures(captions=names, sequence_RTD=sequence, length_R=torch.tensor(lengths))


def all_positions(model, tokens_BL, captions):
    """log p (B, R + 1, L) in float64 by the plain implementation; the last column is the null caption's."""
    w, positions = {key: tensor.double() for key, tensor in model.gpt.state_dict().items()}, model.config.positions
    padded = reference.padded_left(captions.sequence_RTD.double(), captions.length_R, positions)
    features = torch.cat([padded, w[NULL][None]])
    lengths = torch.cat([captions.length_R, captions.length_R.max()[None]])
    rows = [reference.token_log_probs(w, tokens, features, lengths, heads=HEADS) for tokens in tokens_BL]
    return torch.stack(rows)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=20),
    spare=st.integers(0, 3),
    kv_heads=st.sampled_from([1, 2, 4]),
    side=st.integers(1, 4),
    stops=st.sets(st.integers(1, 4)),
    seed=st.integers(0, 1000),
)
def test_any_captions_score_as_with_all_their_positions(lengths, spare, kv_heads, side, stops, seed):
    model = random_model(kv_heads, side, positions=7)
    captions = random_captions(lengths, max(lengths) + spare, seed)
    tokens_BL = torch.randint(VOCABULARY, (2, side * side), generator=torch.Generator().manual_seed(seed))
    ready, count = model.with_captions(captions), len(lengths) + 1
    state = ready.begin(tokens_BL, torch.arange(2).repeat_interleave(count), torch.arange(count).repeat(2))
    parts = [ready.extend(state, stop, keep_cache_segments=stop) for stop in sorted({*stops, side}) if stop <= side]
    ours = torch.cat(parts, dim=1).view(2, count, -1)
    assert (ours - all_positions(model, tokens_BL, captions)).abs().max() < 1e-4


def test_a_caption_does_not_depend_on_the_others():
    model, lengths = random_model(2, 2, positions=9), [1 + i % 9 for i in range(20)]  # more than are evaluated at once
    captions = random_captions(lengths, 9, seed=1)
    together = model.with_captions(captions).captions
    for row in (0, 8, 19):
        alone = model.gpt.prefix(captions.sequence_RTD[[row]], captions.length_R[[row]])
        assert all(torch.allclose(a[row], b[0], atol=1e-5) for a, b in zip(together, alone, strict=True))


def test_the_null_caption_is_cut_on_the_left():
    model = random_model(4, 2, positions=5)
    null = model.gpt.cls_embedding.uncond_embedding
    cut = model.gpt.null_features(torch.tensor([2, 5, 3]))
    assert torch.equal(cut[0, :2], null[3:]) and torch.equal(cut[1], null) and torch.equal(cut[2, :3], null[2:])


@pytest.mark.parametrize("cached", [0, 3])
def test_scores_are_changed_for_the_caption_and_for_later_positions_only(cached):
    model = random_model(4, 3, positions=4)
    bias = model.gpt._bias(torch.tensor([1, 4]), new=2, total=cached + 3)
    assert bias.shape == (2, 1, 2, cached + 3) and torch.equal(bias[:, 0, 0, 0], torch.tensor([1.0, 4.0]).log())
    assert not bias[:, 0, 1, 1:].any() and bias[:, 0, 0, -1].isinf().all() and not bias[:, 0, 0, 1:-1].any()


def test_gradients_flow_through_captions_and_images():
    model = random_model(2, 2, positions=4)
    model.gpt.requires_grad_(True)
    tokens, features = torch.randint(VOCABULARY, (2, 4)), torch.randn(2, 4, CAPTION_WIDTH)
    with torch.no_grad():
        plain = model.caption_log_prob(tokens, features, torch.tensor([4, 2]))
    ours = model.caption_log_prob(tokens, features, torch.tensor([4, 2]))
    ours.mean().backward()
    assert torch.equal(plain, ours) and model.gpt.cls_embedding.cap_proj.fc1.weight.grad.any()


def test_rows_of_captions_are_taken_together():
    length, mean, hidden = torch.tensor([1, 2]), torch.rand(2, 3, 4, 8), torch.rand(2, 32)
    taken = Prefix(length, mean, hidden).rows(torch.tensor([1, 0, 1]))
    assert taken.length_R.tolist() == [2, 1, 2] and torch.equal(taken.mean_RNGD[1], mean[0])


def test_captions_are_dropped_in_the_same_places_in_any_parts_of_a_batch():
    gpt = random_model(HEADS, 3, 9).gpt.train()
    captions = random_captions([3, 9, 5, 2, 7] * 4, 9, 0)
    set_dropout(gpt, 0.3)

    def prefix(rows):
        set_rows(gpt, rows)
        torch.manual_seed(1)
        length = rows.take(captions.length_R)
        return gpt.prefix(rows.take(captions.sequence_RTD)[:, : length.max()], length)

    whole, parts = prefix(Rows.whole(20)), map(prefix, Rows.whole(20).split(6))
    for one, several in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.allclose(one.float(), torch.cat(several).float(), atol=1e-5)
