"""What drafts leave out is found by measuring: what adds nothing goes first, and equal models choose
alike."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxforge.compiler import pipeline
from onnxforge.compiler.calibration_data import attach
from onnxforge.compiler.search_skipped import SearchSkipped
from onnxforge.compiler.skipping_session import SkippingSession, skipping_session
from onnxforge.compiler.targets import TARGETS
from onnxforge.passes import notes
from onnxforge.passes.base import PassRefused
from onnxforge.passes.residual_branches import residual_branches
from onnxforge.passes.skip_layers import CHOSEN, LAYER_SKIP, SKIP, SkipLayers

FP32 = next(target for target in TARGETS if target.name == "cpu-fp32").passes
FUSED = FP32[: FP32.index("add-speculative-loop")]
BLUNT = (3, 6)
"""The MLP of the second layer, the attention of the fourth."""
QUICK = SearchSkipped(tokens=24, samples=2, alone=8, together=12)


@pytest.fixture
def fused(tiny_export, tiny_source) -> Callable[[], ir.Model]:
    """A tiny fused decoder of ten branches, two of which add nothing."""

    def make() -> ir.Model:
        model = tiny_export("llama")
        for part in ("1.mlp.down_proj", "3.self_attn.o_proj"):
            weight = model.graph.initializers[f"model.layers.{part}.weight"]
            weight.const_value = ir.tensor(np.zeros_like(weight.const_value.numpy()), name=weight.name)
        for graph_pass in pipeline.parse(FUSED):
            graph_pass(model)
        attach(model, tiny_source("llama"))
        return model

    return make


def searched(model: ir.Model, step: SearchSkipped = QUICK) -> list[notes.Note]:
    step.requires(model)
    with notes.listen() as seen:
        step(model)
    return [note for note in seen if note.what == LAYER_SKIP]


def test_branches_that_add_nothing_are_left_out(fused):
    model = fused()
    found = searched(model)
    (chosen,) = [note for note in found if note.reason == CHOSEN]
    branches = chosen.where.split(":")[0]
    assert {str(number) for number in BLUNT} <= set(branches.split("+"))
    assert chosen.value == pytest.approx(1.0, abs=0.2)
    derived = SkipLayers()(model).model
    told = SkipLayers(branches=branches)(model).model
    assert any(value.name == SKIP for value in derived.graph.inputs)
    assert ir.to_proto(derived).SerializeToString() == ir.to_proto(told).SerializeToString()


def test_equal_models_choose_alike(fused):
    assert searched(fused()) == searched(fused())


def test_agreement_is_that_of_a_model_without_the_branches(fused):
    """Over the whole model's cache: each guess alone, none of which is seen by another."""
    model = fused()
    ids = np.random.default_rng(2).integers(3, 97, 20)
    numbers = range(len(residual_branches(model.graph)))
    with skipping_session(model, None) as (graph, switches):
        assert switches == len(numbers)
        text = SkippingSession(graph, switches, ids)
        assert text.agreement((), range(20)) == 1.0
        assert text.agreement(BLUNT, range(20)) == 1.0
        first = [text.agreement((number,), range(20)) for number in numbers]
        assert min(first) < 1.0
        assert first == [text.agreement((number,), range(20)) for number in numbers]
        assert text.agreement((), range(20)) == 1.0, "a guess leaves nothing behind"


@pytest.mark.parametrize(
    "step", [SearchSkipped(alone=0), SearchSkipped(together=999), SearchSkipped(samples=0)], ids=str
)
def test_numbers_out_of_range(fused, step):
    with pytest.raises(PassRefused, match="needs 1 sample"):
        step.requires(fused())


def test_an_encoder_does_not_draft(tiny_export):
    with pytest.raises(PassRefused, match="only a decoder drafts"):
        QUICK.requires(tiny_export("bert"))
