"""The checks in their order, and the two sentences that a refused session shows."""

from pathlib import Path

import onnxruntime
import pytest
from gpu_hosts import (
    CPU,
    CUDA,
    CUDNN,
    LIBRARIES,
    TENSORRT,
    FakeDriver,
    Loader,
    make_host,
    whole_host,
    write_distribution,
)
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidProtobuf

from onnxforge.runtimes import diagnosis
from onnxforge.runtimes.diagnosis import diagnose, explain, short_reason, works
from onnxforge.runtimes.errors import ArtifactError, RequestError
from onnxforge.runtimes.gpu_check import first_failed
from onnxforge.runtimes.session import open_session

FAILURE = (
    "/src/cuda_call.cc:154 [with ERRTYPE = cudaError] CUDA failure 35: CUDA driver version is insufficient "
    "for CUDA runtime version ; GPU=-1 ; hostname=vm ; expr=cudaSetDevice(info_.device_id);"
)
TENSORRT_SAYS = "RegisterTensorRTPluginsAsCustomOps Please install TensorRT libraries as mentioned"


def test_all_in_order(tmp_path):
    checks = diagnose(CUDA, lambda: "", whole_host(tmp_path))
    names = ["GPU", "driver", "compute capability", "wheel", *LIBRARIES, CUDNN, "starts"]
    assert [check.name for check in checks] == names
    assert all(check.held for check in checks)
    assert first_failed(checks) is None
    assert works(checks)


def test_tensorrt_needs_what_cuda_needs_and_more(tmp_path):
    checks = diagnose(TENSORRT, lambda: "no parser", whole_host(tmp_path))
    assert [check.name for check in checks][-4:] == [
        CUDNN,
        "libnvinfer.so.10",
        "libnvonnxparser.so.10",
        "starts",
    ]
    assert first_failed(checks).name == "libnvinfer.so.10"


def test_cudnn_is_told_of_cuda_and_required_by_tensorrt(tmp_path):
    loader = Loader({"libcuda.so.1": FakeDriver(), **dict.fromkeys(LIBRARIES, object())})
    found = {check.name: check for check in diagnose(CUDA, lambda: "", make_host(tmp_path, loader))}
    assert found[CUDNN].held is None
    assert "Encoders fail without it" in found[CUDNN].found
    assert found[CUDNN].remedy == "pip install nvidia-cudnn-cu13~=9.0"
    named = [
        check for check in diagnose(TENSORRT, lambda: "", make_host(tmp_path, loader)) if check.name == CUDNN
    ]
    assert [check.held for check in named] == [False]


def test_without_the_provider_no_session_is_tried(tmp_path):
    checks = diagnose(CUDA, lambda: pytest.fail("tried"), whole_host(tmp_path, providers=(CPU,)))
    assert first_failed(checks).name == "wheel"
    assert checks[-1].held is None
    assert not works(checks)


def test_a_session_that_starts_has_the_last_word(tmp_path):
    host = make_host(tmp_path, Loader({"libcuda.so.1": FakeDriver()}))
    checks = diagnose(CUDA, lambda: "", host)
    assert first_failed(checks).name == "libcublasLt.so.13"
    assert works(checks)


def test_a_machine_without_a_gpu_is_not_told_to_install_a_wheel(tmp_path):
    said = explain(CUDA, "offers CPU", make_host(tmp_path, providers=(CPU,)))
    assert said.startswith("No NVIDIA card, no driver (libcuda.so.1). Use a machine")
    assert "pip" not in said


def test_the_wheel_brings_the_libraries_that_are_missing(tmp_path):
    loader = Loader({"libcuda.so.1": FakeDriver(), "libcudart.so.13": object(), "libcurand.so.10": object()})
    write_distribution(tmp_path / "site", "onnxruntime", "1.31.1")
    said = explain(CUDA, "", make_host(tmp_path, loader, providers=(CPU,), cuda=""))
    assert said.endswith(
        'pip uninstall -y onnxruntime && pip install "onnxruntime-gpu>=1.31" nvidia-cublas~=13.0.'
    )


def test_a_missing_library_is_named(tmp_path):
    loader = Loader({"libcuda.so.1": FakeDriver(), **dict.fromkeys(LIBRARIES[1:], object())})
    said = explain(CUDA, "", make_host(tmp_path, loader))
    assert said.startswith("libcublasLt.so.13: Neither in Python's packages")
    assert said.endswith("pip install nvidia-cublas~=13.0.")


def test_where_nothing_is_found_wrong_onnx_runtime_is_quoted(tmp_path):
    said = explain(CUDA, FAILURE, whole_host(tmp_path))
    assert said == (
        "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version. "
        "GPU, driver, wheel and libraries look right."
    )
    assert explain("DmlExecutionProvider", "It offers CPU.") == "It offers CPU."


@pytest.mark.parametrize(
    ("text", "short"),
    [
        (FAILURE, "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version."),
        (
            "Failed to load library x.so with error: libcublas.so.13: not found\n more",
            "libcublas.so.13: not found.",
        ),
        ("plain.", "plain."),
    ],
)
def test_reasons_are_short(text, short):
    assert short_reason(text) == short


@pytest.fixture
def gpu_wheel(monkeypatch, tmp_path):
    """This ONNX Runtime seems to have the CUDA provider, on a machine without a GPU."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr("onnxforge.runtimes.session.prepare", lambda provider: None)
    monkeypatch.setattr(diagnosis, "this_host", lambda: make_host(tmp_path))


class OnTheCpu:
    """A session that ONNX Runtime opened on another provider than asked for."""

    def get_providers(self):
        return [CPU]


def raises(error):
    def opened(*arguments, **options):
        assert options["enable_fallback"] is False
        raise error

    return opened


@pytest.mark.parametrize(
    "opened", [lambda *a, **b: OnTheCpu(), raises(RuntimeError(FAILURE)), raises(RuntimeError(TENSORRT_SAYS))]
)
def test_a_session_that_does_not_start_says_what_is_missing_and_where_to_look(gpu_wheel, monkeypatch, opened):
    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    with pytest.raises(RequestError) as caught:
        open_session(Path("model.onnx"), CUDA, {}, None)
    assert str(caught.value) == (
        "model.onnx: needs CUDAExecutionProvider, which does not work here. No NVIDIA card, no driver "
        "(libcuda.so.1). Use a machine with an NVIDIA GPU, or compile for a cpu target. "
        "See `onnxforge doctor`, or pass provider='cpu' if the artifact was compiled for it."
    )


def test_a_broken_graph_is_not_blamed_on_cuda(gpu_wheel, monkeypatch):
    monkeypatch.setattr(onnxruntime, "InferenceSession", raises(InvalidProtobuf("Protobuf parsing failed.")))
    with pytest.raises(ArtifactError, match="Protobuf parsing failed"):
        open_session(Path("model.onnx"), CUDA, {}, None)
