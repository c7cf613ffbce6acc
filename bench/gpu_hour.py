"""What all parts of `gpu.py` share: the device, the time that is left, artifacts, and what was measured."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from gpu_hollow import HOLLOW, fill
from gpu_models import CUDA_TARGETS
from gpu_process import WorkerFailed, library_path
from gpu_rows import Rows

from onnxforge.models.demo import DEMOS
from onnxforge.runtimes.artifact import read_manifest, write_manifest

_BUILT_HERE = ("cpu-fp32", "cuda-fp16", "cuda-int8", "trt-int8")
"""Targets of the demo models that take seconds; the others run the model on calibration text for minutes."""
_RESERVE = 10.0
"""Seconds kept for the tables."""


@dataclass
class Hour:
    """One run of the bench."""

    device: str
    """cuda, or cpu for a rehearsal."""
    rows: Rows
    deadline: float
    """By `time.monotonic`."""
    work: Path
    """Where artifacts are built and filled."""
    carried: Path | None
    """Artifacts that were brought along, ``MODEL/TARGET``."""
    builds: bool = True
    quick: bool = False
    said: list[str] = field(default_factory=list)
    """What was left out, and why."""

    def left(self) -> float:
        """Seconds until measuring ends."""
        return self.deadline - time.monotonic() - _RESERVE

    def over(self) -> bool:
        """Whether nothing more is to be begun."""
        return self.left() <= 0

    def say(self, line: str) -> None:
        """Something to know about the result; printed at once."""
        self.said.append(line)
        print(line, file=sys.stderr, flush=True)

    def tell(self, line: str) -> None:
        """Where the bench is."""
        print(f"[{max(self.left(), 0):4.0f} s left] {line}", file=sys.stderr, flush=True)

    def artifact(self, model: str, target: str) -> Path | None:
        """The folder: built before, carried, or built now; None, and it is said why, if none of these."""
        ready, brought = self.work / model / target, (self.carried or self.work) / model / target
        if (ready / "artifact.json").is_file():
            return ready
        if (brought / HOLLOW).is_file():
            self.tell(f"filling {model} {target}")
            fill(brought, ready)
            return ready
        if (brought / "artifact.json").is_file():
            return brought
        if not self.builds or (model in DEMOS and target not in _BUILT_HERE):
            self.say(f"{model} {target}: left out, there is no artifact; bring one with --artifacts.")
            return None
        self.tell(f"building {model} {target}")
        try:
            self._build(model, [target] if model in DEMOS else list(CUDA_TARGETS))
        except WorkerFailed as failure:
            self.say(f"{model} {target}: left out, it was not built: {failure}")
            return None
        return ready

    def _build(self, model: str, targets: list[str]) -> None:
        """In a process of its own, which takes torch's memory with it. One export serves all targets."""
        script = Path(__file__).with_name("gpu_models.py")
        command = [sys.executable, str(script), model, "--into", str(self.work), "--targets", *targets]
        surroundings = {**os.environ, "LD_LIBRARY_PATH": library_path()}
        started, limit = time.perf_counter(), max(self.left(), 1.0)
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, env=surroundings, timeout=limit
            )
        except subprocess.TimeoutExpired:
            raise WorkerFailed("no time was left for it") from None
        if done.returncode:
            raise WorkerFailed(" / ".join(done.stderr.strip().splitlines()[-2:])[-300:])
        self.rows.add(
            f"build/{model}/{' '.join(targets)}",
            model=model,
            targets=targets,
            seconds=time.perf_counter() - started,
            said=done.stdout.strip().splitlines(),
        )

    def variant(self, folder: Path, name: str, session: Mapping[str, str]) -> Path:
        """The artifact with other session options, beside those that were built; weights are linked."""
        into = self.work / folder.parent.name / name
        if not (into / "artifact.json").is_file():
            shutil.copytree(folder, into, dirs_exist_ok=True, copy_function=_linked)
            (into / "artifact.json").unlink()  # a link: writing through it would change the artifact
            write_manifest(into, replace(read_manifest(folder), session=dict(session)))
        return into


def _linked(source: str, target: str) -> None:
    """ONNX Runtime follows no symbolic link out of a model's folder: a hard one, or a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
