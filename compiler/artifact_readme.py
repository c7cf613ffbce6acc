"""The artifact's own README: what it is and how to load it. Nothing in it changes between two compiles."""

from collections.abc import Mapping

from onnxforge.compiler.draft_model import DRAFT_FOLDER
from onnxforge.compiler.graph_facts import GraphFacts
from onnxforge.compiler.provider_options import provider_options
from onnxforge.compiler.targets import CPU, CUDA, TENSORRT, Target
from onnxforge.models.source import Source
from onnxforge.passes.add_speculative_loop import AddSpeculativeLoop
from onnxforge.passes.add_text_io import AddTextIo
from onnxforge.passes.base import DerivingPass
from onnxforge.passes.skip_layers import SkipLayers
from onnxforge.runtimes.gpu_libraries import CUDA_13_PACKAGES

_HERE = "path/to/this/folder"

_CUDA_WHEEL = f'"onnxruntime-gpu[cuda,cudnn]" {CUDA_13_PACKAGES["libcublas"]}'
"""Its extra leaves cuBLAS out. Decoders run without cuDNN; the attention of encoders does not."""
_PACKAGES = {
    CUDA: _CUDA_WHEEL,
    TENSORRT: f"{_CUDA_WHEEL} {CUDA_13_PACKAGES['libnvinfer']}",
}
_DECODER = """\
## Load it

```python
from onnxforge.runtimes import load  # onnxruntime, numpy, tokenizers: no torch

model = load("{here}")
print(model.generate("Once upon a time", max_new_tokens=64).text)
```

```python
import onnxruntime_genai as og

model = og.Model("{here}")
tokenizer = og.Tokenizer(model)
params = og.GeneratorParams(model)
params.set_search_options(max_length=128)
generator = og.Generator(model, params)
generator.append_tokens(tokenizer.encode("Once upon a time"))
while not generator.is_done():
    generator.generate_next_token()
print(tokenizer.decode(generator.get_sequence(0)))
```

{others}Plain onnxruntime opens `onnx/model.onnx`. Feed `{inputs}` (int64) and {layers} pairs
`past_key_values.N.key/value` ({cache_dtype} `[batch_size, {kv_heads}, past_sequence_length, {head_size}]`,
past length 0 at the start); take `logits` and `present.N.key/value`. `attention_mask` covers past and new
tokens. Pad on the right.
"""

_FLOAT_CACHE = """\
```python
from optimum.onnxruntime import ORTModelForCausalLM  # optimum-onnx

model = ORTModelForCausalLM.from_pretrained("{here}", subfolder="onnx")
```

```js
import { pipeline } from "@huggingface/transformers";

const generate = await pipeline("text-generation", "{here}", { dtype: "fp32" });
```

"""
_INT8_CACHE = """\
The cache is **int8**: past and present are integers, and the scales are inside the graph. onnxruntime,
onnxruntime-genai and our runtime take it. optimum and transformers.js feed floats whatever the graph asks:
compile without `--kv int8` for them.

"""

_ENCODER = """\
## Load it

```python
from onnxforge.runtimes import load  # onnxruntime, numpy, tokenizers: no torch

model = load("{here}")
vectors = model.encode(["a sentence", "another"], normalize_embeddings=True)
```

```python
import onnxruntime as ort

session = ort.InferenceSession("{here}/onnx/model.onnx")  # feed {inputs}, int64 [batch_size, sequence_length]
```

```js
import {{ pipeline }} from "@huggingface/transformers";

const extract = await pipeline("feature-extraction", "{here}", {{ dtype: "fp32" }});
```
"""


_LOOP = f"""
`{AddSpeculativeLoop.file}` generates in one run, on the same weights: prompt in, prompt and answer out, with
speculative decoding inside. Greedy; `max_draft_tokens` 0 drafts nothing and says the same.

```python
import numpy as np, onnxruntime as ort, tokenizers

tokenizer = tokenizers.Tokenizer.from_file("{_HERE}/tokenizer.json")
session = ort.InferenceSession("{_HERE}/{AddSpeculativeLoop.file}")
sequences, steps, drafted, accepted = session.run(None, {{
    "input_ids": np.array([tokenizer.encode("Once upon a time").ids]),
    "max_new_tokens": np.array(64),
    "eos_token_id": np.array([2]),  # any number of them; see generation_config.json
    "max_draft_tokens": np.array(8),
}})
print(tokenizer.decode(sequences[0]))
```
"""


_TEXT = f"""
`{AddTextIo.file}` has the tokenizer inside, too: `prompt`, a string, in place of `input_ids`, and the
answer's `text` first. Special tokens that are written in the prompt are read as such; a chat template is for
you to write. `add_special_tokens` (true), optional: put those around it that the tokenizer puts around texts.

```python
import numpy as np, onnxruntime as ort

session = ort.InferenceSession("{_HERE}/{AddTextIo.file}")
text, sequences, *counts = session.run(None, {{
    "prompt": np.array(["Once upon a time"], object),
    "max_new_tokens": np.array(64),
    "eos_token_id": np.array([2]),
    "max_draft_tokens": np.array(8),
}})
print(text[0])
```
"""

_DERIVED: Mapping[type[DerivingPass], str] = {
    SkipLayers: "the same graph and weights, and a switch that leaves layers out, to draft",
    AddSpeculativeLoop: "the same weights, generating in one run",
    AddTextIo: "the same, with the tokenizer inside: text in, text out",
}


_CUDA_GRAPH = """\
A GPU can record a step and replay it (CUDA graphs), which spares the CPU the launch of every kernel:
`load("{here}", cuda_graph=True)`, `onnxforge run --cuda-graph`; for onnxruntime-genai write
`"cuda": {{"enable_cuda_graph": "1"}}` into `provider_options` of `genai_config.json`. It is the default of
`load` where a proof on a GPU found it faster (`provider_options` in `artifact.json`).

"""


def readme(source: Source, facts: GraphFacts, target: Target, task: str, context_length: int) -> str:
    """Markdown for the artifact's root."""
    name = str(source.config.get("model_type", "model"))
    steps = target.pass_names if facts.layers > 0 else ()
    generates, speaks = AddSpeculativeLoop.pass_name() in steps, AddTextIo.pass_name() in steps
    files = "".join(
        f"| `{derivation.file}` | {what} |\n"
        for derivation, what in _DERIVED.items()
        if derivation.pass_name() in steps
    )
    if target.draft is not None:
        files += f"| `{DRAFT_FOLDER}/` | an artifact of its own that drafts: `{target.draft}` |\n"
    body = (_DECODER if facts.layers else _ENCODER).format(
        here=_HERE,
        inputs=", ".join(i for i in facts.inputs if not i.startswith("past_")),
        layers=facts.layers,
        kv_heads=facts.kv_heads,
        head_size=facts.head_size,
        cache_dtype=facts.cache_dtype,
        others=_INT8_CACHE if facts.cache_dtype == "int8" else _FLOAT_CACHE.replace("{here}", _HERE),
    )
    return (
        f"# {name} for {target.name}\n\n"
        f"{target.summary[:1].upper()}{target.summary[1:]}. Task: `{task}`. Compiled by onnxforge.\n\n"
        "| file | what |\n|---|---|\n"
        "| `onnx/model.onnx`, `onnx/model.onnx_data` | the graph and its weights |\n"
        + files
        + "| `artifact.json` | passes, versions, source digests, sha256 of every file |\n"
        "| `report/` | what was measured against the source |\n\n"
        "`onnxforge verify` checks every byte of this folder; `onnxforge inspect` shows the graph.\n\n"
        + _where(target.provider)
        + (_CUDA_GRAPH.format(here=_HERE) if target.provider == CUDA and facts.shared_cache else "")
        + _options(provider_options(target.provider, facts, context_length), target.provider)
        + body
        + (_LOOP if generates else "")
        + (_TEXT if speaks else "")
    )


def _where(provider: str) -> str:
    """For a provider that the compiling machine may not have had; the same words wherever it was compiled."""
    if provider == CPU:
        return ""
    package = _PACKAGES.get(provider, f"an ONNX Runtime with {provider}")
    return (
        f"## Where it runs\n\nOn `{provider}` (`pip uninstall -y onnxruntime && pip install {package}`: two "
        "distributions of one module, never both). `onnxforge doctor` says what is missing; without our "
        "runtime, call `onnxruntime.preload_dlls()` before the first session, which loads the CUDA libraries "
        f"that pip installed. **Not verified on {provider}**, unless `summary.verified_on` in "
        "`artifact.json` names it: then the numbers in `report/` were measured there. Otherwise the report "
        "says what was proven instead.\n\n"
    )


def _options(options: Mapping[str, str], provider: str) -> str:
    """What to hand a plain ONNX Runtime session; our runtime reads the same from ``artifact.json``."""
    if not options:
        return ""
    lines = "".join(f'    "{key}": "{value}",\n' for key, value in options.items())
    return (
        "The graph says every type itself: leave `trt_fp16_enable` and `trt_int8_enable` off. An engine "
        "for all shapes between `min` and `max` is built on the first run, which takes minutes, and kept; "
        "shapes outside are an error. Our runtime keeps it under `~/.cache/onnxforge/tensorrt`; elsewhere "
        "set `trt_engine_cache_path`.\n\n```python\n"
        f"options = {{\n{lines}}}\n"
        f'providers = [("{provider}", options), "{CUDA}", "{CPU}"]\n```\n\n'
    )
