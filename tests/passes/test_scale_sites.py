"""Scales fold at every form of every family, through the passes that a target runs before."""

import numpy as np
import pytest
from attention_runs import worst_decoder_difference, worst_encoder_difference

from onnxforge.passes import notes
from onnxforge.passes.activation_range import ActivationRange, annotate, range_of
from onnxforge.passes.cache_range import annotate_cache
from onnxforge.passes.canonicalize import Canonicalize
from onnxforge.passes.constants import extents
from onnxforge.passes.fold_scales import FoldScales
from onnxforge.passes.fuse_activation import FuseActivation
from onnxforge.passes.fuse_attention import FuseAttention
from onnxforge.passes.fuse_norm import FuseNorm
from onnxforge.passes.fuse_rotary import FuseRotary
from onnxforge.passes.input_moments import InputMoments, leave_moments, moments_of
from onnxforge.passes.matching import is_op
from onnxforge.passes.pack_qkv import PackQkv
from onnxforge.passes.scale_sites import find_site, fold, multiplied_values, objection
from onnxforge.passes.search_scales import SearchScales

FUSE = (
    Canonicalize(), FuseNorm(), FuseRotary(),
    FuseAttention(decoder="GroupQueryAttention", encoder="MultiHeadAttention"),
    PackQkv(), FuseActivation(),
)  # fmt: skip
FORMS = {
    "norms": {"norms": True, "up_down": False, "values": False},
    "up_down": {"norms": False, "up_down": True, "values": False},
    "values": {"norms": False, "up_down": False, "values": True},
}


def fused(model):
    for step in FUSE:
        step(model)
    return model


def measured(model, seed=0):
    """Leave ranges and moments of made-up rows, channels of very different size, on what is multiplied."""
    rng = np.random.default_rng(seed)
    for value in multiplied_values(model.graph):
        reader = next(use.node for use in value.uses() if is_op(use.node, "MatMul"))
        width = extents(reader.inputs[1].const_value)[0]
        rows = (rng.normal(size=(90, width)) * np.exp(rng.normal(size=width) * 1.5)).astype(np.float32)
        annotate(value, ActivationRange(rows.min(axis=0), rows.max(axis=0), 1.0))
        leave_moments(value, InputMoments(rows.T @ rows, len(rows)))
    return model


def sites(model, **forms):
    return [
        site for value in multiplied_values(model.graph) if (site := find_site(value, **forms)) is not None
    ]


# Norms in front of matrices, gated products, attentions. A tied head takes no scales: its norm is no site.
EXPECTED = {
    "llama": (10, 5, 5),
    "qwen2": (10, 5, 5),
    "gemma2": (10, 5, 5),
    "gemma3_text": (10, 5, 5),
    "gpt2": (10, 0, 5),
    "phi": (5, 0, 5),
    "bert": (0, 0, 4),
}


@pytest.mark.parametrize("family", EXPECTED)
def test_every_form_is_found_and_folds_exactly(tiny_export, family):
    before = fused(tiny_export(family))
    found = tuple(
        len([site for site in sites(before, **FORMS[form]) if objection(site) is None]) for form in FORMS
    )
    head = any("lm_head" in site.readers[0].name for site in sites(before, **FORMS["norms"]))
    assert found == (EXPECTED[family][0] + head, *EXPECTED[family][1:])
    for step in (FoldScales(values=True), SearchScales(block_size=16)):
        after = measured(before.clone())
        with notes.listen() as said:
            assert step(after).modified
        assert len([note for note in said if note.kind is notes.NoteKind.MATCH]) >= 0.8 * sum(found)
        differs = worst_encoder_difference if family == "bert" else worst_decoder_difference
        assert differs(before, after, 97) < 1e-5 * (5 if family == "bert" else 1)


def test_one_channel_of_values_serves_all_query_heads_of_its_group(tiny_export):
    model = measured(fused(tiny_export("llama")))
    site = sites(model, **FORMS["values"])[0]
    assert site.heads == (2, 2)
    scales = np.arange(1, site.channels() + 1, dtype=np.float32)
    spread = site.spread(scales).reshape(2, 2, -1)
    np.testing.assert_array_equal(spread[:, 0], spread[:, 1])
    np.testing.assert_array_equal(spread[:, 0].ravel(), scales)
    numbers = np.arange(2 * site.channels(), dtype=np.float32)
    np.testing.assert_array_equal(site.largest(numbers), numbers.reshape(2, 2, -1)[:, 1].ravel())
    weight = site.made_by[-1][0].inputs[1].const_value.numpy()
    fold(model.graph, site, scales)
    packed = site.made_by[-1][0].inputs[1].const_value.numpy()
    kept = weight.shape[1] - len(scales)
    np.testing.assert_array_equal(packed[:, :kept], weight[:, :kept])
    np.testing.assert_allclose(packed[:, kept:], weight[:, kept:] / scales, rtol=1e-6)


def test_what_was_measured_stays_true(tiny_export):
    model = measured(fused(tiny_export("llama")))
    for site in sites(model, norms=True, up_down=True, values=True):
        moments, largest = moments_of(site.value).matrix(), range_of(site.value).largest
        scales = np.linspace(0.5, 4, site.channels()).astype(np.float32)
        fold(model.graph, site, scales)
        spread = site.spread(scales)
        np.testing.assert_allclose(range_of(site.value).largest, largest / spread, rtol=1e-5)
        np.testing.assert_allclose(
            moments_of(site.value).matrix(), moments / np.outer(spread, spread), rtol=1e-4
        )


def test_values_whose_cache_was_measured_keep_their_size(tiny_export):
    model = measured(fused(tiny_export("llama")))
    site = sites(model, **FORMS["values"])[0]
    annotate_cache(site.value.producer().outputs[2], np.ones((2, 16), np.float32))
    assert "calibrate-cache" in objection(site)


def test_smoothing_norms_twice_is_smoothing_them_once(tiny_export):
    model = measured(fused(tiny_export("llama")))
    step = FoldScales(up_down=False)
    step(model)
    once = {s.value.name: [t.numpy() for t in s.matrices()] for s in sites(model, **FORMS["norms"])}
    step(model)
    for site in sites(model, **FORMS["norms"]):
        for first, second in zip(once[site.value.name], site.matrices(), strict=True):
            np.testing.assert_allclose(second.numpy(), first, rtol=1e-3, atol=1e-5)
