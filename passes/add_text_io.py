"""One graph from text to text: the tokenizer before the loop that generates, and behind it."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onnxforge.passes import notes
from onnxforge.passes.add_speculative_loop import AddSpeculativeLoop
from onnxforge.passes.base import DerivingPass, PassRefused
from onnxforge.passes.graph_text import splice
from onnxforge.passes.text_graph import detokenize, tokenize
from onnxforge.passes.text_rules import rules_of

WHAT = "text in, text out"
_DOMAINS = {"ai.onnx.ml": 4, "com.microsoft": 1}

_AROUND = """
around (int64[n] ids, bool add_special_tokens, int64[b] before, int64[a] after)
    => (int64[1,S] input_ids, int64[1] length)
{
  zero = Constant<value_ints=[0]>()
  scalar = Constant<value_ints=[1]>()
  flag = Reshape(add_special_tokens, scalar)
  wanted = Cast<to=7>(flag)
  all_before = Shape(before)
  all_after = Shape(after)
  count_before = Mul(all_before, wanted)
  count_after = Mul(all_after, wanted)
  used_before = Slice(before, zero, count_before)
  used_after = Slice(after, zero, count_after)
  prompt = Concat<axis=0>(used_before, ids, used_after)
  length = Shape(prompt)
  input_ids = Unsqueeze(prompt, zero)
}
"""
_ANSWER = """
answer (int64[1,N] sequences, int64[1] length) => (int64[a] ids)
{
  zero = Constant<value_ints=[0]>()
  end = Constant<value_ints=[9223372036854775807]>()
  all = Squeeze(sequences, zero)
  ids = Slice(all, length, end)
}
"""


@dataclass(frozen=True)
class AddTextIo(DerivingPass):
    """Derive a model that reads and writes text: `add-speculative-loop`'s, with a tokenizer around it.

    ::

        prompt string [1] ─► characters ─► words ─► bytes ─► merges ─► input_ids ─► Loop ─► sequences
        add_special_tokens (optional)                                                        │
                                                  text string [1] ◄─ UTF-8 ◄─ bytes of ◄─ answer

    The other inputs and outputs are those of `model_spec.onnx`. ``text`` is the answer alone, special tokens
    left out, as ``decode(skip_special_tokens=True)`` gives it; ``sequences`` has the prompt's ids in front.
    Special tokens that are written in the prompt are read as such, so a chat template is the caller's to
    write; ``add_special_tokens`` (true) puts those of the post-processor around the prompt.

    Byte-level BPE is done by standard operators and the ``Tokenizer`` of ONNX Runtime itself that splits a
    string into characters: no library of custom operators has to be loaded. A prompt that is no UTF-8 is an
    error of the run. The tables (vocabulary, merges, kinds of characters) lie in the graph's own file.
    """

    file: ClassVar[str] = "onnx/model_text.onnx"
    summary: ClassVar[str] = "a third graph, the second with its tokenizer inside: text in, text out"

    def requires(self, model: ir.Model) -> None:
        """Refuse what has no loop, or no tokenizer.

        Raises:
            PassRefused: as `add-speculative-loop`, or the rules of the tokenizer were not attached.
        """
        AddSpeculativeLoop().requires(model)
        if rules_of(model) is None:
            raise PassRefused(
                f"{self.text()}: the model came without the rules of its tokenizer. Compile with --text-io, "
                "which reads them from tokenizer.json."
            )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Build the model; ``model`` is only read."""
        rules = rules_of(model)
        assert rules is not None
        derived = AddSpeculativeLoop().call(model).model
        graph, opset = derived.graph, derived.opset_imports[""]
        for domain, version in _DOMAINS.items():
            derived.opset_imports.setdefault(domain, version)

        prompt = ir.Value(name="prompt", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.STRING))
        ids = tokenize(graph, prompt, rules, opset)
        around = [_constant(graph, name, getattr(rules, name)) for name in ("before", "after")]
        flag = _flag(graph)
        nodes, (input_ids, length) = splice(_AROUND, [ids, flag, *around], "text/around", opset)
        graph.extend(nodes)
        old, *limits = graph.inputs
        old.replace_all_uses_with(input_ids)

        sequences, *counts = graph.outputs
        nodes, (answer,) = splice(_ANSWER, [sequences, length], "text/answer", opset)
        graph.extend(nodes)
        text = detokenize(graph, answer, rules.shown, opset)
        text.name, text.shape, text.type = "text", ir.Shape([1]), ir.TensorType(ir.DataType.STRING)
        graph.inputs.clear()
        graph.inputs.extend([prompt, *limits, flag])
        graph.outputs.clear()
        graph.outputs.extend([text, sequences, *counts])
        graph.sort()
        common.NameFixPass()(derived)
        notes.match(WHAT, self.file)
        return ir.passes.PassResult(derived, modified=True)


def _flag(graph: ir.Graph) -> ir.Value:
    """``add_special_tokens``: an input that a caller may leave out."""
    tensor = ir.tensor(np.array(True), name="add_special_tokens")
    value = ir.Value(
        name=tensor.name, shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def _constant(graph: ir.Graph, name: str, ids: tuple[int, ...]) -> ir.Value:
    node = ir.node("Constant", [], {"value": ir.tensor(np.array(ids, np.int64))}, name=f"/text/{name}")
    node.outputs[0].name = f"text/{name}"
    graph.append(node)
    return node.outputs[0]
