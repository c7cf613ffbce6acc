"""The peers' own forms of a model, made once by the peers' own converters from the same weights, and kept."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hf_folder_from_source import write_hf_folder
from peers_environments import Environments, run_or_stop

from onnxforge.compiler.eval_text import calibration_text, sentences
from onnxforge.compiler.proof_session import threads

HERE = Path(__file__).parent
CALIBRATION_SENTENCES = 200


@dataclass(frozen=True)
class Builds:
    """Converted forms of ``model`` (anything that onnxforge opens) in ``work``."""

    model: str
    work: Path
    environments: Environments

    def source(self) -> Path:
        """The model as a Hugging Face folder."""
        return self._once("hf", lambda out: write_hf_folder(self.model, out))

    def genai(self, precision: str, last_logits: bool = False) -> Path:
        """Its model builder's folder, with our number of threads. ``last_logits``: of the last token only."""

        def build(out: Path) -> None:
            command = [self.environments.python("genai"), "-m", "onnxruntime_genai.models.builder"]
            command += ["-i", self.source(), "-o", out, "-p", precision, "-e", "cpu", "-c", out / "cache"]
            command += ["--extra_options", "prune_lm_head=true"] if last_logits else []
            run_or_stop(command, f"genai's model builder, {precision}")
            shutil.rmtree(out / "cache", ignore_errors=True)
            path = out / "genai_config.json"
            config = json.loads(path.read_text())
            decoder = config["model"]["decoder"]
            decoder.setdefault("session_options", {})["intra_op_num_threads"] = threads()
            path.write_text(json.dumps(config, indent=2))

        return self._once(f"genai-{precision}" + ("-last" if last_logits else ""), build)

    def gguf(self, source: Path, kind: str) -> Path:
        """``source`` requantized to ``kind`` (q8_0, q4_0) by llama.cpp."""
        code = "import sys, speculation_llama as s; s.requantized(sys.argv[1], sys.argv[2], sys.argv[3])"

        def build(out: Path) -> None:
            command = [self.environments.python("llama"), "-c", code, source.resolve(), kind, out.resolve()]
            run_or_stop(command, f"llama.cpp's quantizer, {kind}", HERE)

        return self._once(f"{source.stem}-{kind}.gguf", build)

    def openvino(self, weights: str, task: str = "text-generation-with-past") -> Path:
        """`optimum-cli export openvino` with ``weights`` int8 (asymmetric, per channel), int4 or fp32."""

        def build(out: Path) -> None:
            command = [self._optimum(), "export", "openvino", "-m", self.source(), "--task", task]
            command += ["--library", "transformers", "--weight-format", weights, out]
            run_or_stop(command, f"optimum-cli export openvino, {weights}")

        return self._once(f"openvino-{weights}", build)

    def openvino_encoder_int8(self, longest: int) -> Path:
        """Weights and activations in int8, calibrated by NNCF on our calibration text: the .xml."""

        def build(out: Path) -> None:
            out.mkdir()
            texts = out / "texts.json"
            texts.write_text(json.dumps(sentences(CALIBRATION_SENTENCES, calibration_text())))
            script, model = HERE / "peers_quantize_encoder.py", self.openvino_encoder("fp32")
            tokenizer = self.source() / "tokenizer.json"
            command = [self.environments.python("optimum"), script, model, tokenizer, texts]
            run_or_stop([*command, longest, out / "openvino_model.xml"], "nncf.quantize")

        return self._once("openvino-full-int8", build) / "openvino_model.xml"

    def openvino_encoder(self, weights: str) -> Path:
        """The .xml of the encoder."""
        return self.openvino(weights, "feature-extraction") / "openvino_model.xml"

    def optimum_encoder(self) -> Path:
        """The .onnx that `optimum-cli export onnx` writes, fp32."""

        def build(out: Path) -> None:
            command = [self._optimum(), "export", "onnx", "-m", self.source(), "--task", "feature-extraction"]
            run_or_stop([*command, "--library", "transformers", out], "optimum-cli export onnx")

        return self._once("optimum-fp32", build) / "model.onnx"

    def optimum_encoder_int8(self) -> Path:
        """The same, quantized dynamically with optimum's configuration for AVX512-VNNI."""

        def build(out: Path) -> None:
            command = [self._optimum(), "onnxruntime", "quantize", "--avx512_vnni"]
            command += ["--onnx_model", self.optimum_encoder().parent, "-o", out]
            run_or_stop(command, "optimum-cli onnxruntime quantize")

        return self._once("optimum-int8", build) / "model_quantized.onnx"

    def _optimum(self) -> Path:
        return Path(self.environments.python("optimum")).with_name("optimum-cli")

    def _once(self, name: str, build: Callable[[Path], object]) -> Path:
        """What ``build`` writes; under its final name only when it is whole."""
        folder = self.work / re.sub(r"[^\w.-]+", "_", self.model)
        done, part = folder / name, folder / f"part-{name}"
        if not done.exists():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(part, ignore_errors=True)
            part.unlink(missing_ok=True)
            print(f"building {done}", flush=True)
            build(part)
            part.rename(done)
        return done
