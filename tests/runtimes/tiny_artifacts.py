"""Tiny artifacts made by hand: random weights, real kernels, a byte-level tokenizer."""

import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from onnxforge.runtimes import FileRecord, Manifest, write_manifest

SPECIALS = ("<|bos|>", "<|eos|>", "<|user|>", "<|answer|>", "<pad>", "<mask>")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|answer|>{% endif %}"
)
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, LAYERS, CONTEXT = 32, 4, 2, 16, 2, 192


@dataclass(frozen=True)
class Form:
    """Which of the graph forms that compile writes."""

    shared: bool = True
    """GroupQueryAttention; otherwise Concat and the standard Attention."""
    positions: bool = False
    """position_ids is an input; otherwise the rotation happens inside GroupQueryAttention."""
    keeps_logits: bool = True
    context: int = CONTEXT
    slow: bool = False
    """Every run takes seconds, in a loop that can be interrupted."""
    int8: bool = False
    """The cache is int8, one scale per channel."""
    bfloat16: bool = False
    """Cache and logits are bfloat16, and what is between them float32 (without a shared cache)."""
    broken: bool = False
    """The logits are NaN."""
    padding: int = 0
    """Rows of the embedding and the logits that no token has."""


SHARED, SHARED_POSITIONS = Form(), Form(positions=True)
PLAIN = Form(shared=False, positions=True)
FORMS = (SHARED, SHARED_POSITIONS, PLAIN, Form(keeps_logits=False), replace(PLAIN, keeps_logits=False))


def tiny_tokenizer() -> Tokenizer:
    """Bytes, and a few merges so that words are several bytes; one special token in front of plain text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [
        ("t", "h"),
        ("th", "e"),
        ("a", "n"),
        ("an", "d"),
        ("Ġ", "the"),
        ("o", "n"),
        ("e", "r"),
        ("i", "n"),
    ]
    words = [*SPECIALS, *alphabet, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIALS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", 0)]
    )
    return tokenizer


VOCABULARY = tiny_tokenizer().get_vocab_size()


def _weights(rng: np.random.Generator, form: Form) -> dict[str, np.ndarray]:
    def normal(*shape, scale):
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    width = HEADS * HEAD_DIM
    found = {
        "embed": normal(VOCABULARY + form.padding, HIDDEN, scale=1.0),
        "head": normal(HIDDEN, VOCABULARY + form.padding, scale=0.3),
        "places": normal(form.context, HIDDEN, scale=0.7),
    }
    for i in range(LAYERS):
        found[f"q{i}"] = normal(HIDDEN, width, scale=0.25)
        found[f"k{i}"] = normal(HIDDEN, KV_HEADS * HEAD_DIM, scale=0.25)
        found[f"v{i}"] = normal(HIDDEN, KV_HEADS * HEAD_DIM, scale=0.25)
        found[f"o{i}"] = normal(width, HIDDEN, scale=0.15)
    angles = np.arange(form.context)[:, None] / 100 ** (np.arange(HEAD_DIM // 2) / (HEAD_DIM // 2))
    for i in range(LAYERS if form.int8 else 0):
        for side in ("key", "value"):
            found[f"{side}_scale{i}"] = np.full((1, KV_HEADS, 1, HEAD_DIM), 0.15, np.float32)
    found["cos"], found["sin"] = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    return found


def _shared_layer(i: int, x: str, rotary: int, int8: bool) -> str:
    tables = ", cos, sin" if rotary else ", , " if int8 else ""
    modes = ""
    if int8:
        tables += f", , , , key_scale{i}, value_scale{i}"
        modes = ', kv_cache_bit_width=8, k_quant_type="PER_CHANNEL", v_quant_type="PER_CHANNEL"'
    return f"""
      qq{i} = MatMul({x}, q{i})
      kk{i} = MatMul({x}, k{i})
      vv{i} = MatMul({x}, v{i})
      a{i}, present.{i}.key, present.{i}.value = com.microsoft.GroupQueryAttention
        <num_heads={HEADS}, kv_num_heads={KV_HEADS}, do_rotary={rotary}{modes}>
        (qq{i}, kk{i}, vv{i}, past_key_values.{i}.key, past_key_values.{i}.value, seqlens, total{tables})
      p{i} = MatMul(a{i}, o{i})
      y{i} = Add({x}, p{i})"""


def _plain_layer(i: int, x: str) -> str:
    def heads(letter: str, count: int) -> str:
        return f"""
      {letter}m{i} = MatMul({x}, {letter}{i})
      {letter}r{i} = Reshape({letter}m{i}, {letter}shape)
      {letter}t{i} = Transpose<perm=[0,2,1,3]>({letter}r{i})"""

    return f"""{heads("q", HEADS)}{heads("k", KV_HEADS)}{heads("v", KV_HEADS)}
      present.{i}.key = Concat<axis=2>(past_key_values.{i}.key, kt{i})
      present.{i}.value = Concat<axis=2>(past_key_values.{i}.value, vt{i})
      a{i} = Attention(qt{i}, present.{i}.key, present.{i}.value, allowed)
      at{i} = Transpose<perm=[0,2,1,3]>(a{i})
      ar{i} = Reshape(at{i}, joined)
      p{i} = MatMul(ar{i}, o{i})
      y{i} = Add({x}, p{i})"""


_SHARED_MASK = """
      one = Constant<value_ints=[1]>()
      counts = ReduceSum<keepdims=0>(attention_mask, one)
      scalar_one = Constant<value_int=1>()
      last = Sub(counts, scalar_one)
      seqlens = Cast<to=6>(last)
      mask_shape = Shape(attention_mask)
      total64 = Gather<axis=0>(mask_shape, scalar_one)
      total = Cast<to=6>(total64)"""

_PLAIN_MASK = f"""
      qshape = Constant<value_ints=[0, 0, {HEADS}, {HEAD_DIM}]>()
      kshape = Constant<value_ints=[0, 0, {KV_HEADS}, {HEAD_DIM}]>()
      vshape = Constant<value_ints=[0, 0, {KV_HEADS}, {HEAD_DIM}]>()
      joined = Constant<value_ints=[0, 0, {HEADS * HEAD_DIM}]>()
      zero = Constant<value_int=0>()
      scalar_one = Constant<value_int=1>()
      mask_shape = Shape(attention_mask)
      total = Gather<axis=0>(mask_shape, scalar_one)
      ids_shape = Shape(input_ids)
      count = Gather<axis=0>(ids_shape, scalar_one)
      before = Sub(total, count)
      q_line = Range(before, total, scalar_one)
      axis1 = Constant<value_ints=[1]>()
      q_pos = Unsqueeze(q_line, axis1)
      kv_pos = Range(zero, total, scalar_one)
      causal = LessOrEqual(kv_pos, q_pos)
      itself = Equal(kv_pos, q_pos)
      real_flat = Cast<to=9>(attention_mask)
      axes = Constant<value_ints=[1, 2]>()
      real = Unsqueeze(real_flat, axes)
      seen = And(causal, real)
      allowed = Or(seen, itself)"""


_SPIN = """
      turns = Constant<value_int=100000000>()
      go_on = Constant<value_int=1>()
      yes = Cast<to=9>(go_on)
      start = Constant<value_float=0.0>()
      spun = Loop (turns, yes, start) <body = spin (int64 i, bool c, float v) => (bool c_out, float v_out) {
        c_out = Identity(c)
        v_out = Sin(v)
      }>
      logits = Add(quick, spun)"""


def decoder_graph(form: Form, seed: int = 0) -> ir.Model:
    weights = _weights(np.random.default_rng(seed), form)
    kept = "int8" if form.int8 else "bfloat16" if form.bfloat16 else "float"
    past = ", ".join(
        f"{kept}[batch_size,{KV_HEADS},past,{HEAD_DIM}] past_key_values.{i}.{kind}"
        for i in range(LAYERS)
        for kind in ("key", "value")
    )
    present = past.replace("past_key_values", "present").replace(",past,", ",total,")
    inputs = "int64[batch_size,n] input_ids, int64[batch_size,total] attention_mask"
    inputs += ", int64[batch_size,n] position_ids" if form.positions else ""
    inputs += ", int64 num_logits_to_keep" if form.keeps_logits else ""
    declared = ", ".join(
        f"float[{','.join(map(str, array.shape))}] {name}" for name, array in weights.items()
    )
    x = "x"
    start = "x = Gather(embed, input_ids)"
    if form.positions:
        start = "words = Gather(embed, input_ids)\n at = Gather(places, position_ids)\n x = Add(words, at)"
    body = ""
    for i in range(LAYERS):
        body += _shared_layer(i, x, int(not form.positions), form.int8) if form.shared else _plain_layer(i, x)
        x = f"y{i}"
    tail = f"logits = MatMul({x}, head)"
    if form.keeps_logits:
        tail = f"""
      first = Constant<value_ints=[1]>()
      end = Constant<value_ints=[9223372036854775807]>()
      kept = Reshape(num_logits_to_keep, first)
      begin = Neg(kept)
      last_x = Slice({x}, begin, end, first)
      logits = MatMul(last_x, head)"""
    if form.bfloat16:
        cache = r"present\.(\d)\.(key|value) = Concat<axis=2>\((\S+), (\w+)\)"
        grown = r"o\2\1 = Cast<to=1>(\3) g\2\1 = Concat<axis=2>(o\2\1, \4) present.\1.\2 = Cast<to=16>(g\2\1)"
        body = re.sub(cache, grown, body)
        body = re.sub(r"present\.(\d)\.key, present\.\d\.value, allowed", r"gkey\1, gvalue\1, allowed", body)
        tail = tail.replace("logits =", "exact =") + "\n logits = Cast<to=16>(exact)"
    if form.slow:
        tail = tail.replace("logits =", "quick =") + _SPIN
    if form.broken:
        tail = tail.replace("logits =", "finite =") + "\n nothing = Sub(finite, finite)\n"
        tail += " logits = Div(nothing, nothing)"
    rows, said = VOCABULARY + form.padding, "bfloat16" if form.bfloat16 else "float"
    text = f"""<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>
    tiny ({inputs}, {past}, {declared}) => ({said}[batch_size,k,{rows}] logits, {present}) {{
      {start}{_SHARED_MASK if form.shared else _PLAIN_MASK}{body}
      {tail}
    }}"""
    # the text format has no dots in names
    model = ir.from_onnx_text(re.sub(r"(past_key_values|present)\.(\d)\.(key|value)", r"\1_\2_\3", text))
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.name = re.sub(r"_(\d)_(key|value)", r".\1.\2", value.name)
    if form.keeps_logits:
        weights["num_logits_to_keep"] = np.array(0, np.int64)
    _bind_weights(model, weights)
    return model


def _bind_weights(model: ir.Model, weights: dict[str, np.ndarray]) -> None:
    for value in list(model.graph.inputs):
        if value.name not in weights:
            continue
        if value.name != "num_logits_to_keep":
            model.graph.inputs.remove(value)
        if value.uses() or value.name == "num_logits_to_keep":
            value.const_value = ir.tensor(weights[value.name], name=value.name)
            model.graph.register_initializer(value)


def encoder_graph(task: str, labels: int = 3, seed: int = 0) -> ir.Model:
    """Each token's vector depends on itself, its segment and the mean of the unmasked tokens."""
    rng = np.random.default_rng(seed)
    width = {"fill-mask": VOCABULARY}.get(task, labels)
    weights = {
        "embed": rng.standard_normal((VOCABULARY, HIDDEN)).astype(np.float32),
        "segment": rng.standard_normal((2, HIDDEN)).astype(np.float32),
        "mix": (rng.standard_normal((HIDDEN, HIDDEN)) / 4).astype(np.float32),
        "head": rng.standard_normal((HIDDEN, width)).astype(np.float32),
    }
    output = f"float[batch_size,n,{HIDDEN}] last_hidden_state"
    tail = "last_hidden_state = Tanh(sum)"
    if task in ("token-classification", "fill-mask"):
        output, tail = f"float[batch_size,n,{width}] logits", "h = Tanh(sum)\n logits = MatMul(h, head)"
    if task == "text-classification":
        output = f"float[batch_size,{width}] logits"
        tail = "h = Tanh(sum)\n i = Constant<value_int=0>()\n"
        tail += " c = Gather<axis=1>(h, i)\n logits = MatMul(c, head)"
    declared = ", ".join(f"float[{','.join(map(str, a.shape))}] {name}" for name, a in weights.items())
    model = ir.from_onnx_text(f"""<ir_version: 10, opset_import: ["" : 23]>
    tiny (int64[batch_size,n] input_ids, int64[batch_size,n] attention_mask,
          int64[batch_size,n] token_type_ids, {declared}) => ({output}) {{
      words = Gather(embed, input_ids)
      kinds = Gather(segment, token_type_ids)
      x = Add(words, kinds)
      real = Cast<to=1>(attention_mask)
      axis = Constant<value_ints=[2]>()
      weight = Unsqueeze(real, axis)
      weighted = Mul(x, weight)
      one = Constant<value_ints=[1]>()
      total = ReduceSum(weighted, one)
      count = ReduceSum(weight, one)
      mean = Div(total, count)
      mixed = MatMul(mean, mix)
      sum = Add(x, mixed)
      {tail}
    }}""")
    _bind_weights(model, weights)
    return model


def seal(folder: Path, **changes: object) -> Manifest:
    """Write the manifest of what lies in the folder."""
    files = tuple(
        FileRecord(
            p.relative_to(folder).as_posix(), p.stat().st_size, hashlib.sha256(p.read_bytes()).hexdigest()
        )
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p != folder / "artifact.json"
    )
    manifest = Manifest(
        name="tiny",
        task="text-generation-with-past",
        model_type="llama",
        target="cpu-fp32",
        pipeline=(),
        graph="onnx/model.onnx",
        provider="CPUExecutionProvider",
        session={},
        context_length=CONTEXT,
        shared_cache=True,
        files=files,
    )
    manifest = replace(manifest, **changes)
    write_manifest(folder, manifest)
    return manifest


def _write(folder: Path, model: ir.Model, files: dict[str, object]) -> None:
    (folder / "onnx").mkdir(parents=True)
    ir.save(model, folder / "onnx" / "model.onnx", external_data="model.onnx_data", size_threshold_bytes=64)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    files = {
        "tokenizer_config.json": {
            "bos_token": "<|bos|>",
            "eos_token": {"content": "<|eos|>"},
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        },
        **files,
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))


def write_decoder(folder: Path, form: Form = SHARED, seed: int = 0, generation: dict | None = None) -> Path:
    """A whole decoder artifact."""
    files = {
        "config.json": {"model_type": "llama", "vocab_size": VOCABULARY, "eos_token_id": 1},
        "generation_config.json": {"eos_token_id": [1], **(generation or {})},
        "chat_template.jinja": TEMPLATE,
    }
    _write(folder, decoder_graph(form, seed), files)
    seal(folder, shared_cache=form.shared, context_length=form.context)
    return folder


def write_encoder(folder: Path, task: str = "feature-extraction", files: dict | None = None) -> Path:
    """A whole encoder artifact."""
    labels = {"id2label": {"0": "good", "1": "bad", "2": "other"}}
    _write(folder, encoder_graph(task), {"config.json": labels, **(files or {})})
    seal(folder, task=task, shared_cache=False)
    return folder
