"""Run by `gpu.py`: how far artifacts on the device are from `cpu-fp32`, and from themselves on the CPU.

    python bench/gpu_quality_child.py REFERENCE|none WINDOWS LENGTH

One request for each artifact: ``{"folder": DIR, "provider": cuda}``. REFERENCE is the artifact of `cpu-fp32`;
without it an artifact is compared with itself on the CPU only, which tells kernels that are wrong, and not
what the target costs.
"""

import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from gpu_process import serve
from weight_methods import Remembered

from onnxforge.compiler.eval_text import Window, cut, evaluation_text, sentences
from onnxforge.compiler.parity import batches, compare_encoders
from onnxforge.compiler.perplexity import compare
from onnxforge.compiler.proof_session import GraphSession

_SENTENCES, _LONGEST = 64, 128
_FEW = 128
"""Tokens over which an artifact is compared with itself on the CPU."""
_KEPT = ("ratio", "ratio_error", "mean_kl", "max_kl", "top1_agreement", "max_abs_logit_diff")


class Judge:
    """Keeps the reference's answers on the disk, since all artifacts are asked the same."""

    def __init__(self, reference: Path | None, windows: int, length: int, scratch: Path) -> None:
        self._windows, self._length, self._scratch = windows, length, scratch
        self._reference = GraphSession(reference, "cpu") if reference else None
        self._remembered = (
            Remembered(self._reference, scratch) if self._reference and self._reference.is_decoder else None
        )

    def answer(self, request: dict) -> dict:
        folder, provider = Path(request["folder"]), request["provider"]
        here, on_cpu = GraphSession(folder, provider), GraphSession(folder, "cpu")
        return self._decoder(here, on_cpu) if here.is_decoder else self._encoder(here, on_cpu)

    def _decoder(self, here: GraphSession, on_cpu: GraphSession) -> dict:
        windows, protocol = cut(evaluation_text(), here.tokenizer(), window=self._length, limit=self._windows)
        found: dict[str, object] = {"protocol": protocol.sentence()}
        if self._remembered is not None:
            said = asdict(compare(self._remembered, here, windows))
            found["cpu_fp32"] = {key: said[key] for key in _KEPT}
        few = windows[0].ids[:, :_FEW]  # float16 is slow on the CPU
        said = asdict(compare(on_cpu, here, [Window(few, 1)]))
        return found | {"itself_on_cpu": {key: said[key] for key in _KEPT}}

    def _encoder(self, here: GraphSession, on_cpu: GraphSession) -> dict:
        work = batches(sentences(_SENTENCES), here.tokenizer(), _LONGEST)
        found: dict[str, object] = {"protocol": f"{_SENTENCES} sentences, cosine of masked means"}
        if self._reference is not None:
            found["cpu_fp32"] = asdict(compare_encoders(self._reference, here, work))
        return found | {"itself_on_cpu": asdict(compare_encoders(on_cpu, here, work))}


if __name__ == "__main__":
    reference, windows, length = sys.argv[1:]
    with tempfile.TemporaryDirectory() as temp:
        folder = None if reference == "none" else Path(reference)
        serve(Judge(folder, int(windows), int(length), Path(temp)).answer)
