"""Attention of every family and every era becomes the target's operator, and computes the same."""

from pathlib import Path

import onnx_ir as ir
import pytest
from attention_runs import worst_decoder_difference, worst_encoder_difference

from onnxforge.passes import notes
from onnxforge.passes.base import PassRefused
from onnxforge.passes.canonicalize import Canonicalize
from onnxforge.passes.fuse_attention import FuseAttention
from onnxforge.passes.fuse_norm import FuseNorm
from onnxforge.passes.fuse_rotary import FuseRotary
from onnxforge.passes.notes import NoteKind

FIXTURES = Path(__file__).parent / "fixtures"
VOCAB = 97
OLD_VOCAB = 61
CLOSE = 1e-5
"""Difference of logits relative to the largest logit; what was measured is below 5e-6."""


def count(model: ir.Model, *op_types: str) -> int:
    return sum(node.op_type in op_types for node in model.graph)


def fused(model: ir.Model, *, prepared: bool = True) -> tuple[ir.Model, list[notes.Note]]:
    after = model.clone()
    for step in (Canonicalize(), FuseNorm(), FuseRotary(max_positions=64)) if prepared else ():
        step(after)
    with notes.listen() as said:
        changed = FuseAttention()(after).modified
    assert changed == any(note.kind is NoteKind.MATCH for note in said)
    assert not FuseAttention()(after).modified, "a second time changes nothing"
    return after, said


def inputs(model: ir.Model) -> list[str]:
    return [value.name for value in model.graph.inputs]


def near_misses(said: list[notes.Note]) -> list[str]:
    return [note.reason for note in said if note.kind is NoteKind.NEAR_MISS]


SMALL_ROTATION = {"phi", "stablelm", "gpt_neox"}
"""They rotate 8 numbers of each head, which the kernel does not."""


def check_decoder(before: ir.Model, *, rotated_outside: bool = False, positions: bool = False) -> None:
    layers = count(before, "Attention")
    after, said = fused(before)
    assert {note.what for note in said if note.kind is NoteKind.NEAR_MISS} == (
        {"do_rotary"} if rotated_outside else set()
    )
    assert count(after, "Attention", "Softmax") == 0
    assert count(after, "RotaryEmbedding") == (2 * layers if rotated_outside else 0)
    assert count(after, "GroupQueryAttention") == layers
    assert after.metadata_props["onnxforge.shared_cache"] == "true"
    assert ("position_ids" in inputs(after)) == (rotated_outside or positions)
    assert worst_decoder_difference(before, after, VOCAB) < CLOSE


@pytest.mark.parametrize(
    "family",
    [
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma",
        "gemma2",
        "gemma3_text",
        "phi",
        "phi3",
        "olmo2",
        "granite",
        "smollm3",
        "gpt2",
        "stablelm",
        "starcoder2",
        "cohere",
        "exaone4",
        "opt",
        "gpt_neox",
    ],
)
def test_decoder_families(tiny_export, family):
    check_decoder(
        tiny_export(family),
        rotated_outside=family in SMALL_ROTATION,
        positions=family in ("gpt2", "opt"),
    )


@pytest.mark.slow
@pytest.mark.parametrize(("family", "width"), [("phi", 128), ("stablelm", 128), ("gpt_neox", 128)])
def test_part_of_a_head_is_rotated_inside(tiny_export, family, width):
    check_decoder(tiny_export(family, hidden_size=width))


def test_windows_reach_the_operator(tiny_export):
    after, _ = fused(tiny_export("gemma3_text"))
    windows = [
        node.attributes.get_int("local_window_size", -1)
        for node in after.graph
        if node.op_type == "GroupQueryAttention"
    ]
    assert windows == [4, 4, -1, 4, 4]


@pytest.mark.parametrize(
    "family", ["bert", "roberta", "distilbert", "mpnet", "electra", "xlm-roberta", "modernbert"]
)
def test_encoder_families(tiny_export, family):
    before = tiny_export(family)
    layers = count(before, "Attention")
    after, said = fused(before)
    assert near_misses(said) == []
    assert count(after, "Attention") == 0
    assert count(after, "MultiHeadAttention") == layers
    assert "onnxforge.shared_cache" not in after.metadata_props
    assert worst_encoder_difference(before, after, VOCAB) < CLOSE


@pytest.mark.parametrize("prepared", [True, False], ids=["canonical", "as exported"])
@pytest.mark.parametrize("name", ["llama_sdpa", "llama_eager", "gemma2_eager"])
def test_decoders_of_the_torchscript_era(name: str, prepared: bool):
    before = ir.load(FIXTURES / f"{name}.onnx")
    after, said = fused(before, prepared=prepared)
    assert near_misses(said) == []
    assert count(after, "Softmax") == 0
    assert count(after, "GroupQueryAttention") == 2
    assert after.metadata_props["onnxforge.shared_cache"] == "true"
    # Without FuseRotary before it the rotation stays outside the operator, and needs its positions.
    assert ("position_ids" in inputs(after)) == (not prepared)
    assert worst_decoder_difference(before, after, OLD_VOCAB) < CLOSE


@pytest.mark.parametrize("prepared", [True, False], ids=["canonical", "as exported"])
@pytest.mark.parametrize("name", ["bert_eager", "mpnet"])
def test_encoders_of_the_torchscript_era(name: str, prepared: bool):
    before = ir.load(FIXTURES / f"{name}.onnx")
    after, said = fused(before, prepared=prepared)
    assert near_misses(said) == []
    assert count(after, "Softmax") == 0
    assert count(after, "MultiHeadAttention") == 2
    assert worst_encoder_difference(before, after, OLD_VOCAB) < CLOSE


@pytest.mark.parametrize("name", ["llama_sdpa", "gemma2_eager", "bert_eager", "mpnet"])
def test_written_out_forms_become_the_standard_operator(name: str):
    """Opset 23, the mask and the cache as they are."""
    before = ir.load(FIXTURES / f"{name}.onnx")
    after = before.clone()
    Canonicalize()(after)
    fuse = FuseAttention(decoder="Attention", encoder="Attention")
    assert fuse(after).modified
    assert not fuse(after).modified
    assert count(after, "Softmax") == 0
    assert count(after, "Attention") == 2
    if name in ("bert_eager", "mpnet"):
        worst = worst_encoder_difference(before, after, OLD_VOCAB)
    else:
        # The window of gemma2 counts slots, holes included, until GroupQueryAttention counts tokens instead.
        worst = worst_decoder_difference(before, after, OLD_VOCAB, ragged=name != "gemma2_eager")
    assert worst < CLOSE


def test_the_soft_cap_of_written_out_scores_is_found():
    after, _ = fused(ir.load(FIXTURES / "gemma2_eager.onnx"))
    nodes = [node for node in after.graph if node.op_type == "GroupQueryAttention"]
    assert [node.attributes.get_float("softcap") for node in nodes] == [5.0, 5.0]
    assert [node.attributes.get_float("scale") for node in nodes] == pytest.approx([24**-0.5] * 2)
    assert [node.attributes.get_int("local_window_size", -1) for node in nodes] == [4, -1]


def test_heads_the_kernel_does_not_take_stay_as_they_are(tiny_export):
    """Heads of 12 numbers: a near-miss with the reason, and not one node changed."""
    before = tiny_export("gpt2", n_embd=48, n_layer=1)
    after = before.clone()
    with notes.listen() as said:
        assert not FuseAttention()(after).modified
    assert "heads of 12 numbers" in near_misses(said)[0]
    assert [node.op_type for node in after.graph] == [node.op_type for node in before.graph]
    assert "onnxforge.shared_cache" not in after.metadata_props


def test_a_mask_that_is_not_causal_is_not_fused():
    """The same llama, but every token sees the first three slots: a prefix model."""
    model = ir.load(FIXTURES / "llama_sdpa.onnx")
    opened = 0
    for node in tuple(model.graph):
        if node.op_type == "Softmax":
            scores = node.inputs[0].producer()
            mask = scores.inputs[1]
            zero = ir.Node("", "Constant", (), [ir.AttrFloat32("value_float", 0.0)])
            least = ir.Node("", "Constant", (), [ir.AttrFloat32("value_float", -3.0)])
            wider = ir.Node("", "Max", (mask, least.outputs[0]))
            model.graph.insert_before(scores, (zero, least, wider))
            scores.replace_input_with(1, wider.outputs[0])
            opened += 1
    assert opened == 2
    with notes.listen() as said:
        assert not FuseAttention()(model).modified
    assert all("adds a bias" in reason for reason in near_misses(said))
    assert len(said) == 2


def test_one_unfused_layer_means_no_shared_cache():
    model = ir.load(FIXTURES / "llama_sdpa.onnx")
    softmax = next(node for node in model.graph if node.op_type == "Softmax")
    softmax.attributes["axis"] = ir.AttrInt64("axis", 2)
    with notes.listen() as said:
        assert FuseAttention()(model).modified
    assert near_misses(said) == ["Softmax does not run over the keys"]
    assert count(model, "GroupQueryAttention") == 1
    assert "onnxforge.shared_cache" not in model.metadata_props


def test_an_operator_that_cannot_be_written_is_refused():
    model = ir.load(FIXTURES / "bert_eager.onnx")
    with pytest.raises(ir.passes.PreconditionError) as refusal:
        FuseAttention(decoder="PagedAttention")(model)
    assert isinstance(refusal.value.__cause__, PassRefused)
    assert "decoder='PagedAttention' is not one of" in str(refusal.value.__cause__)


def test_none_leaves_the_graph_alone():
    model = ir.load(FIXTURES / "bert_eager.onnx")
    assert not FuseAttention(encoder="none")(model).modified
    assert FuseAttention(encoder="none").text() == "fuse-attention{encoder=none}"
