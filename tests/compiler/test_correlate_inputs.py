"""The sums on a value are those of its rows, however many rounds they took; gptq compiles with them."""

import numpy as np
import pytest

from onnxforge.compiler import correlate_inputs, pipeline
from onnxforge.compiler.activations import multiplied, watched_rows
from onnxforge.compiler.calibration_data import CalibrationBatch
from onnxforge.compiler.correlate_inputs import CorrelateInputs
from onnxforge.compiler.targets import TARGETS
from onnxforge.passes import notes
from onnxforge.passes.base import PassRefused
from onnxforge.passes.input_moments import moments_of

FP32 = next(target for target in TARGETS if target.name == "cpu-fp32").passes
FUSED = FP32[: FP32.index("add-speculative-loop")]


def batches(count=2):
    rng = np.random.default_rng(3)
    mask = np.ones((2, 9), dtype=np.int64)
    mask[1, 6:] = 0
    return [CalibrationBatch(rng.integers(3, 97, mask.shape) * mask, mask) for _ in range(count)]


@pytest.fixture
def fused(tiny_export, monkeypatch):
    """``fused(family)``: a fused graph whose calibration text is two seeded batches."""
    monkeypatch.setattr(correlate_inputs, "calibration_batches", lambda *_, **__: batches())

    def make(family):
        model = tiny_export(family)
        for graph_pass in pipeline.parse(FUSED):
            graph_pass(model)
        return model

    return make


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_moments_are_sums_over_real_tokens(fused, family):
    model = fused(family)
    watched = multiplied(model.graph)
    seen = [np.concatenate(parts) for parts in zip(*watched_rows(model, watched, batches()), strict=True)]
    with notes.listen() as said:
        assert not CorrelateInputs()(model).modified
    assert len([note for note in said if note.kind is notes.NoteKind.MATCH]) == len(watched) >= 16
    assert "30 tokens for 64 channels" in next(n.reason for n in said if n.kind is notes.NoteKind.NEAR_MISS)
    for value, rows in zip(watched, seen, strict=True):
        found = moments_of(value)
        assert found.tokens == len(rows)
        np.testing.assert_allclose(
            found.matrix(), rows.T @ rows, rtol=1e-4, atol=1e-4 * np.square(rows).max()
        )
        np.testing.assert_allclose(found.powers(), np.square(rows).mean(axis=0), rtol=1e-4, atol=1e-9)


def test_rounds_that_fit_the_memory_give_the_same_sums(fused, monkeypatch):
    whole, pieces = fused("llama"), fused("llama")
    CorrelateInputs()(whole)
    rounds = []
    taken = CorrelateInputs._summed
    monkeypatch.setattr(
        CorrelateInputs, "_summed", lambda self, model, v: rounds.append(len(v)) or taken(self, model, v)
    )
    monkeypatch.setattr(correlate_inputs, "_BYTES", 4 * 2**20 / 64**2 / 5)  # a value of 64 takes 0.8 MB
    CorrelateInputs(memory_mb=2)(pieces)
    assert len(rounds) > 8
    assert max(rounds) == 2
    for one, other in zip(multiplied(whole.graph), multiplied(pieces.graph), strict=True):
        np.testing.assert_allclose(moments_of(one).matrix(), moments_of(other).matrix(), rtol=1e-3, atol=1e-3)


def test_divided_moments_are_those_of_the_divided_value(fused):
    model = fused("llama")
    CorrelateInputs()(model)
    found = moments_of(multiplied(model.graph)[0])
    scales = np.linspace(0.5, 3, len(found.products)).astype(np.float32)
    twice = found.divided(scales).divided(scales)
    np.testing.assert_allclose(twice.matrix(), found.matrix() / np.outer(scales, scales) ** 2, rtol=1e-5)
    np.testing.assert_allclose(twice.powers(), found.powers() / scales**4, rtol=1e-5)


def test_what_is_skipped_is_not_run(fused):
    model = fused("llama")
    CorrelateInputs(skip="layers.[1-9]|lm_head|embed")(model)
    measured = [value.name for value in multiplied(model.graph) if moments_of(value) is not None]
    assert len(measured) == 4


def test_a_value_that_overflows_is_refused(fused, monkeypatch):
    model = fused("llama")
    monkeypatch.setattr(
        correlate_inputs, "watched_rows", lambda m, v, b: iter([[np.full((3, 64), np.inf, "f")]])
    )
    with pytest.raises(Exception, match="NaN or infinite") as caught:
        CorrelateInputs(skip="mlp|o_proj|layers.[1-9]|lm_head|embed")(model)
    assert isinstance(caught.value.__cause__ or caught.value, PassRefused)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"samples": 0}, "sample"),
        ({"tokens": 1}, "sample"),
        ({"memory_mb": 0}, "memory"),
        ({"skip": "("}, "regular"),
    ],
)
def test_options_that_measure_nothing_are_refused(fused, options, word):
    with pytest.raises(PassRefused, match=word):
        CorrelateInputs(**options).requires(fused("llama"))


@pytest.mark.parametrize("grid", ["block_size=64", "block_size=64,symmetric=false"])  # as `cpu-int4` has it
def test_gptq_is_closer_than_rtn_through_the_whole_pipeline(fused, grid):
    source = fused("llama")
    logits = {}
    for method in ("", "rtn", "gptq"):
        model = source.clone()
        steps = ["correlate-inputs", f"quantize-weights{{bits=4,accuracy_level=0,{grid},method={method}}}"]
        for graph_pass in pipeline.parse([*(steps if method else ()), "cleanup"]):
            graph_pass(model)
        (last,) = [value for value in model.graph.outputs if value.name == "logits"]
        found = [rows for (rows,) in watched_rows(model, [last], batches())]
        logits[method] = np.concatenate(found)
    error = {name: np.linalg.norm(logits[name] - logits[""]) for name in ("rtn", "gptq")}
    assert error["gptq"] < 0.9 * error["rtn"]
