"""A tiny decoder and a tiny encoder as other tools write them, and files of them."""

import json
from pathlib import Path

import onnx

CONFIG = {"model_type": "llama", "max_position_embeddings": 64, "architectures": ["LlamaForCausalLM"]}

_DECODER = """
<ir_version: 8, opset_import: ["" : 17]>
decoder (int64[N, S] input_ids, float[N, 2, P, 4] {past}0{dot}key, float[N, 2, P, 4] {past}0{dot}value,
         int64[N, T] attention_mask)
  => (float[N, S, V] logits, float[N, 2, T, 4] {present}0{dot}key, float[N, 2, T, 4] {present}0{dot}value)
<float[5, 8] table = {{{table}}}, int64[4] heads = {{0, 0, 2, 4}}>
{{
  [hidden] embedded = Gather (table, input_ids)
  split = Reshape (embedded, heads)
  fresh = Transpose <perm = [0, 2, 1, 3]> (split)
  {present}0{dot}key = Concat <axis = 2> ({past}0{dot}key, fresh)
  {present}0{dot}value = Concat <axis = 2> ({past}0{dot}value, fresh)
  logits = Identity (embedded)
}}
"""

_ENCODER = """
<ir_version: 8, opset_import: ["" : 17]>
encoder (int64[b, s] attention_mask, int64[b, s] input_ids, int64[b, s] {types})
  => (float[b, s, 8] {output})
<float[5, 8] table = {{{table}}}>
{{
  {output} = Gather (table, input_ids)
}}
"""

_TABLE = ", ".join(str(value) for value in range(40))


def decoder(past: str = "past_key_values.", present: str = "present.", dot: str = ".") -> onnx.ModelProto:
    # ONNX's text form has no dots in names: they are written as __ and put back afterwards.
    text = _DECODER.format(
        past=past.replace(".", "__"),
        present=present.replace(".", "__"),
        dot=dot.replace(".", "__"),
        table=_TABLE,
    )
    model = onnx.parser.parse_model(text)
    for names in (
        *(node.input for node in model.graph.node),
        *(node.output for node in model.graph.node),
    ):
        names[:] = [name.replace("__", ".") for name in names]
    for value in (*model.graph.input, *model.graph.output):
        value.name = value.name.replace("__", ".")
    return model


def encoder(output: str = "last_hidden_state", types: str = "token_type_ids") -> onnx.ModelProto:
    return onnx.parser.parse_model(_ENCODER.format(output=output, types=types, table=_TABLE))


def write(folder: Path, model: onnx.ModelProto, config: dict[str, object] | None = None) -> Path:
    path = folder / "model.onnx"
    onnx.save(model, path)
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    return path


def external(path: Path, **entries: str) -> None:
    """Write the decoder with its table in ``weights.bin``; ``entries`` replace external data entries."""
    proto = decoder()
    table = proto.graph.initializer[0]
    assert table.name == "table"
    (path.parent / "weights.bin").write_bytes(bytes(16) + onnx.numpy_helper.to_array(table).tobytes())
    table.ClearField("float_data")
    table.ClearField("raw_data")
    table.data_location = onnx.TensorProto.EXTERNAL
    for key, value in ({"location": "weights.bin", "offset": "16", "length": "160"} | entries).items():
        table.external_data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())
