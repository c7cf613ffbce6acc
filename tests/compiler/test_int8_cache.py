"""``--kv int8`` from the command line to the report, on families with grouped heads, windows, soft caps."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxforge.compiler import cli
from onnxforge.compiler.build import build
from onnxforge.compiler.cache_option import Cache, with_cache
from onnxforge.compiler.cached_steps import CachedSteps
from onnxforge.compiler.errors import RequestRefused
from onnxforge.compiler.observe import Ledger
from onnxforge.compiler.proof import prove
from onnxforge.compiler.proof_layers import error_by_layer
from onnxforge.compiler.proof_session import GraphSession
from onnxforge.compiler.proof_types import EXPORT, ProofOptions
from onnxforge.compiler.structure import check_structure
from onnxforge.compiler.targets import CUDA, TARGETS, Target
from onnxforge.runtimes.artifact import read_manifest
from onnxforge.runtimes.decoder_state import new_state

FAMILIES = ("llama", "gpt2", "gemma2")
"""Grouped heads; as many key heads as query heads and learned positions; windows and soft-capped scores."""
TOKENS = np.random.default_rng(5).integers(3, 97, 40)
TASK = "text-generation-with-past"


def target(name: str) -> Target:
    return next(row for row in TARGETS if row.name == name)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_source: Callable, tiny_export: Callable) -> Callable:
    """``built(family, target)``: the folder of an unproven artifact."""
    made: dict[tuple[str, Target], Path] = {}

    def make(family: str, wanted: Target) -> Path:
        key = (family, repr(wanted))
        if key not in made:
            made[key] = tmp_path_factory.mktemp(family)
            build(tiny_source(family), tiny_export(family), wanted, TASK, made[key], name=family)
        return made[key]

    return make


def int8(name: str) -> Target:
    """The target with its option, calibrated on enough of the random tokens that stand in for a text."""
    chosen = with_cache(target(name), Cache.INT8)
    enough = tuple(p.replace("calibrate-cache", "calibrate-cache{samples=32}") for p in chosen.passes)
    return replace(chosen, passes=enough)


def sessions(built: Callable, family: str) -> tuple[GraphSession, GraphSession]:
    return GraphSession(built(family, target("cpu-fp32"))), GraphSession(built(family, int8("cpu-fp32")))


@pytest.mark.parametrize("family", FAMILIES)
def test_it_stays_near_the_float_cache_and_steps_agree_with_a_whole_run(built: Callable, family: str):
    wide, narrow = sessions(built, family)
    ids = TOKENS[None, :]
    theirs, ours = wide.logits(ids), narrow.logits(ids)
    assert 1e-6 < np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) < 0.05
    stepped = CachedSteps(narrow.decoder_graph(), 1).logits(ids)
    assert np.linalg.norm(stepped - ours) / np.linalg.norm(ours) < 0.02
    assert (narrow.quantized_cache, wide.quantized_cache) == (True, False)
    assert all(layer.sqnr_db > 25 for layer in error_by_layer(wide, narrow, ids))


@pytest.mark.parametrize("family", FAMILIES)
def test_ragged_rows_chunks_growth_and_rewinding(built: Callable, family: str):
    """Every row of a batch says what a whole run over its own tokens says."""
    _, narrow = sessions(built, family)
    starts = (2, 9, 17)
    state = new_state(narrow.decoder_graph(), rows=3, capacity=4)
    said = [state.prompt([TOKENS[:n] for n in starts]).copy()]
    state.step(np.full((3, 1), 50))
    state.rewind(1)
    for step in range(6):
        said.append(state.step(np.array([[TOKENS[n + step]] for n in starts]))[:, 0].copy())
    state.keep_rows([2])
    said_alone = state.step(TOKENS[None, starts[2] + 6 : starts[2] + 12])[0]
    expected = narrow.logits(TOKENS[None, :])
    for row, n in enumerate(starts):
        got, meant = np.stack([logits[row] for logits in said]), expected[n - 1 : n + 6]
        assert np.linalg.norm(got - meant) / np.linalg.norm(meant) < 0.02
    meant = expected[starts[2] + 6 : starts[2] + 12]
    assert np.linalg.norm(said_alone - meant) / np.linalg.norm(meant) < 0.02


def test_every_file_of_the_artifact_knows(built: Callable):
    folder = built("llama", int8("cpu-fp32"))
    manifest = read_manifest(folder)
    assert manifest.cache_dtype == "int8"
    assert manifest.pipeline[-4:-1] == ("calibrate-cache{samples=32}", "quantize-cache", "cleanup")
    config = json.loads((folder / "config.json").read_text())
    assert config["transformers.js_config"]["kv_cache_dtype"] == "int8"
    page = (folder / "README.md").read_text()
    assert "(int8 `[batch_size, 2, past_sequence_length, 16]`" in page
    assert "ORTModelForCausalLM" not in page
    assert read_manifest(built("llama", target("cpu-fp32"))).cache_dtype == "float32"


def test_the_proof_scores_what_is_decoded_through_the_cache(
    built: Callable, tiny_source: Callable, tiny_export: Callable, tmp_path: Path
):
    import shutil

    lossy = int8("cpu-fp32")
    staging = Path(shutil.copytree(built("llama", lossy), tmp_path / "staging"))

    def reference(name: str, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        bare = Target(EXPORT, "the source's own graph", ())
        build(tiny_source("llama"), tiny_export("llama"), bare, TASK, folder, name=name)

    options = ProofOptions("cpu-fp32", reference, lossy.budget, windows=2, window=60, speed=False)
    proof = prove(staging, tiny_source("llama"), None, options, Ledger())
    assert proof.missed == ()
    assert "decoded 16 tokens a run" in str(proof.summary["protocol"])
    assert 0 < float(proof.summary["mean_kl"]) < 0.01
    assert float(proof.summary["worst_layer_sqnr_db"]) > 25


def test_cuda_gets_the_form_of_its_kernel_and_the_cpu_can_stand_in(built: Callable):
    half = target("cuda-fp16")
    narrow, wide = built("llama", int8("cuda-fp16")), built("llama", half)
    graph = ir.load(narrow / "onnx" / "model.onnx")
    found = {check.rule: check for check in check_structure(graph, CUDA)}
    assert all(check.held for check in found.values() if check.required), found
    assert found["an int8 cache fits its attention kernel"].found == "all 5"
    direct = found["decoding reads an int8 cache as it is, without dequantizing it all for every token"]
    assert not direct.held
    assert "heads of 16" in direct.found
    assert "2 query heads for each key head" in direct.found
    ids = TOKENS[None, :]
    ours, theirs = (GraphSession(folder, "CPUExecutionProvider").logits(ids) for folder in (narrow, wide))
    assert 1e-6 < np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) < 0.05


def test_promises_that_an_int8_cache_cannot_keep_are_others():
    lines = {line.text() for line in with_cache(target("cpu-fp32"), Cache.INT8).budget}
    assert lines == {"decoding_max_relative <= 0.05", "perplexity_ratio <= 1.01"}
    assert with_cache(target("cpu-int8"), Cache.INT8).budget == target("cpu-int8").budget
    twice = with_cache(with_cache(target("cpu-int8"), Cache.INT8), Cache.INT8)
    assert twice == with_cache(target("cpu-int8"), Cache.INT8)


def test_a_target_without_such_an_attention_refuses():
    with pytest.raises(RequestRefused, match=r"`trt-int8` runs on Tensorrt.* takes no int8 cache"):
        with_cache(target("trt-int8"), Cache.INT8)
    unfused = replace(target("cpu-fp32"), passes=("canonicalize", "cleanup"))
    with pytest.raises(RequestRefused, match="no pass `fuse-attention`"):
        with_cache(unfused, Cache.INT8)


def test_the_plan_shows_it_and_can_be_edited(capsys: pytest.CaptureFixture[str]):
    edit = ("--set", "quantize-cache.granularity=tensor", "--set", "calibrate-cache.samples=2")
    assert cli.run_verb("compile", ["any", "-t", "cpu-int8", "--kv", "int8", *edit, "--dry-run"]) == 0
    passes = json.loads(capsys.readouterr().out)["target"]["passes"]
    assert passes[-4:-1] == ["calibrate-cache{samples=2}", "quantize-cache{granularity=tensor}", "cleanup"]
    assert cli.run_verb("compile", ["any", "-t", "cpu-int8", "--kv", "int3", "--dry-run"]) == 2
    assert "int3" in capsys.readouterr().err
