"""Are our greedy tokens transformers' greedy tokens? 20 prompts, 64 tokens each, float32 on the same weights.

    compile smollm2-135m --target cpu-fp32 -o build/fp32
    python bench/greedy_identity.py build/fp32 [--model smollm2-135m]

Where they part, the margin between transformers' two best logits is shown: a near-tie (below 1e-3) is decided
by rounding, and anything else is an error of ours. Exit code 1 when any sequence differs.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from hf_folder_from_source import write_hf_folder
from record import record
from transformers import AutoModelForCausalLM

from onnxforge.runtimes import load
from onnxforge.runtimes.request_options import Options

PROMPTS = (
    "The three laws of thermodynamics are",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n",
    "The capital of France is",
    "Q: What is 17 times 23?\nA:",
    "Dear Sir or Madam,\n\nI am writing to",
    "In 1969, the first humans",
    "Water boils at",
    "import numpy as np\n\n# compute the mean of each column\n",
    "Der schnelle braune Fuchs",
    "1, 1, 2, 3, 5, 8, 13,",
    "The most important idea in computer science is",
    "SELECT name, COUNT(*) FROM",
    "Photosynthesis is the process by which",
    "She opened the letter slowly, and",
    "<html>\n  <body>\n",
    "To make a good cup of tea, first",
    "The theory of relativity says that",
    "Roses are red, violets are blue,",
    "A list of healthy breakfast foods:\n-",
)
NEAR_TIE = 1e-3
PLAIN: Options = {"do_sample": False, "max_draft_tokens": 0, "min_rows": 1}
"""One row a step, as transformers decodes, whatever the artifact's default is."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=64)
    asked = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as temp, load(asked.artifact) as ours:
        folder = write_hf_folder(asked.model, Path(temp) / "hf")
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        for prompt in PROMPTS:
            ids = ours.prompt_tokens(prompt)
            result = ours.generate(ids, max_new_tokens=asked.tokens, **PLAIN)
            results.append(compare(theirs, prompt, ids, list(result.token_ids), asked.tokens))
    same = sum(r["identical"] for r in results)
    rows = [(repr(r["prompt"]), str(r["tokens"]), "yes" if r["identical"] else parted(r)) for r in results]
    record(
        "greedy_identity",
        f"Greedy tokens against transformers, float32: {same} of {len(results)} sequences identical",
        {"identical": same, "prompts": len(results), "tokens": asked.tokens, "results": results},
        ("prompt", "tokens", "identical"),
        rows,
    )
    return 0 if same == len(results) else 1


def compare(theirs: torch.nn.Module, prompt: str, ids: list[int], found: list[int], tokens: int) -> dict:
    given = torch.tensor([ids])
    with torch.no_grad():
        expected = theirs.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=tokens,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
    wanted = expected.sequences[0, len(ids) :].tolist()
    result = {"prompt": prompt, "tokens": len(wanted), "identical": wanted == found}
    if not result["identical"]:
        at = next(
            (i for i, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b),
            min(len(wanted), len(found)),
        )
        best = expected.scores[min(at, len(expected.scores) - 1)][0].topk(2).values
        result |= {"parted_at": at, "margin": float(best[0] - best[1])}
    return result


def parted(result: dict) -> str:
    kind = "near-tie" if result["margin"] < NEAR_TIE else "no tie"
    return f"parted at {result['parted_at']}, margin {result['margin']:.2g} ({kind})"


if __name__ == "__main__":
    sys.exit(main())
