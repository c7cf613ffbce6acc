"""Tokenizers as operators, ours of `--text-io` and onnxruntime-extensions', against the tokenizers library.

    pip install onnxruntime-extensions==0.15.2
    python bench/text_io.py [--rounds 9]

Texts: those that a compile checks, Python's help topics, the source of its library, random characters.
Tokenizers: the demo model's, and small ones trained here with the patterns of other families.
"""

import argparse
import importlib.metadata
import json
import pydoc_data.topics
import random
import statistics
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from record import record
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from onnxforge.compiler.text_check import corpus, decoder
from onnxforge.compiler.text_corpus import HARD, texts
from onnxforge.compiler.text_rules_of import CL100K, shown, text_rules
from onnxforge.models import open_model
from onnxforge.passes.text_graph import tokenize

Encode = Callable[[str], list[int]]
_CONTRIB = "ai.onnx.contrib"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9, help="repetitions of each timing; the median counts")
    asked = parser.parse_args()
    rows, facts = [], []
    demo = dict(open_model("smollm2-135m").sidecars)
    for name, stored in {"SmolLM2 (demo)": demo["tokenizer.json"], **trained()}.items():
        tokenizer = Tokenizer.from_str(stored.decode())
        config = demo["tokenizer_config.json"].decode()
        sides = {
            "ours": ours(stored),
            "HfJsonTokenizer": json_tokenizer(stored, config),
            "GPT2Tokenizer": gpt2(stored),
        }
        for kind, found in sets(tokenizer).items():
            wrong = {side: errors(encode, tokenizer, found) for side, encode in sides.items()}
            shares = [f"{count} ({count / len(found):.0%})" for count in wrong.values()]
            rows.append([name, kind, str(len(found)), *shares])
            facts.append({"tokenizer": name, "texts": kind, "count": len(found), "wrong": wrong})
    speed = speeds(demo["tokenizer.json"], asked.rounds)
    version = importlib.metadata.version("onnxruntime-extensions")
    record(
        "text_io",
        "Texts whose ids differ from those of the tokenizers library",
        {"rows": facts, "milliseconds": speed, "onnxruntime-extensions": version},
        ["tokenizer", "texts", "of", "ours", f"HfJsonTokenizer {version}", f"GPT2Tokenizer {version}"],
        rows,
        [f"{text}: ids in {read:.1f} ms, text in {write:.1f} ms." for text, (read, write) in speed.items()],
    )
    return int(any(row["wrong"]["ours"] for row in facts))


def trained() -> dict[str, bytes]:
    """Byte-level BPE of 6,000 tokens with the patterns of three families."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    cuts = {"GPT-2's pattern": byte_level}
    for name, group in (("Llama 3's", "{1,3}"), ("Qwen2's", "")):
        split = pre_tokenizers.Split(Regex(CL100K % group), "isolated")
        cuts[f"{name} pattern"] = pre_tokenizers.Sequence([split, bare])
    made = {}
    for name, cut in cuts.items():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = cut, decoders.ByteLevel()
        specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(
            vocab_size=6000, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator([*prose(), *HARD, *texts(3000, specials, seed=5)], trainer)
        made[name] = tokenizer.to_str().encode()
    return made


def sets(tokenizer: Tokenizer) -> dict[str, list[str]]:
    rng = random.Random(1)
    limits = [0x80, 0x250, 0x800, 0x3000, 0xFFFF, 0x1FFFF, 0x10FFFF]
    points = [
        [rng.randrange(limit) for _ in range(rng.randint(1, 20))] for limit in rng.choices(limits, k=1000)
    ]
    noise = ["".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000) for codes in points]
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:60]
    code = [path.read_text(errors="replace")[:3000] for path in files]
    return {
        "of the compile's check": list(corpus(tokenizer)),
        "prose": prose(),
        "code": code,
        "random": noise,
    }


def prose() -> list[str]:
    return [text[:2000] for _, text in sorted(pydoc_data.topics.topics.items())]


def errors(encode: Encode, tokenizer: Tokenizer, found: Sequence[str]) -> int:
    return sum(encode(text) != tokenizer.encode(text).ids for text in found)


def ours(stored: bytes) -> Encode:
    imports = {"": 23, "ai.onnx.ml": 4, "com.microsoft": 1}
    text = ir.Value(name="text", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.STRING))
    graph = ir.Graph([text], [], nodes=[], name="encoder", opset_imports=imports)
    ids = tokenize(graph, text, text_rules(stored), 23)
    ids.name, ids.type, ids.shape = "ids", ir.TensorType(ir.DataType.INT64), ir.Shape(["n"])
    graph.outputs.append(ids)
    return runner(ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString(), ort.SessionOptions())


def json_tokenizer(stored: bytes, config: str) -> Encode:
    return contrib("HfJsonTokenizer", tokenizer_config=config, tokenizer_vocab=stored.decode())


def gpt2(stored: bytes) -> Encode:
    described = json.loads(stored)
    merges = [item if isinstance(item, str) else " ".join(item) for item in described["model"]["merges"]]
    added = [f"{item['content']}={item['id']}" for item in described["added_tokens"]]
    return contrib(
        "GPT2Tokenizer",
        vocab=json.dumps(described["model"]["vocab"]),
        merges="\n".join(merges),
        added_token="\n".join(added),
    )


def contrib(operator: str, **attributes: str) -> Encode:
    from onnxruntime_extensions import get_library_path

    node = onnx.helper.make_node(operator, ["text"], ["ids", "mask"], domain=_CONTRIB, **attributes)
    text = onnx.helper.make_tensor_value_info("text", onnx.TensorProto.STRING, [None])
    ids = onnx.helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, [None, None])
    graph = onnx.helper.make_graph([node], operator, [text], [ids])
    imports = [onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid(_CONTRIB, 1)]
    options = ort.SessionOptions()
    options.register_custom_ops_library(get_library_path())
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=10)
    return runner(model.SerializeToString(), options)


def runner(model: bytes, options: ort.SessionOptions) -> Encode:
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda text: session.run(["ids"], {"text": np.array([text], object)})[0].reshape(-1).tolist()


def speeds(stored: bytes, rounds: int) -> dict[str, tuple[float, float]]:
    """Milliseconds of ours from text to ids, and from ids to text."""
    tokenizer = Tokenizer.from_str(stored.decode())
    encode, decode = ours(stored), decoder(shown(stored))
    whole = " ".join(prose())
    letters = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=4000))
    chosen = {"5 characters": "Hello", "4,000 of prose": whole[:4000], "30,000 of prose": whole[:30000]}
    chosen |= {"one word of 4,000 random letters": letters}
    found = {}
    for name, text in chosen.items():
        ids = tokenizer.encode(text).ids
        found[name] = (
            timed(lambda text=text: encode(text), rounds),
            timed(lambda ids=ids: decode(ids), rounds),
        )
    return found


def timed(run: Callable[[], object], rounds: int) -> float:
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken)


if __name__ == "__main__":
    sys.exit(main())
