"""The speed part of a proof: what to time, beside what, and how near the machine's bound it came."""

from dataclasses import replace
from pathlib import Path

from onnxforge.compiler.eval_text import evaluation_text, sentences
from onnxforge.compiler.evidence import Evidence
from onnxforge.compiler.proof_types import ProofOptions
from onnxforge.compiler.roofline import (
    Machine,
    Roofline,
    compute_roofline,
    decode_roofline,
    measure_machine,
)
from onnxforge.compiler.speed import decoder_tests, first_token_test, measure
from onnxforge.compiler.speed_types import SpeedReport, SpeedTest
from onnxforge.compiler.targets import CPU
from onnxforge.compiler.traffic import Traffic
from onnxforge.runtimes.artifact import read_manifest


def speed(evidence: Evidence, artifact: Path, yardstick: Path, options: ProofOptions) -> Evidence:
    """Time artifact and yardstick, interleaved; returns the evidence with its speed fields filled.

    Raises:
        MeasurementFailed: a measuring process died.
    """
    context = read_manifest(artifact).context_length
    texts: list[str] = []
    if evidence.divergence is not None:
        tests = decoder_tests(options.prompt_tokens, options.decode_tokens, options.decode_depth, context)
    else:
        texts = sentences(options.sentences, evaluation_text(options.text))
        tests = (SpeedTest(sentences=len(texts)),)
    before = measure_machine() if evidence.provider == CPU else None  # it is the CPU that this measures
    recorded = evidence.cuda_graph.enabled if evidence.cuda_graph is not None else None
    reports = measure(
        {"artifact": artifact, "baseline": yardstick},
        tests,
        cuda_graph={"artifact": recorded},
        rounds=options.rounds,
        first_token=first_token_test(tests),
        sentences=texts,
        seed=options.seed,
        patience=options.patience,
    )
    ours = reports["artifact"]
    timed = replace(evidence, speed=ours, baseline_speed=reports["baseline"])
    if before is None:
        return timed
    machine = before.best(measure_machine())
    return replace(timed, machine=machine, rooflines=rooflines(ours, evidence.traffic, machine))


def rooflines(report: SpeedReport, traffic: Traffic, machine: Machine) -> tuple[Roofline, ...]:
    """The bound of every decoder test: memory for decode, arithmetic for prefill."""
    lines = []
    for timing in report.timings:
        test = timing.test
        if test.generate:
            depth = test.depth + test.generate / 2
            lines.append(decode_roofline(test.name, traffic, machine, depth, timing.median))
        elif test.prompt:
            lines.append(compute_roofline(test.name, traffic, machine, timing.median))
    return tuple(lines)
