"""Run by `gpu.py`: one artifact on one device.

    python bench/gpu_model_child.py FOLDER PROVIDER

Requests, by ``do``: load, cell (one prompt per row, then
single steps: seconds of each), loop (the loop in the graph against the runtime's), independence (a step of
eight tokens against eight steps), encode (sentences).
"""

import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from gpu_process import one_line, serve
from gpu_sessions import cuda_versions, memory_used
from row_independence import independence
from speculative_graph import Generate, behind_first, graph, host
from targets import of_length

from onnxforge.compiler.eval_text import evaluation_text
from onnxforge.compiler.traffic import traffic_of
from onnxforge.runtimes import Decoder, Encoder, load
from onnxforge.runtimes.artifact import DECODER_TASK, read_manifest
from onnxforge.runtimes.session import device_of, provider_name
from onnxforge.runtimes.strict_json import read_optional_json

_NEVER = 2**31 - 1
"""An end of text that no model says."""


class Artifact:
    """A loaded artifact that answers requests."""

    def __init__(self, folder: Path, provider: str) -> None:
        self._folder, self._provider = folder, provider
        self._device = device_of(provider_name(provider))
        self._model: Decoder | Encoder | None = None
        self._rng = np.random.default_rng(0)
        self._taken = 0
        self._warned: set[str] = set()

    def answer(self, request: dict) -> dict:
        """What the request is answered with, what the process has taken of the device's memory by now, and
        what it has warned of: the runtime goes on without CUDA graphs where they fail, and says so once."""
        asked = {key: value for key, value in request.items() if key != "do"}
        before = memory_used(self._device)  # other processes wait meanwhile; asking makes the CUDA context
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always", RuntimeWarning)
            found = getattr(self, f"do_{request['do']}")(**asked)
        self._taken += memory_used(self._device) - before
        self._warned |= {one_line(str(warning.message)) for warning in heard}
        return found | {"own_bytes": self._taken, "warnings": sorted(self._warned)}

    def do_load(self, cuda_graph: bool | None = None) -> dict:
        started = time.perf_counter()
        self._model = load(self._folder, provider=self._provider, verify="off", cuda_graph=cuda_graph)
        found = {"load_seconds": time.perf_counter() - started}
        return found | costs(self._folder) | {"cuda": cuda_versions()}

    def do_cell(self, batch: int, context: int, steps: int) -> dict:
        """``batch`` prompts of ``context`` random tokens, then ``steps`` steps of one token a row."""
        model = self._decoder()
        tokens = self._rng.integers(0, model.vocabulary, (batch, context + steps))
        started = time.perf_counter()
        state = model.new_state(rows=batch, capacity=context + steps + 1)
        made = time.perf_counter()
        state.prompt(list(tokens[:, :context]))
        prefill = time.perf_counter() - made
        seconds = []
        for column in tokens[:, context:].T:
            begun = time.perf_counter()
            state.step(np.ascontiguousarray(column)[:, None])
            seconds.append(time.perf_counter() - begun)
        return {
            "state_seconds": made - started,
            "prefill_seconds": prefill,
            "step_seconds": seconds,
            "cache_bytes": state.cache_bytes,
        }

    def do_loop(self, prompt: int, new: int, drafts: int, rounds: int, text: bool) -> dict:
        """Seconds behind the first token, and what was said, in three ways; greedy, no end of text.

        Prompts are random tokens, or with ``text`` words, which have something to draft from.
        """
        model = self._decoder()
        ways: dict[str, Generate] = {"runtime": plainly(model), "same_rule": host(model)}
        ways["graph"] = graph(self._folder, self._provider)
        if text:
            tokens = model.prompt_tokens(evaluation_text().text[: 20 * prompt])[:prompt]
        else:
            tokens = self._rng.integers(0, model.vocabulary, prompt).tolist()
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        said: dict[str, list[int]] = {}
        steps = {}
        for turn in range(rounds + 1):
            for name, generate in sorted(ways.items(), reverse=turn % 2 == 1):
                taken, (found, steps[name], _) = behind_first(generate, tokens, new, drafts)
                said[name] = found[prompt:]
                if turn:
                    seconds[name].append(taken)
        differs = {name: _first_difference(said["graph"], said[name]) for name in ("runtime", "same_rule")}
        return {"seconds": seconds, "steps": steps, "new": new, "graph_differs_at": differs}

    def do_independence(self, positions: int) -> dict:
        """See `row_independence.py`: eight tokens in a step against steps of one and of two."""
        row = independence(self._folder, positions, self._provider)
        pairs = {"one": row.one, "two": row.two}
        found = {
            name: {"largest": d.largest, "flips": len(d.gaps), "gaps": d.gaps} for name, d in pairs.items()
        }
        return {"positions": row.positions, "largest_logit": row.scale, **found}

    def do_encode(self, batch: int, tokens: int, runs: int) -> dict:
        """Seconds of each of ``runs`` calls that encode ``batch`` texts of ``tokens`` tokens."""
        if not isinstance(self._model, Encoder):
            raise TypeError(f"{self._folder} is no encoder")
        texts = of_length(tokens, batch, self._model.tokenizer)
        seconds = []
        for turn in range(runs + 2):
            started = time.perf_counter()
            self._model.encode(texts, batch_size=batch)
            if turn > 1:
                seconds.append(time.perf_counter() - started)
        return {"seconds": seconds}

    def _decoder(self) -> Decoder:
        if not isinstance(self._model, Decoder):
            raise TypeError(f"{self._folder} is no decoder")
        return self._model


def plainly(model: Decoder) -> Generate:
    """Greedy decoding by `generate`; prompt and answer, steps, drafts, as `speculative_graph.host` has it."""

    def generate(prompt: list[int], new: int, drafts: int) -> tuple[list[int], int, int]:
        said = model.generate(
            prompt, max_new_tokens=new, do_sample=False, eos_token_id=_NEVER, max_draft_tokens=drafts
        )
        found = list(said.token_ids)
        return [*prompt, *found], len(found), 0

    return generate


def costs(folder: Path) -> dict[str, object]:
    """Bytes and multiply-adds of a token, read from the graph."""
    manifest = read_manifest(folder)
    traffic = traffic_of(folder / manifest.graph)
    config = read_optional_json(folder / "config.json")
    hidden, words = config.get("hidden_size"), config.get("vocab_size")
    decoder = manifest.task == DECODER_TASK  # its prompts need the logits of one token only
    head = hidden * words if decoder and isinstance(hidden, int) and isinstance(words, int) else 0
    return {
        "pipeline": list(manifest.pipeline),
        "parameters": traffic.parameters,
        "weight_bytes": traffic.weight_bytes,
        "cache_bytes_per_position": traffic.cache_bytes_per_position,
        "macs": traffic.integer_macs + traffic.float_macs - head,
        "session": " ".join(f"{key}={value}" for key, value in sorted(manifest.session.items())),
    }


def _first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """The place of the first token that differs; None where all are equal."""
    if list(ours) == list(theirs):
        return None
    pairs = zip(ours, theirs, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))


if __name__ == "__main__":
    serve(Artifact(Path(sys.argv[1]), sys.argv[2]).answer)
