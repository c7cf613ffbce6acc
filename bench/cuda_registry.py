"""Write `compiler/cuda_kernels.tsv`: every kernel of the CUDA provider, as onnxruntime-gpu itself lists them.

    python bench/cuda_registry.py --gpu-python /tmp/gpu/bin/python

Needs no GPU (see cuda_stub.py), but the right to make a mount namespace. Versions and types are those of the
provider's registry; which inputs a kernel wants in the CPU's memory is seen by giving it what a node on the
CPU made, and looking where no copy is put in between.
"""

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path

import cuda_stub

TABLE = Path(__file__).parent.parent / "compiler" / "cuda_kernels.tsv"
NEWEST = 2**31 - 1
CONTROL = {"If": [0], "Loop": [0, 1]}
"""The probe leaves them out: condition and trip count, by controlflow/if.cc and loop.cc of the sources."""
Form = dict[str, frozenset[str]]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpu-python", type=Path, required=True)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cuda-stub-") as temp:
        cuda_stub.build(cuda_stub.provider_of(asked.gpu_python), Path(temp))
        child = Path(__file__).with_name("cuda_registry_child.py")
        found = json.loads(cuda_stub.run(asked.gpu_python, child, Path(temp), device=True))
    forms: dict[tuple[str, str, int, int], list[Form]] = defaultdict(list)
    for kernel in found["kernels"]:
        if kernel["domain"] in ("", "com.microsoft"):
            types = {where: frozenset(map(_short, kinds)) for where, kinds in kernel["types"].items()}
            forms[kernel["domain"], kernel["name"], *kernel["versions"]].append(types)
    hosts = {**found["hosts"], **CONTROL}
    unseen = {name: said for name, said in found["hosts"].items() if not isinstance(said, list)}
    if unseen:
        raise SystemExit(f"no answer for the inputs of {unseen}")
    lines = [
        f"# Kernels of onnxruntime-gpu {found['version']}'s CUDA provider, by its own registry; "
        "made by bench/cuda_registry.py",
        "# operator\topsets\tinputs in CPU memory\ttypes of inputs (i) and outputs (o)",
    ]
    for (domain, name, first, last), alternatives in sorted(forms.items()):
        operator = f"{domain}.{name}" if domain else name
        host = ",".join(map(str, hosts.get(operator, []))) or "-"
        versions = f"{first}+" if last == NEWEST else f"{first}-{last}"
        for form in _merged(alternatives):
            types = " ".join(f"{where}={','.join(sorted(kinds))}" for where, kinds in sorted(form.items()))
            lines.append(f"{operator}\t{versions}\t{host}\t{types or '-'}")
    TABLE.write_text("\n".join(lines) + "\n")
    print(f"{TABLE}: {len(lines) - 2} rows")
    return 0


def _short(kind: str) -> str:
    return kind.removeprefix("tensor(").removesuffix(")") if kind.startswith("tensor(") else kind


def _merged(forms: list[Form]) -> list[Form]:
    """Two that differ in one place alone are one: nothing is said that the two did not say."""
    left = list(forms)
    for index, form in enumerate(left):
        for other in left[index + 1 :]:
            differing = [where for where in form if form[where] != other.get(where)]
            if form.keys() == other.keys() and len(differing) <= 1:
                union = {where: form[where] | other[where] for where in differing}
                rest = [item for item in left if item is not form and item is not other]
                return _merged([*rest, {**form, **union}])
    return left


if __name__ == "__main__":
    raise SystemExit(main())
