"""Libraries are found in pip's packages and by the loader, loaded in order, and named when missing."""

import sys

import onnxruntime
import pytest
from elf_files import write_library
from gpu_hosts import CUDA, LIBRARIES, TENSORRT, Loader, make_host, whole_host, write

from onnxforge.runtimes import gpu_libraries
from onnxforge.runtimes.check_libraries import check_libraries, packages_for
from onnxforge.runtimes.gpu_libraries import linked, load_libraries, prepare

PIP = "site/nvidia/cu13/lib"


def test_what_the_provider_links_to_is_read_from_its_library(tmp_path):
    host = make_host(tmp_path)
    assert linked(host, CUDA) == LIBRARIES, "of a wheel that is not there yet"
    provider = host.package / "capi" / "libonnxruntime_providers_cuda.so"
    write_library(provider, ["libcublas.so.14", "libcuda.so.1", "libc.so.6"])
    assert linked(host, CUDA) == ("libcublas.so.14",)


def test_pips_packages_come_first_and_what_a_library_needs_before_it(tmp_path):
    write_library(tmp_path / PIP / "libcublas.so.13", ["libcublasLt.so.13", "libc.so.6"])
    write_library(tmp_path / PIP / "libcublasLt.so.13", ["libcublas.so.13"])
    loader = Loader(dict.fromkeys(LIBRARIES, object()))
    found = load_libraries(make_host(tmp_path, loader), ("libcublas.so.13", "libcudart.so.13"))
    folder = tmp_path / PIP
    assert loader.opened == [f"{folder}/libcublasLt.so.13", f"{folder}/libcublas.so.13", "libcudart.so.13"]
    assert [(item.path, item.problem) for item in found] == [(f"{folder}/libcublas.so.13", ""), ("", "")]


def test_one_in_pips_packages_that_does_not_load_leaves_the_loaders(tmp_path):
    path = str(write(tmp_path, f"{PIP}/libcudart.so.13", "no library"))
    broken = {path: f"{path}: file too short"}
    loader = Loader({"libcudart.so.13": object()}, broken)
    assert load_libraries(make_host(tmp_path, loader), ["libcudart.so.13"])[0].problem == ""
    check = check_libraries(make_host(tmp_path, Loader({}, broken)), CUDA)[3]
    assert check.found == f"{path} does not load: {path}: file too short."


def test_older_layouts_and_other_folders_are_looked_into(tmp_path):
    write_library(tmp_path / "user/nvidia/cudnn/lib/libcudnn.so.9")
    write_library(tmp_path / "site/tensorrt_libs/libnvinfer.so.10")
    host = make_host(tmp_path, folders=(tmp_path / "site", tmp_path / "user"))
    found = load_libraries(host, ("libcudnn.so.9", "libnvinfer.so.10"))
    assert [item.problem for item in found] == ["", ""]


def test_where_the_loader_found_it(tmp_path):
    mapped = "7f00-7f01 r-xp 00000000 fe:00 12   /usr/local/cuda/lib64/libcudart.so.13.0.88"
    write(tmp_path, "proc/self/maps", f"7f02-7f03 rw-p 0 0:0 0\n{mapped}\n")
    host = make_host(tmp_path, Loader(dict.fromkeys(LIBRARIES, object())))
    found = {check.name: check.found for check in check_libraries(host, CUDA)}
    assert found["libcudart.so.13"] == "/usr/local/cuda/lib64/libcudart.so.13.0.88."
    assert found["libcublas.so.13"] == "The loader has it."


def test_all_that_is_missing_comes_with_one_command(tmp_path):
    host = make_host(tmp_path, Loader({"libcudart.so.13": object()}))
    checks = check_libraries(host, CUDA)
    assert [check.held for check in checks] == [False, False, False, True, None]
    assert {check.remedy for check in checks[:3]} == {"pip install nvidia-cublas~=13.0 nvidia-curand~=10.0"}
    assert packages_for(host, checks) == ("nvidia-cublas~=13.0", "nvidia-curand~=10.0")
    assert all(check.held for check in check_libraries(whole_host(tmp_path), CUDA))


def test_a_library_that_lacks_another_is_told_from_a_missing_one(tmp_path):
    broken = {"libcublas.so.13": "libfoo.so.1: cannot open shared object file: No such file or directory"}
    check = check_libraries(make_host(tmp_path, Loader({}, broken)), CUDA)[1]
    assert "Does not load: libfoo.so.1" in check.found


def test_tensorrt_adds_its_own(tmp_path):
    checks = check_libraries(make_host(tmp_path), TENSORRT, LIBRARIES)
    assert [check.name for check in checks] == ["libnvinfer.so.10", "libnvonnxparser.so.10", "libcudnn.so.9"]
    assert checks[0].remedy == "pip install nvidia-cudnn-cu13~=9.0 tensorrt-cu13==10.16.1.11"


def test_tensorrt_11_is_not_what_the_wheel_links_to(tmp_path):
    write_library(tmp_path / "site/tensorrt_libs/libnvinfer.so.11")
    checks = check_libraries(make_host(tmp_path), TENSORRT, LIBRARIES)
    assert "needs libnvinfer.so.10; installed is libnvinfer.so.11" in checks[0].found
    assert checks[0].remedy.startswith("pip uninstall -y tensorrt ")
    assert checks[0].remedy.endswith("tensorrt-cu13==10.16.1.11")
    assert "pip install tensorrt" not in checks[1].found


def test_another_cuda_has_other_packages(tmp_path):
    host = make_host(tmp_path, cuda="12.8")
    write_library(host.package / "capi" / "libonnxruntime_providers_cuda.so", ["libcublas.so.12"])
    check, _ = check_libraries(host, CUDA)
    assert "Install CUDA 12" in check.remedy
    assert packages_for(host, [check]) == ()


def test_elsewhere_than_on_linux_libraries_are_not_looked_at(tmp_path):
    (check,) = check_libraries(make_host(tmp_path, system="Windows"), CUDA)
    assert check.held is None


def test_the_cpus_provider_needs_nothing(monkeypatch):
    monkeypatch.setattr(gpu_libraries, "this_host", lambda: pytest.fail("looked at the machine"))
    prepare("CPUExecutionProvider")


def test_a_session_on_a_gpu_is_prepared_once(tmp_path, monkeypatch):
    host = whole_host(tmp_path)
    monkeypatch.setattr(gpu_libraries, "this_host", lambda: host)
    gpu_libraries._prepare.cache_clear()
    for _ in range(2):
        prepare(CUDA)
    asked_for = "libcudnn.so.9"  # not linked to, and looked for by name when a kernel needs it
    assert sorted(host.open_library.opened) == sorted([*LIBRARIES, asked_for])
    monkeypatch.setattr(gpu_libraries, "this_host", lambda: make_host(tmp_path, providers=()))
    prepare(TENSORRT)
    gpu_libraries._prepare.cache_clear()


def test_windows_has_onnxruntime_load_them_and_keeps_stdout_clean(tmp_path, monkeypatch, capsys):
    calls = []

    def preload():
        calls.append(True)
        print("Failed to load cublas64_13.dll")

    monkeypatch.setattr(gpu_libraries, "this_host", lambda: make_host(tmp_path, system="Windows"))
    monkeypatch.setattr(onnxruntime, "preload_dlls", preload, raising=False)
    gpu_libraries._prepare.cache_clear()
    prepare(CUDA)
    gpu_libraries._prepare.cache_clear()
    assert calls == [True]
    assert capsys.readouterr().out == ""


@pytest.mark.skipif(sys.platform != "linux", reason="names of Linux")
def test_the_real_loader_speaks_as_the_checks_expect(tmp_path):
    from onnxforge.runtimes.gpu_host import this_host

    (library,) = load_libraries(this_host(), ["libonnxforge-has-no-such.so.13"])
    assert library.problem.startswith("libonnxforge-has-no-such.so.13: cannot open")
