"""Which of GPU, driver and compute capability is said to be missing, and what is said to do about it."""

import pytest
from gpu_hosts import H100, FakeDriver, Loader, load_module, make_host, plug_in, write

from onnxforge.runtimes.check_gpu import check_gpu
from onnxforge.runtimes.gpu_check import first_failed
from onnxforge.runtimes.nvidia_driver import Gpu, ask_driver


def host_with(root, driver=None, broken=None, **changes):
    libraries = {} if driver is None else {"libcuda.so.1": driver, "nvcuda.dll": driver}
    return make_host(root, Loader(libraries, broken), **changes)


def failed(host):
    """Name, finding and remedy of the first that did not hold; one at most fails, the rest is not asked."""
    checks = check_gpu(host)
    assert sum(check.held is False for check in checks) == 1
    first = first_failed(checks)
    return first.name, first.found, first.remedy


def test_all_is_well(tmp_path):
    load_module(tmp_path)
    checks = check_gpu(host_with(tmp_path, FakeDriver()))
    assert [(check.name, check.held) for check in checks] == [
        ("GPU", True),
        ("driver", True),
        ("compute capability", True),
    ]
    assert checks[0].found == "NVIDIA H100 80GB HBM3, 80 GiB, compute capability 9.0."
    assert checks[1].found == "For up to CUDA 13.0, driver 580.65.06."


def test_a_machine_without_a_gpu(tmp_path):
    plug_in(tmp_path, vendor="0x1002")
    name, found, remedy = failed(host_with(tmp_path))
    assert (name, found) == ("GPU", "No NVIDIA card, no driver (libcuda.so.1).")
    assert "cpu target" in remedy


def test_an_nvidia_network_card_is_no_gpu(tmp_path):
    plug_in(tmp_path, kind="0x020000")
    assert failed(host_with(tmp_path))[0] == "GPU"


def test_a_card_without_a_driver(tmp_path):
    plug_in(tmp_path)
    name, found, remedy = failed(host_with(tmp_path))
    assert name == "driver"
    assert "no driver for it" in found
    assert "580 or newer" in remedy


def test_a_kernel_module_without_the_drivers_library(tmp_path):
    plug_in(tmp_path)
    load_module(tmp_path)
    name, found, remedy = failed(host_with(tmp_path))
    assert name == "driver"
    assert "driver 580.65.06 runs, and there is no libcuda.so.1" in found
    assert "libnvidia-compute-580" in remedy


@pytest.mark.parametrize(
    ("mark", "text"),
    [(".dockerenv", ""), ("run/.containerenv", ""), ("proc/1/cgroup", "0::/kubepods/burstable/pod1")],
)
def test_a_container_that_was_not_given_the_gpu(tmp_path, mark, text):
    load_module(tmp_path)
    write(tmp_path, mark, text)
    name, found, remedy = failed(host_with(tmp_path))
    assert name == "GPU"
    assert "this container has no libcuda.so.1" in found
    assert "--gpus all" in remedy


def test_no_device_file_though_the_driver_runs(tmp_path):
    load_module(tmp_path)
    name, found, remedy = failed(host_with(tmp_path, FakeDriver(code=100)))
    assert name == "GPU"
    assert "no /dev/nvidia0 here" in found
    assert "--gpus all" in remedy


def test_a_module_that_is_not_loaded(tmp_path):
    plug_in(tmp_path)
    name, _, remedy = failed(host_with(tmp_path, FakeDriver(code=100)))
    assert name == "driver"
    assert "modprobe nvidia" in remedy


@pytest.mark.parametrize("value", ["", "-1", "3", "GPU-0a1b"])
def test_devices_hidden_by_a_variable(tmp_path, value):
    load_module(tmp_path)
    write(tmp_path, "dev/nvidia0")
    host = host_with(tmp_path, FakeDriver(code=100), variables={"CUDA_VISIBLE_DEVICES": value})
    name, found, remedy = failed(host)
    assert name == "GPU"
    assert f"CUDA_VISIBLE_DEVICES is {value!r}" in found
    assert "unset it" in remedy


@pytest.mark.parametrize("driver", [FakeDriver(code=100), FakeDriver(gpus=())])
def test_a_variable_that_hides_nothing_is_not_blamed(tmp_path, driver):
    load_module(tmp_path)
    write(tmp_path, "dev/nvidia0")
    host = host_with(tmp_path, driver, variables={"CUDA_VISIBLE_DEVICES": "0,1"})
    assert failed(host)[:2] == ("GPU", "The NVIDIA driver lists no GPU.")


@pytest.mark.parametrize(
    ("code", "found", "remedy"),
    [
        (34, "stand-in for linking", "stubs"),
        (802, "not ready", "fabricmanager"),
        (803, "different versions", "Restart"),
        (804, "compatibility package", "cuda-compat"),
        (999, "does not say why", "nvidia_uvm"),
        (214, "refuses to start", "code of cuInit"),
    ],
)
def test_what_cuinit_says(tmp_path, code, found, remedy):
    load_module(tmp_path, "550.54.14")
    name, said, advised = failed(host_with(tmp_path, FakeDriver(code=code)))
    assert name == "driver"
    assert found in said
    assert f"(cuInit: {code}, driver 550.54.14)" in said
    assert remedy in advised


def test_a_driver_for_an_older_cuda(tmp_path):
    load_module(tmp_path, "550.54.14")
    name, found, remedy = failed(host_with(tmp_path, FakeDriver(cuda=12040)))
    assert name == "driver"
    assert (
        found == "The NVIDIA driver is for up to CUDA 12.4, driver 550.54.14; onnxruntime-gpu needs CUDA 13."
    )
    assert "580 or newer" in remedy
    assert check_gpu(host_with(tmp_path, FakeDriver(cuda=12040), cuda="12.8"))[1].held


def test_a_driver_that_does_not_say_its_version_is_not_taken_for_new(tmp_path):
    assert failed(host_with(tmp_path, FakeDriver(says_version=False)))[0] == "driver"


def test_a_library_that_is_not_the_drivers(tmp_path):
    name, found, _ = failed(host_with(tmp_path, object()))
    assert name == "driver"
    assert "libcuda.so.1 is not the NVIDIA driver's" in found


def test_a_driver_library_that_does_not_load(tmp_path):
    broken = {"libcuda.so.1": "libnvidia-tls.so: cannot open shared object file: No such file or directory"}
    name, found, _ = failed(host_with(tmp_path, broken=broken))
    assert name == "driver"
    assert "libnvidia-tls.so" in found


@pytest.mark.parametrize(
    ("capability", "held"),
    [
        ((7, 0), False),
        ((7, 5), True),
        ((8, 0), True),
        ((8, 7), True),
        ((9, 0), True),
        ((10, 0), False),
        ((12, 0), True),
        ((12, 1), False),
    ],
)
def test_compute_capabilities_of_the_wheel(tmp_path, capability, held):
    host = host_with(tmp_path, FakeDriver(gpus=(Gpu("X", 2**30, capability),)))
    check = check_gpu(host)[2]
    assert (check.name, check.held) == ("compute capability", held)


def test_of_an_unknown_wheel_only_cudas_floor_is_known(tmp_path):
    for version, system in (("1.32.0", "Linux"), ("1.31.1", "Windows")):
        blackwell = FakeDriver(gpus=(Gpu("X", 2**30, (10, 0)),))
        assert check_gpu(host_with(tmp_path, blackwell, version=version, system=system))[2].held
        volta = FakeDriver(gpus=(Gpu("X", 2**30, (7, 0)),))
        assert "Turing" in failed(host_with(tmp_path, volta, version=version, system=system))[1]


def test_the_first_gpu_counts_and_a_better_one_is_named(tmp_path):
    old = Gpu("Quadro P400", 2 * 2**30, (6, 1))
    assert (
        "CUDA_VISIBLE_DEVICES=1 (NVIDIA H100" in failed(host_with(tmp_path, FakeDriver(gpus=(old, H100))))[2]
    )
    assert check_gpu(host_with(tmp_path, FakeDriver(gpus=(H100, old))))[2].held


def test_a_system_without_cuda(tmp_path):
    assert (
        failed(host_with(tmp_path, system="Darwin", machine="arm64"))[1] == "CUDA does not exist for Darwin."
    )


def test_windows_is_asked_through_its_own_library(tmp_path):
    assert [check.held for check in check_gpu(host_with(tmp_path, FakeDriver(), system="Windows"))] == [
        True
    ] * 3
    assert failed(host_with(tmp_path, system="Windows"))[0] == "GPU"


def test_no_more_gpus_are_listed_than_anybody_has(tmp_path):
    driver = FakeDriver(gpus=(H100,) * 100)
    assert len(ask_driver(Loader({"libcuda.so.1": driver}), "Linux").gpus) == 64
