"""Hub ids, against a loopback server that speaks the part of the hub's API that downloads use."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from hashlib import sha1
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from safetensors.numpy import save

_TOKEN = "hf_" + "t" * 34
_CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "auto_map": {"AutoModel": "evil.Model"},
}


def _repository(value: float) -> dict[str, bytes]:
    return {
        "config.json": json.dumps(_CONFIG).encode(),
        "model.safetensors": save({"w": np.full((2, 3), value, np.float32)}),
        "pytorch_model.bin": b"a pickle",
        "onnx/model.onnx": b"another copy",
        "tokenizer.json": b"{}",
        "1_Pooling/config.json": b"{}",
        "10_Normalize/config.json": b"{}",
        "README.md": b"# prose",
    }


@dataclass
class Hub:
    """What the server holds, and what it was asked."""

    repositories: dict[str, dict[str, dict[str, bytes]]]
    """Files by name, by revision, by repository."""
    url: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Path and Authorization header."""

    def commit(self, name: str, revision: str) -> str:
        return sha1(f"{name}@{revision}".encode()).hexdigest()

    def answer(self, path: str, token: str) -> tuple[int, dict[str, str], bytes]:
        self.requests.append((path, token))
        parts = [unquote(part) for part in path.strip("/").split("/")]
        api = parts[:2] == ["api", "models"]
        parts = parts[2:] if api else parts
        words = 1 if parts[1] in ("revision", "tree", "resolve") else 2
        name = "/".join(parts[:words])
        kind, revision, *inner = parts[words:]
        rest = "/".join(inner)
        if name == "org/gated" and token != f"Bearer {_TOKEN}":
            return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
        if name not in self.repositories:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        revisions = self.repositories[name]
        wanted = next((r for r in revisions if revision in (r, self.commit(name, r))), None)
        if wanted is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        files, commit = revisions[wanted], self.commit(name, wanted)
        if kind == "revision":
            siblings = [{"rfilename": file} for file in files]
            return 200, {}, json.dumps({"id": name, "sha": commit, "siblings": siblings}).encode()
        if kind == "tree":
            rows = [
                {"type": "file", "path": file, "size": len(data), "oid": sha1(data).hexdigest()}
                for file, data in files.items()
            ]
            return 200, {}, json.dumps(rows).encode()
        if rest not in files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
        etag = f'"{sha1(files[rest]).hexdigest()}"'
        return 200, {"ETag": etag, "X-Repo-Commit": commit}, files[rest]


@pytest.fixture
def hub(loopback) -> Hub:
    held = Hub(
        {
            "org/model": {"main": _repository(1.0), "v2": _repository(2.0)},
            "gpt2": {"main": _repository(4.0)},
            "org/gated": {"main": _repository(3.0)},
            "org/pickled": {"main": {"config.json": b"{}", "pytorch_model.bin": b"a pickle"}},
        }
    )

    held.url = loopback(held.answer)
    return held


_SCRIPT = """
import json, sys
from onnxforge.models import SourceError, open_model
for ref in sys.argv[1:]:
    try:
        source = open_model(ref)
        value = float(source.weights["w"].numpy()[0, 0])
        print(json.dumps([value, dict(source.config), sorted(source.sidecars), sorted(source.digests)]))
    except SourceError as error:
        print(json.dumps(str(error)))
"""


def _open(hub: Hub, home: Path, *refs: str, **environment: str) -> list[object]:
    """Open each ref in a fresh process: the hub client reads its environment at import."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    clean |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"}
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, *refs],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_hub_model_is_fetched_whole_once_and_then_read_from_the_cache(hub, tmp_path):
    first, second = _open(hub, tmp_path, "org/model", "org/model@v2", HF_TOKEN=_TOKEN)
    value, config, sidecars, digests = first
    assert (value, second[0]) == (1.0, 2.0)
    assert config == {key: _CONFIG[key] for key in ("model_type", "architectures")}
    modules = ["10_Normalize/config.json", "1_Pooling/config.json"]
    assert sidecars == [*modules, "tokenizer.json"]
    assert digests == [*modules, "config.json", "model.safetensors", "tokenizer.json"]
    assert {token for _, token in hub.requests} == {f"Bearer {_TOKEN}"}
    fetched = {path.rsplit("/", 1)[-1] for path, _ in hub.requests if "/resolve/" in path}
    assert fetched == {"config.json", "model.safetensors", "tokenizer.json"}  # 1_Pooling's is config.json too
    assert not any(name in path for path, _ in hub.requests for name in (".bin", ".onnx", "README"))

    asked = len(hub.requests)
    offline = _open(hub, tmp_path, "org/model", "org/model@v2", "org/gated", HF_HUB_OFFLINE="1")
    assert [answer[0] for answer in offline[:2]] == [1.0, 2.0]
    assert "org/gated is not (completely) in the cache" in offline[2]
    assert "HF_HUB_OFFLINE forbids" in offline[2]
    assert len(hub.requests) == asked


def test_a_model_without_an_organisation_is_found_by_its_bare_name(hub, tmp_path):
    found, misspelt, unreachable = (
        _open(hub, tmp_path / "home", ref, HF_ENDPOINT=url)[0]
        for ref, url in (("gpt2", hub.url), ("minilm-l", hub.url), ("gpt3", "http://127.0.0.1:9"))
    )
    assert found[0] == 4.0
    assert misspelt.startswith("There is no model 'minilm-l'. Did you mean 'minilm-l6'?")
    assert f"minilm-l is not on {hub.url}" in misspelt
    assert unreachable.startswith("There is no model 'gpt3'.")
    assert "http://127.0.0.1:9 cannot be reached" in unreachable


def test_what_the_hub_refuses_is_said_in_one_paragraph(hub, tmp_path):
    missing, revision, gated, pickled = _open(
        hub, tmp_path, "org/absent", "org/model@v9", "org/gated", "org/pickled"
    )
    assert f"org/absent is not on {hub.url}, or is private" in missing
    assert "org/model on" in revision
    assert "has no revision 'v9'" in revision
    assert "is gated" in gated
    assert "HF_TOKEN" in gated
    assert "Its weights are pickles (pytorch_model.bin)" in pickled
    assert not any("\n" in message for message in (missing, revision, gated, pickled))


def test_a_token_opens_a_gated_model(hub, tmp_path):
    assert _open(hub, tmp_path, "org/gated", HF_TOKEN=_TOKEN)[0][0] == 3.0


def test_a_hub_that_cannot_be_reached_is_named(hub, tmp_path):
    (message,) = _open(hub, tmp_path, "org/model", HF_ENDPOINT="http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached" in message
