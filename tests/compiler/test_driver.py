"""One compile with stand-ins for its parts: what is published, and what survives a failure."""

import hashlib
import json
import os
import re
import resource
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from onnxforge.compiler import failpoints
from onnxforge.compiler.driver import Parts, compile_model
from onnxforge.compiler.errors import (
    BudgetMissed,
    ExpectationMissed,
    PublishRefused,
    RequestRefused,
    SelfCheckFailed,
)
from onnxforge.compiler.manifest import content_digest
from onnxforge.compiler.proof_types import EXPORT, Proof, ProofOptions
from onnxforge.compiler.request import CompileRequest
from onnxforge.compiler.targets import Bound, BudgetLine, Expectation, Target
from onnxforge.runtimes.artifact import read_manifest

Make = Callable[..., CompileRequest]
ROOT = Path(__file__).resolve().parents[2]


def contents(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_the_folder_and_its_manifest(tmp_path: Path, parts: Parts, request_for: Make):
    output = tmp_path / "out"
    result = compile_model(request_for(output), parts=parts)
    found = contents(output)
    manifest = read_manifest(output)
    assert {record.path: record.sha256 for record in manifest.files} == {
        name: digest for name, digest in found.items() if name != "artifact.json"
    }
    assert {"config.json", "genai_config.json", "onnx/model.onnx", "onnx/model.onnx_data"} <= set(found)
    assert {"README.md", "generation_config.json", "report/recipe.json", "tokenizer_config.json"} <= set(
        found
    )
    assert manifest.source == {"ref": "tiny", "model.safetensors": "0" * 64}
    assert manifest.context_length == 64
    assert manifest.summary["perplexity_ratio"] == 1.0
    assert manifest.summary["proof"] is True
    assert manifest.summary["content_digest"] == result.content_digest
    assert result.content_digest == content_digest(manifest.files)
    built = [record for record in manifest.files if not record.path.startswith("report/")]
    assert result.content_digest == content_digest(built), "what was measured is no part of it"
    assert result.size == sum(record.size for record in manifest.files)


def test_two_compiles_give_the_same_bytes_wherever_the_model_lies(
    tmp_path: Path, parts: Parts, request_for: Make
):
    first = compile_model(request_for(tmp_path / "a"), parts=parts)
    second = compile_model(request_for(tmp_path / "b", model="elsewhere/tiny"), parts=parts)
    assert first.content_digest == second.content_digest
    one, two = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert {name for name in one if one[name] != two[name]} == {"artifact.json", "report/recipe.json"}


def test_without_proof_the_manifest_says_so(tmp_path: Path, parts: Parts, request_for: Make):
    def never(*_: object) -> Proof:
        raise AssertionError("the proof ran")

    compile_model(request_for(tmp_path / "a", proof=False), parts=replace(parts, prove=never))
    assert read_manifest(tmp_path / "a").summary["proof"] is False


def test_the_proof_can_build_what_it_compares_with(tmp_path: Path, parts: Parts, request_for: Make):
    built: dict[str, Path] = {}

    def prove(staging: Path, source: object, model: object, options: ProofOptions, ledger: object) -> Proof:
        assert (staging / "artifact.json").is_file(), "the proof gets a loadable folder"
        options.build_reference(EXPORT, tmp_path / "reference")
        built[EXPORT] = tmp_path / "reference"
        (staging / "report").mkdir()
        return Proof()

    compile_model(request_for(tmp_path / "a"), parts=replace(parts, prove=prove))
    assert read_manifest(built[EXPORT]).target == EXPORT
    assert (built[EXPORT] / "onnx" / "model.onnx").is_file()


def missed(staging: Path, *_: object) -> Proof:
    (staging / "report").mkdir()
    (staging / "report" / "index.md").write_text("too bad")
    return Proof({"perplexity_ratio": 1.5}, ("perplexity_ratio 1.5, promised <= 1.03",))


def test_a_missed_budget_publishes_nothing_and_keeps_the_report(
    tmp_path: Path, parts: Parts, request_for: Make
):
    compile_model(request_for(tmp_path / "a"), parts=parts)
    old = contents(tmp_path / "a")
    with pytest.raises(BudgetMissed, match=r"1\.5, promised <= 1\.03.*--allow-missed-budget") as failure:
        compile_model(request_for(tmp_path / "a"), parts=replace(parts, prove=missed))
    assert contents(tmp_path / "a") == old
    kept = re.search(r"report is in (\S+)\.", str(failure.value))
    assert kept is not None
    assert (Path(kept[1]) / "index.md").read_text() == "too bad"


def test_a_missed_budget_with_permission(tmp_path: Path, parts: Parts, request_for: Make):
    request = request_for(tmp_path / "a", allow_missed_budget=True)
    result = compile_model(request, parts=replace(parts, prove=missed))
    assert result.missed == ("perplexity_ratio 1.5, promised <= 1.03",)
    assert read_manifest(tmp_path / "a").summary["perplexity_ratio"] == 1.5


def test_a_promise_that_no_graph_keeps(tmp_path: Path, parts: Parts, request_for: Make):
    target = Target(
        "t", "", ("canonicalize",), expects={"decoder": (Expectation("Made", made_by="canonicalize"),)}
    )
    with pytest.raises(
        ExpectationMissed, match=r"promises Made, and the pass `canonicalize` made none.*--without"
    ):
        compile_model(request_for(tmp_path / "a", target=target), parts=parts)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SelfCheckFailed("no"), MemoryError])
def test_a_failed_self_check_publishes_nothing(
    tmp_path: Path, parts: Parts, request_for: Make, error: BaseException
):
    def fail(_: Path) -> None:
        raise error

    with pytest.raises(BaseException) as raised:  # noqa: PT011
        compile_model(request_for(tmp_path / "a"), parts=replace(parts, self_check=fail))
    assert isinstance(raised.value, error if isinstance(error, type) else type(error))
    assert os.listdir(tmp_path) == []


def test_an_unknown_pass_is_refused_before_anything_is_read(tmp_path: Path, parts: Parts, request_for: Make):
    def never(*_: object) -> None:
        raise AssertionError("the model was opened")

    with pytest.raises(RequestRefused, match="did you mean `canonicalize`"):
        compile_model(
            request_for(tmp_path / "a", target=Target("t", "", ("canonicalise",))),
            parts=replace(parts, open_model=never),
        )


def points() -> list[str]:
    sources = (path.read_text() for path in (ROOT / "compiler").glob("*.py"))
    return sorted({name for text in sources for name in re.findall(r'failpoint\("([a-z-]+)"\)', text)})


def dies_at(point: str, request: CompileRequest, parts: Parts) -> None:
    """Compile in a child that is killed at ``point``, as ``kill -9`` would."""
    child = os.fork()
    if child == 0:
        try:
            os.environ[failpoints.VARIABLE] = point
            compile_model(request, parts=parts)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"the failpoint {point} was never reached"
    assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize("point", points())
@pytest.mark.parametrize("old", [True, False], ids=["over-an-artifact", "into-nothing"])
def test_killed_at(point: str, old: bool, tmp_path: Path, parts: Parts, request_for: Make):
    """Whole old, whole new or nothing; and the next compile cleans up and gives the same bytes."""
    output = tmp_path / "out"
    reference = compile_model(request_for(tmp_path / "reference"), parts=parts)
    before: dict[str, str] | None = None
    if old:
        bare = replace(parts, open_model=lambda ref, _: replace(parts.open_model(ref, _), sidecars={}))
        compile_model(request_for(output), parts=bare)
        before = contents(output)

    dies_at(point, request_for(output), parts)

    swapped = point in ("after-swap", "after-delete")
    if swapped:
        assert read_manifest(output).summary["content_digest"] == reference.content_digest
    elif before is not None:
        assert contents(output) == before
    else:
        assert not output.exists()

    again = compile_model(request_for(output), parts=parts)
    assert again.content_digest == reference.content_digest
    assert sorted(os.listdir(tmp_path)) == ["out", "reference"]


def test_a_disk_that_fills_up_while_writing(
    tmp_path: Path, parts: Parts, request_for: Make, capfd: pytest.CaptureFixture[str]
):
    """A limit on file sizes fails the same calls as a full disk, and needs no privileges."""
    compile_model(request_for(tmp_path / "out"), parts=parts)
    before = contents(tmp_path / "out")
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try:
            compile_model(request_for(tmp_path / "out"), parts=parts)
        except PublishRefused as error:
            os._exit(0 if "untouched" in str(error) else 2)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert contents(tmp_path / "out") == before
    assert os.listdir(tmp_path) == ["out"]


def test_failpoints_cover_the_compile():
    assert len(points()) >= 9


def test_the_recipe_in_the_report_is_the_request(tmp_path: Path, parts: Parts, request_for: Make):
    target = Target("t", "s", ("canonicalize",), budget=(BudgetLine("cosine", Bound.AT_LEAST, 0.5),))
    compile_model(request_for(tmp_path / "a", target=target), parts=parts)
    recipe = json.loads((tmp_path / "a" / "report" / "recipe.json").read_text())
    assert recipe["target"]["passes"] == ["canonicalize"]
    assert recipe["target"]["budget"] == ["cosine >= 0.5"]
    assert recipe["task"] == "text-generation-with-past"
