"""Which distribution of ONNX Runtime is installed, and which commands replace it."""

import pytest
from gpu_hosts import CPU, CUDA, make_host, write, write_distribution

from onnxforge.runtimes.check_wheel import check_wheel

CPU_ONLY = {"providers": ("AzureExecutionProvider", CPU), "cuda": ""}


def test_the_gpu_wheel_alone(tmp_path):
    write_distribution(tmp_path / "site", "onnxruntime-gpu", "1.31.1")
    write_distribution(tmp_path / "site", "onnxruntime-genai-cuda", "0.18.0", top="onnxruntime_genai")
    check = check_wheel(make_host(tmp_path), CUDA, ())
    assert (check.held, check.found, check.remedy) == (
        True,
        "onnxruntime-gpu 1.31.1, built for CUDA 13.0.",
        "",
    )


def test_the_cpu_wheel_is_replaced_and_what_cuda_lacks_comes_with_it(tmp_path):
    write_distribution(tmp_path / "site", "onnxruntime", "1.31.1")
    check = check_wheel(make_host(tmp_path, **CPU_ONLY), CUDA, ("nvidia-cublas~=13.0",))
    assert check.held is False
    assert check.found.startswith("onnxruntime 1.31.1 has no CUDAExecutionProvider (it has AzureExecution")
    install = 'pip install "onnxruntime-gpu>=1.31" nvidia-cublas~=13.0'
    assert check.remedy == f"Replace it: pip uninstall -y onnxruntime && {install}"


def test_two_distributions_of_which_the_cpus_came_last(tmp_path):
    for name in ("onnxruntime", "onnxruntime-gpu"):
        write_distribution(tmp_path / "site", name, "1.31.1")
    check = check_wheel(make_host(tmp_path, **CPU_ONLY), CUDA, ())
    assert check.held is False
    assert "two distributions of one module" in check.found
    assert "pip uninstall -y onnxruntime onnxruntime-gpu && pip install" in check.remedy


def test_two_distributions_that_still_work_are_warned_of(tmp_path):
    for name in ("onnxruntime", "onnxruntime-gpu"):
        write_distribution(tmp_path / "site", name, "1.31.1")
    check = check_wheel(make_host(tmp_path), CUDA, ())
    assert check.held is True
    assert "breaks both" in check.found
    assert check.remedy.startswith("Have only one: pip uninstall -y onnxruntime onnxruntime-gpu && ")


def test_a_distribution_that_names_no_module_is_known_by_its_files(tmp_path):
    site = tmp_path / "site"
    write_distribution(site, "ort-nightly-gpu", "1.32.0", top=None)
    write(site, "ort_nightly_gpu-1.32.0.dist-info/RECORD", "onnxruntime/__init__.py,,\n")
    write_distribution(site, "ort-tools", "1.0", top=None)
    write(site, "ort_tools-1.0.dist-info/RECORD", "ort_tools/__init__.py,,\n")
    assert check_wheel(make_host(tmp_path), CUDA, ()).found == "ort-nightly-gpu 1.32.0, built for CUDA 13.0."


def test_a_module_without_a_distribution_of_its_own(tmp_path):
    check = check_wheel(make_host(tmp_path, **CPU_ONLY), CUDA, ())
    assert "onnxruntime 1.31.1 has no" in check.found


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"system": "Darwin", "machine": "arm64"}, "no onnxruntime-gpu for Darwin on arm64"),
        ({"machine": "aarch64"}, "no onnxruntime-gpu for Linux on aarch64"),
        ({"python": (3, 15)}, "onnxruntime-gpu is for Python 3.11 to 3.14; this is 3.15"),
    ],
)
def test_where_there_is_no_gpu_wheel(tmp_path, changes, found):
    check = check_wheel(make_host(tmp_path, **(CPU_ONLY | changes)), CUDA, ())
    assert check.held is False
    assert found in check.found
    assert "pip" not in check.remedy
    assert check_wheel(make_host(tmp_path, **changes), CUDA, ()).held, "one built from source is as good"
