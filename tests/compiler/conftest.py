"""A model small enough to read, and stand-ins for the parts of the house that load torch or take minutes.

Helper modules beside these tests are importable by name.
"""

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxforge.compiler.driver import Parts
from onnxforge.compiler.proof_types import Proof
from onnxforge.compiler.request import CompileRequest
from onnxforge.compiler.targets import Target
from onnxforge.models.source import Source, SourceKind
from onnxforge.passes.lazy import lazy_tensor

sys.path.insert(0, str(Path(__file__).parent))

VOCABULARY, HIDDEN = 32, 64

# One "layer" whose cache is a copy of the embeddings: enough contract for every tool that reads the folder.
DECODER = f"""
<ir_version: 10, opset_import: ["" : 23]>
tiny (int64[batch_size, sequence_length] input_ids,
      int64[batch_size, total_sequence_length] attention_mask,
      int64[batch_size, sequence_length] position_ids,
      float[batch_size, 1, past_sequence_length, {HIDDEN}] past_key_values_0_key,
      float[batch_size, 1, past_sequence_length, {HIDDEN}] past_key_values_0_value)
   => (float[batch_size, sequence_length, {VOCABULARY}] logits,
       float[batch_size, 1, total_sequence_length, {HIDDEN}] present_0_key,
       float[batch_size, 1, total_sequence_length, {HIDDEN}] present_0_value)
<int64[1] one = {{1}}>
{{
   hidden = Gather <axis = 0> (embed, input_ids)
   rows = Unsqueeze (hidden, one)
   present_0_key = Concat <axis = 2> (past_key_values_0_key, rows)
   present_0_value = Concat <axis = 2> (past_key_values_0_value, rows)
   logits = MatMul (hidden, head)
}}
"""
_WEIGHTS = {"embed": (VOCABULARY, HIDDEN), "head": (HIDDEN, VOCABULARY)}


def tiny_model() -> ir.Model:
    """The graph above with seeded weights that are computed when they are asked for."""
    model = ir.from_onnx_text(DECODER)
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.name = re.sub(r"_0_(key|value)$", r".0.\1", value.name)
    for value in [v for node in model.graph for v in node.inputs if v.name in _WEIGHTS]:
        value.shape, value.type = ir.Shape(_WEIGHTS[value.name]), ir.TensorType(ir.DataType.FLOAT)
        value.const_value = lazy_tensor(
            partial(_weight, value.name), dtype=ir.DataType.FLOAT, shape=_WEIGHTS[value.name], name=value.name
        )
        model.graph.register_initializer(value)
    facts = {"context_length": "64", "source": "tiny", "task": "text-generation-with-past"}
    model.metadata_props.update({f"onnxforge.{name}": value for name, value in facts.items()})
    return model


def _weight(name: str) -> np.ndarray:
    return np.random.default_rng(len(name)).normal(size=_WEIGHTS[name]).astype(np.float32)


def tiny_source() -> Source:
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "num_attention_heads": 1,
        "num_hidden_layers": 1,
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
        "_name_or_path": "/home/somebody/tiny",
        "auto_map": {"AutoModel": "evil.Model"},
    }
    return Source(
        ref="tiny",
        kind=SourceKind.FOLDER,
        config=config,
        sidecars={
            "tokenizer_config.json": b'{"tokenizer_class": "TokenizersBackend", "model_input_names": ["x"]}',
            "chat_template.jinja": b"{{ messages }}",
        },
        digests={"model.safetensors": "0" * 64},
    )


PLAIN = Target(name="plain", summary="no pass at all, for tests", passes=())


def write_report(staging: Path, *_: object) -> Proof:
    (staging / "report").mkdir(exist_ok=True)
    (staging / "report" / "report.json").write_text("{}")
    return Proof(summary={"perplexity_ratio": 1.0})


@pytest.fixture
def parts() -> Parts:
    return Parts(
        open_model=lambda ref, revision: replace(tiny_source(), ref=ref),
        export_model=lambda source, task: tiny_model(),
        self_check=lambda folder: None,
        prove=write_report,
    )


@pytest.fixture
def request_for() -> Callable[..., CompileRequest]:
    def make(output: Path, **changes: object) -> CompileRequest:
        return replace(CompileRequest(model="tiny", output=output, target=PLAIN), **changes)

    return make
