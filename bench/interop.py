"""One artifact folder in four runtimes: plain onnxruntime, our runtime, onnxruntime-genai, lm-eval.

    compile smollm2-135m --target cpu-fp32 -o build/fp32
    python bench/interop.py build/fp32 --peer-python /path/to/venv/bin/python

Five prompts given as ids; every runtime must give the same greedy ids. lm-eval's `onnxruntime` backend only
scores, so it is asked whether each continuation is the greedy one. The other venv needs onnxruntime-genai and
lm-eval. Exit code 1 when anything differs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime as ort
from record import record

from onnxforge.runtimes import load
from onnxforge.runtimes.request_options import Options

PROMPTS = (
    "The three laws of thermodynamics are",
    "def fibonacci(n):\n",
    "Once upon a time, in a village by the sea,",
    "1, 1, 2, 3, 5, 8, 13,",
    "Dear Sir or Madam,\n\nI am writing to",
)

PLAIN: Options = {"do_sample": False, "max_draft_tokens": 0, "min_rows": 1}
"""One row a step, as the others decode, whatever the artifact's default is."""

GENAI = """
import json, sys
import onnxruntime_genai as og
model = og.Model(sys.argv[1])
answers = []
for ids in json.load(open(sys.argv[2]))["prompts"]:
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(ids) + int(sys.argv[4]), do_sample=False)
    generator = og.Generator(model, params)
    generator.append_tokens(ids)
    while not generator.is_done():
        generator.generate_next_token()
    answers.append([int(t) for t in generator.get_sequence(0)][len(ids):])
json.dump(answers, open(sys.argv[3], "w"))
"""

LM_EVAL = """
import json, sys
from lm_eval.api.registry import get_model
import lm_eval.models
work = json.load(open(sys.argv[2]))
model = get_model("onnxruntime").create_from_arg_string("pretrained=" + sys.argv[1])
requests = [(None, p, a) for p, a in zip(work["prompts"], work["answers"])]
found = model._loglikelihood_tokens(requests, disable_tqdm=True)
json.dump([bool(greedy) for _, greedy in found], open(sys.argv[3], "w"))
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--tokens", type=int, default=32)
    asked = parser.parse_args()
    with load(asked.artifact) as model:
        prompts = [model.prompt_tokens(prompt) for prompt in PROMPTS]
        ours = [list(model.generate(p, max_new_tokens=asked.tokens, **PLAIN).token_ids) for p in prompts]
    plain = plain_onnxruntime(asked.artifact, prompts, ours)
    genai = peer(asked, GENAI, {"prompts": prompts})
    scored = peer(asked, LM_EVAL, {"prompts": prompts, "answers": plain})
    rows = [
        (repr(text), *("same" if ok else "DIFFERENT" for ok in (a == b, a == without_eos(c, a), d)))
        for text, a, b, c, d in zip(PROMPTS, plain, ours, genai, scored, strict=True)
    ]
    same = sum("DIFFERENT" not in row for row in rows)
    record(
        f"interop-{asked.artifact.name}",
        f"One folder in four runtimes: {same} of {len(rows)} prompts agree, {asked.tokens} greedy tokens",
        {
            "prompts": prompts,
            "onnxruntime": plain,
            "onnxforge": ours,
            "genai": genai,
            "lm_eval_greedy": scored,
        },
        (
            "prompt (plain onnxruntime is the reference)",
            "our runtime",
            "onnxruntime-genai",
            "lm-eval onnxruntime",
        ),
        rows,
    )
    return 0 if same == len(rows) else 1


def plain_onnxruntime(folder: Path, prompts: list[list[int]], ours: list[list[int]]) -> list[list[int]]:
    """The loop that any application would write: nothing but the graph's own inputs and outputs.

    Runs as many tokens as our runtime gave, so that stopping is not part of the comparison.
    """
    session = ort.InferenceSession(folder / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    caches = [i for i in session.get_inputs() if i.name.startswith("past_key_values.")]
    positions = any(i.name == "position_ids" for i in session.get_inputs())
    names = ["logits", *(c.name.replace("past_key_values", "present") for c in caches)]
    answers = []
    for prompt, wanted in zip(prompts, ours, strict=True):
        past = {c.name: np.zeros((1, c.shape[1], 0, c.shape[3]), np.float32) for c in caches}
        ids, total, answer = np.array([prompt], np.int64), 0, []
        while len(answer) < len(wanted):
            total += ids.shape[1]
            feeds = {"input_ids": ids, "attention_mask": np.ones((1, total), np.int64), **past}
            if positions:
                feeds["position_ids"] = np.arange(total - ids.shape[1], total, dtype=np.int64)[None]
            logits, *present = session.run(names, feeds)
            past = {c.name: value for c, value in zip(caches, present, strict=True)}
            answer.append(int(logits[0, -1].argmax()))
            ids = np.array([[answer[-1]]], np.int64)
        answers.append(answer)
    return answers


def without_eos(answer: list[int], reference: list[int]) -> list[int]:
    """GenAI leaves the end token out of its sequence; ours reports it."""
    return answer + reference[-1:] if answer == reference[:-1] else answer


def peer(asked: argparse.Namespace, script: str, work: dict) -> list:
    with tempfile.TemporaryDirectory() as temp:
        given, answer = Path(temp) / "work.json", Path(temp) / "answer.json"
        given.write_text(json.dumps(work))
        command = [
            asked.peer_python,
            "-c",
            script,
            asked.artifact.absolute(),
            given,
            answer,
            str(asked.tokens),
        ]
        subprocess.run(command, check=True)
        return json.loads(answer.read_text())


if __name__ == "__main__":
    sys.exit(main())
