"""CUDA libraries that compute nothing, so that onnxruntime-gpu can be asked questions where there is no GPU.

`libonnxruntime_providers_cuda.so` needs some hundred functions of the CUDA runtime, cuBLAS and the driver.
Here each says that all went well; memory is the host's, copies are copies, kernels are not run. With that,
ONNX Runtime registers the CUDA provider, gives it nodes, puts in its Memcpy nodes and loads a model, all by
its own rules. A session runs too: what runs on the CPU is real, and so is what kernels check before they
launch anything; whatever they compute is garbage.

Needs gcc, readelf and a Python with onnxruntime-gpu, which must not share an environment with onnxruntime:

    python -m venv /tmp/gpu && /tmp/gpu/bin/pip install onnxruntime-gpu==1.31.1 onnx
"""

import os
import re
import subprocess
from collections import defaultdict
from pathlib import Path

_LIBRARIES = ("libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10", "libcuda.so.1")
_PREFIX = re.compile(r"cu[A-Z]")
_HEAD = "#include <stdlib.h>\n#include <string.h>\n"
_WRITTEN = {
    "cudaGetDeviceCount": "(int *n) { *n = 1; return 0; }",
    "cudaGetDevice": "(int *n) { *n = 0; return 0; }",
    "cudaRuntimeGetVersion": "(int *v) { *v = 13000; return 0; }",
    "cudaDriverGetVersion": "(int *v) { *v = 13000; return 0; }",
    "cudaMemGetInfo": "(size_t *f, size_t *t) { *f = *t = (size_t)1 << 36; return 0; }",
    # As aligned as real device memory: kernels are refused on the host for less.
    "cudaMalloc": "(void **p, size_t n) { n = n / 256 * 256 + 256; *p = aligned_alloc(256, n); "
    "return *p ? (memset(*p, 0, n), 0) : 2; }",
    "cudaMallocHost": "(void **p, size_t n) { *p = calloc(1, n ? n : 1); return *p ? 0 : 2; }",
    "cudaHostAlloc": "(void **p, size_t n, unsigned f) { *p = calloc(1, n ? n : 1); return *p ? 0 : 2; }",
    "cudaFree": "(void *p) { free(p); return 0; }",
    "cudaFreeHost": "(void *p) { free(p); return 0; }",
    "cudaMemcpy": "(void *d, const void *s, size_t n, int k) { memmove(d, s, n); return 0; }",
    "cudaMemcpyAsync": "(void *d, const void *s, size_t n, int k, void *q) { memmove(d, s, n); return 0; }",
    "cudaMemset": "(void *d, int v, size_t n) { memset(d, v, n); return 0; }",
    "cudaMemsetAsync": "(void *d, int v, size_t n, void *q) { memset(d, v, n); return 0; }",
    "cudaStreamCreate": "(void **p) { *p = (void *)16; return 0; }",
    "cudaStreamCreateWithFlags": "(void **p, unsigned f) { *p = (void *)16; return 0; }",
    "cudaEventCreate": "(void **p) { *p = (void *)16; return 0; }",
    "cudaEventCreateWithFlags": "(void **p, unsigned f) { *p = (void *)16; return 0; }",
    "cudaEventElapsedTime": "(float *t, void *a, void *b) { *t = 1; return 0; }",
    "cudaStreamEndCapture": "(void *q, void **g) { *g = (void *)16; return 0; }",
    "cudaGraphInstantiate": "(void **e, void *g, unsigned long long f) { *e = (void *)16; return 0; }",
    "cudaStreamIsCapturing": "(void *q, int *s) { *s = 0; return 0; }",
    "cublasCreate_v2": "(void **p) { *p = (void *)16; return 0; }",
    "cublasLtCreate": "(void **p) { *p = (void *)16; return 0; }",
    # Attributes 75 and 76 are the compute capability, 16 the multiprocessors, 8, 81 and 97 shared memory.
    "cudaDeviceGetAttribute": "(int *v, int a, int d) { *v = a == 75 ? 9 : a == 76 ? 0 : a == 16 ? 132 : "
    "a == 8 || a == 81 || a == 97 ? 232448 : a == 10 ? 32 : a == 1 ? 1024 : 65536; return 0; }",
    # cudaDeviceProp of CUDA 13: memory, shared memory, registers, warp, threads, grid, capability, cores.
    "cudaGetDeviceProperties": '(char *p, int d) { memset(p, 0, 1000); strcpy(p, "no GPU"); '
    "*(size_t *)(p + 288) = (size_t)1 << 36; *(size_t *)(p + 296) = 49152; *(int *)(p + 304) = 65536; "
    "*(int *)(p + 308) = 32; *(int *)(p + 320) = 1024; *(int *)(p + 336) = 2147483647; "
    "*(int *)(p + 340) = *(int *)(p + 344) = 65535; *(int *)(p + 360) = 9; *(int *)(p + 384) = 132; "
    "return 0; }",
}
_CUDNN = {
    "cudnnGetVersion": "size_t cudnnGetVersion() { return 91300; }",
    "cudnnGetCudartVersion": "size_t cudnnGetCudartVersion() { return 13000; }",
    "cudnnGetErrorString": 'char *cudnnGetErrorString(int e) { return "stub"; }',
    "cudnnCreate": "int cudnnCreate(void **p) { *p = (void *)16; return 0; }",
}
_POINTERS = {
    "cudaGetErrorString": '(int e) { return "stub"; }',
    "cudaGetErrorName": '(int e) { return "stub"; }',
    "__cudaRegisterFatBinary": "(void *p) { static void *handle[4]; return (char *)handle; }",
}


def build(provider: Path, folder: Path) -> None:
    """Write into ``folder`` a library for each that ``provider`` (the CUDA provider's) needs of CUDA.

    In the folder ``cudnn`` inside it is cuDNN, which the provider looks for by itself: see :func:`run`.
    """
    table = subprocess.run(
        ["readelf", "-W", "--dyn-syms", str(provider)], capture_output=True, text=True, check=True
    )
    wanted: dict[str, set[str]] = defaultdict(set)
    for line in table.stdout.splitlines():
        found = re.search(r" UND (\w+)(?:@(\S+))?", line)
        if found and (found[2] in _LIBRARIES or (not found[2] and _PREFIX.match(found[1]))):
            wanted[found[2] or "libcuda.so.1"].add(found[1])
    for library in _LIBRARIES:
        source, versions = folder / f"{library}.c", folder / f"{library}.map"
        source.write_text(_HEAD + "\n".join(_function(name) for name in sorted(wanted[library])))
        versions.write_text(f"{library} {{ global: *; }};\n")
        command = ["gcc", "-shared", "-fPIC", "-w", str(source), "-o", str(folder / library)]
        command += [f"-Wl,-soname,{library}", f"-Wl,--version-script={versions}"]
        subprocess.run(command, check=True)
    _build_cudnn(provider, folder / "cudnn")


def _build_cudnn(provider: Path, folder: Path) -> None:
    """Functions that are looked up by name, so that their names stand in the provider."""
    folder.mkdir()
    names = {name.decode() for name in re.findall(rb"cudnn[A-Z]\w+(?=\0)", provider.read_bytes())}
    source, library = folder / "cudnn.c", "libcudnn.so.9"
    source.write_text(
        _HEAD + "\n".join(f"{_CUDNN.get(name, f'int {name}() {{ return 0; }}')}" for name in names)
    )
    command = ["gcc", "-shared", "-fPIC", "-w", str(source), "-o", str(folder / library)]
    subprocess.run([*command, f"-Wl,-soname,{library}"], check=True)


def _function(name: str) -> str:
    if name in _POINTERS:
        return f"char *{name}{_POINTERS[name]}"
    return f"int {name}{_WRITTEN.get(name, '() { return 0; }')}"


def provider_of(python: Path) -> Path:
    """The CUDA provider's library of the onnxruntime-gpu that ``python`` has."""
    code = "import onnxruntime, os; print(os.path.dirname(onnxruntime.__file__))"
    found = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    return Path(found.stdout.strip()) / "capi" / "libonnxruntime_providers_cuda.so"


def run(
    python: Path,
    script: Path,
    folder: Path,
    *arguments: str,
    device: bool = False,
    cudnn: bool = False,
    path: Path | None = None,
) -> str:
    """What ``script`` prints, run by ``python`` over the libraries in ``folder``; ``path`` is its PYTHONPATH.

    With ``cudnn`` that is installed too, though attention is not given to it: it would compute a plan.

    With ``device`` the machine seems to have an NVIDIA card on its PCI bus, in a mount namespace of its own:
    ONNX Runtime lists the kernels of a provider only where it has found a device for it.
    """
    command = [str(python), str(script), *arguments]
    if device:
        card = folder / "pci" / "0000:01:00.0"
        card.mkdir(parents=True, exist_ok=True)
        for name, value in (("vendor", "0x10de"), ("device", "0x2330"), ("class", "0x030200")):
            (card / name).write_text(value + "\n")
        shell = f'mount --bind "{folder / "pci"}" /sys/bus/pci/devices && exec "$@"'
        command = ["unshare", "-rm", "sh", "-c", shell, "sh", *command]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    environment.pop("PYTHONPATH", None)
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    if cudnn:
        environment["LD_LIBRARY_PATH"] += f":{folder / 'cudnn'}"
        environment["ORT_ENABLE_CUDNN_FLASH_ATTENTION"] = "0"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout
