"""The proof's question to a GPU: is decoding faster where steps are recorded as CUDA graphs and replayed?

The answer becomes the artifact's default. Without a GPU there is none, and nothing is recorded unless
``load(cuda_graph=True)`` or ``--cuda-graph`` asks for it.
"""

from dataclasses import replace
from pathlib import Path

from onnxforge.compiler.cuda_graph_report import CudaGraphReport
from onnxforge.compiler.evidence import Evidence
from onnxforge.compiler.proof_types import ProofOptions
from onnxforge.compiler.speed import decoder_tests, measure
from onnxforge.runtimes.artifact import read_manifest
from onnxforge.runtimes.session import cuda_graph_hindrance


def cuda_graph(evidence: Evidence, artifact: Path, options: ProofOptions) -> Evidence:
    """The evidence with what recorded steps bring; as it is for what records none.

    Those are encoders, providers other than CUDA, and caches that grow.

    Raises:
        MeasurementFailed: a measuring process died.
    """
    manifest = read_manifest(artifact)
    if cuda_graph_hindrance(manifest, manifest.provider) is not None:
        return evidence
    tests = decoder_tests((), options.decode_tokens, options.decode_depth, manifest.context_length)
    told = {"plain": False, "recorded": True}
    reports = measure(
        dict.fromkeys(told, artifact),
        tests,
        rounds=options.rounds,
        seed=options.seed,
        patience=options.patience,
        cuda_graph=told,
    )
    return replace(evidence, cuda_graph=CudaGraphReport(reports["plain"], reports["recorded"]))
