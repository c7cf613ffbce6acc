"""Which providers a session asks for, in which order, and with which options."""

import dataclasses
from pathlib import Path

import pytest

from onnxforge.runtimes.artifact import Manifest
from onnxforge.runtimes.session import options_for, provider_chain

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
OPTIONS = {"trt_engine_cache_enable": "1", "trt_profile_max_shapes": "input_ids:64x512"}


def manifest(provider: str, options: dict[str, str]) -> Manifest:
    fields = {field.name: "" for field in dataclasses.fields(Manifest)}
    return Manifest(**(fields | {"provider": provider, "provider_options": options}))


@pytest.mark.parametrize(
    ("provider", "available", "chain"),
    [
        (CPU, [CPU], [CPU]),
        (CUDA, [TENSORRT, CUDA, CPU], [CUDA, CPU]),
        (TENSORRT, [TENSORRT, CUDA, CPU], [TENSORRT, CUDA, CPU]),
        (TENSORRT, [TENSORRT, CPU], [TENSORRT, CPU]),
        ("DmlExecutionProvider", ["DmlExecutionProvider", CPU], ["DmlExecutionProvider", CPU]),
    ],
)
def test_who_takes_what_a_provider_has_no_kernel_for(provider, available, chain):
    assert provider_chain(provider, available) == chain


def test_options_are_for_the_provider_that_they_were_written_for():
    assert options_for(CPU, manifest(TENSORRT, OPTIONS)) == {}
    assert options_for(CUDA, manifest(CUDA, {})) == {}


def test_engines_are_kept_in_the_users_cache(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = options_for(TENSORRT, manifest(TENSORRT, OPTIONS))
    kept = tmp_path / "onnxforge" / "tensorrt"
    assert found == OPTIONS | {"trt_engine_cache_path": str(kept)}
    assert kept.is_dir()
    elsewhere = OPTIONS | {"trt_engine_cache_path": "/mine"}
    assert options_for(TENSORRT, manifest(TENSORRT, elsewhere)) == elsewhere
