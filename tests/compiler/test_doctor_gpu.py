"""``doctor`` on CUDA and TensorRT: the checks, what to do first, JSON, exit codes, the child that tries."""

import json
import sys

import pytest

from onnxforge.compiler import cli, gpu_section, provider_child
from onnxforge.compiler.gpu_section import as_facts, lines, to_repair
from onnxforge.compiler.provider_child import why_not_in_a_child
from onnxforge.runtimes.gpu_check import Check

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
GPU = Check("GPU", True, "NVIDIA H100.")
WHEEL = Check("wheel", True, "Two distributions.", "Have only one.")
LIBRARY = Check("libcublas.so.13", False, "Nowhere.", "pip install nvidia-cublas~=13.0")
CUDNN = Check("libcudnn.so.9", None, "Not everything needs it.", "pip install nvidia-cudnn-cu13~=9.0")
SAYS = "from sys import argv; print('ONNX Runtime talks'); "


def starts(held):
    return Check("starts", held, "A session computes on it." if held else "No.", "" if held else "Report it.")


@pytest.fixture
def call(monkeypatch, capsys):
    """Run ``doctor`` where the checks of each provider are given; exit code, stdout, stderr."""

    def run(found, *arguments):
        monkeypatch.setattr(gpu_section, "examine_provider", lambda provider: found[provider])
        code = cli.run_verb("doctor", list(arguments))
        return code, *capsys.readouterr()

    return run


def test_a_page_says_what_holds_and_what_to_do_first():
    page = "\n".join(lines("CUDA", (GPU, WHEEL, LIBRARY, CUDNN, starts(False))))
    assert page.splitlines() == [
        "CUDA",
        "  GPU                    ok  NVIDIA H100.",
        "  wheel                  ok  Two distributions. Have only one.",
        "  libcublas.so.13        NO  Nowhere.",
        "  libcudnn.so.9          -   Not everything needs it. pip install nvidia-cudnn-cu13~=9.0",
        "  starts                 NO  No.",
        "  do first                   pip install nvidia-cublas~=13.0",
    ]


def test_nothing_is_to_be_done_where_a_session_starts():
    checks = (GPU, LIBRARY, starts(True))
    assert to_repair(checks) is None
    assert as_facts(checks)["works"] is True
    assert as_facts(checks)["first"] is None
    assert "do first" not in "\n".join(lines("CUDA", checks))


def test_what_cuda_showed_is_not_told_again_of_tensorrt():
    own = Check("libnvinfer.so.10", False, "Nowhere.", "pip install tensorrt-cu13==10.16.1.11")
    cuda = (GPU, LIBRARY, starts(True))
    page = "\n".join(lines("TensorRT", (GPU, LIBRARY, own, starts(False)), cuda))
    assert "GPU" not in page
    assert "do first                   pip install tensorrt-cu13" in page, "cublas kept nothing from starting"
    broken = (GPU, LIBRARY, starts(False))
    assert to_repair((*broken[:2], own, starts(False)), broken) == LIBRARY


def test_the_whole_page_ends_with_both_and_exits_with_0(call):
    found = {CUDA: (GPU, LIBRARY, starts(False)), TENSORRT: (GPU, LIBRARY, starts(False))}
    code, out, _ = call(found)
    assert code == 0
    assert out.index("versions") < out.index("\nCUDA\n") < out.index("\nTensorRT\n")
    assert "that start" in out


def test_json_has_both_beside_the_facts(call):
    code, out, _ = call({CUDA: (GPU, starts(True)), TENSORRT: (GPU, LIBRARY, starts(False))}, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["CUDA"]["works"] is True
    assert CUDA in found["onnxruntime"]["that start"]
    assert TENSORRT not in found["onnxruntime"]["that start"]
    assert found["TensorRT"]["first"]["remedy"] == "pip install nvidia-cublas~=13.0"
    assert found["TensorRT"]["checks"][0] == {
        "name": "GPU",
        "held": True,
        "found": "NVIDIA H100.",
        "remedy": "",
    }


@pytest.mark.parametrize(("held", "code"), [(True, 0), (False, 2)])
def test_one_provider_decides_the_exit_code(call, held, code):
    found, out, _ = call({CUDA: (GPU, starts(held))}, "--provider", "cuda", "--json")
    assert found == code
    assert list(json.loads(out)) == ["CUDA"]


def test_real_answers_for_the_cpu_and_for_no_provider(capsys):
    assert cli.run_verb("doctor", ["--provider", "cpu"]) == 0
    assert "A session computes on it." in capsys.readouterr().out
    assert cli.run_verb("doctor", ["--provider", "nope"]) == 2
    assert "This ONNX Runtime offers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (SAYS + 'print(\'{"reason": ""}\')', ""),
        (SAYS + 'print(\'{"reason": "no"}\')', "no"),
        (
            "import sys; sys.stderr.write('x with error: libcublas.so.13: gone\\nmore'); "
            'print(\'{"reason": "n"}\')',
            "libcublas.so.13: gone",
        ),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "was ended by SIGSEGV"),
        ("raise SystemExit('broken')", "ended with code 1: broken"),
        ("print('[]')", "ended with code 0: it said nothing"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_what_becomes_of_the_child(program, reason):
    said = why_not_in_a_child(CUDA, (sys.executable, "-c", program))
    assert reason in said if reason else not said


def test_a_child_that_hangs_or_cannot_start(monkeypatch):
    monkeypatch.setattr(provider_child, "_SECONDS", 0.05)
    assert "within 0.05 seconds" in why_not_in_a_child(
        CUDA, (sys.executable, "-c", "import time; time.sleep(9)")
    )
    assert "No process could be started" in why_not_in_a_child(CUDA, ("/no/such/python",))
