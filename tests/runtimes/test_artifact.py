import json
from dataclasses import replace

import pytest
from tiny_artifacts import seal

from onnxforge.runtimes import (
    ArtifactError,
    FileRecord,
    Manifest,
    Speculation,
    read_manifest,
    write_manifest,
)

MANIFEST = Manifest(
    name="m",
    task="text-generation-with-past",
    model_type="llama",
    target="cpu-fp32",
    pipeline=("canonicalize", "fuse-attention{decoder=GroupQueryAttention}"),
    graph="onnx/model.onnx",
    provider="CPUExecutionProvider",
    session={"session.x": "1"},
    context_length=2048,
    shared_cache=True,
    files=(FileRecord("onnx/model.onnx", 3, "a" * 64), FileRecord("config.json", 2, "b" * 64)),
    source={"ref": "org/größe"},
    versions={"onnxruntime": "1.31.1"},
    summary={"ratio": 1.01, "passed": True, "note": "n"},
)


def test_what_is_written_is_read_back_with_files_in_order(tmp_path):
    write_manifest(tmp_path, MANIFEST)
    expected = replace(MANIFEST, files=tuple(sorted(MANIFEST.files, key=lambda record: record.path)))
    assert read_manifest(tmp_path) == expected


def test_equal_manifests_give_equal_bytes(tmp_path):
    other = replace(
        MANIFEST, files=MANIFEST.files[::-1], summary=dict(reversed(list(MANIFEST.summary.items())))
    )
    first = write_manifest(tmp_path, MANIFEST).read_bytes()
    assert write_manifest(tmp_path, other).read_bytes() == first
    assert first.endswith(b"}\n")


def _edit(folder, change):
    path = write_manifest(folder, MANIFEST)
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.update(format=2), "artifact format 2; this version reads format 1"),
        (lambda raw: raw.pop("format"), "artifact format None"),
        (lambda raw: raw.pop("graph"), r"keys missing: \['graph'\]"),
        (lambda raw: raw.update(extra=1), r"not known: \['extra'\]"),
        (lambda raw: raw.update(context_length=0), "'context_length' must be a positive whole number"),
        (lambda raw: raw.update(context_length=True), "'context_length' must be a positive whole number"),
        (lambda raw: raw.update(shared_cache="yes"), "'shared_cache' must be true or false"),
        (lambda raw: raw.update(pipeline=[1]), "'pipeline' must be a list of strings"),
        (lambda raw: raw.update(session={"a": 1}), "'session' must be an object of strings"),
        (lambda raw: raw.update(summary={"a": []}), "'summary' must be an object of numbers"),
        (lambda raw: raw.update(graph="other.onnx"), "'other.onnx' is not among the listed files"),
        (lambda raw: raw["files"].append(raw["files"][0]), "listed twice"),
        (lambda raw: raw["files"][0].update(size=-1), "relative path inside the folder"),
        (lambda raw: raw["files"][0].update(size=True), "relative path inside the folder"),
        (lambda raw: raw["files"][0].update(sha256="A" * 64), "sha256 in hex"),
        (lambda raw: raw["files"][0].update(mode=1), "nothing else"),
    ],
)
def test_a_wrong_manifest_is_refused_with_the_reason(tmp_path, change, message):
    _edit(tmp_path, change)
    with pytest.raises(ArtifactError, match=message):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "a/../../x", "a\\b", "./a", "a//b", "", "artifact.json", "a\0b"]
)
def test_paths_outside_the_folder_are_refused(tmp_path, path):
    _edit(tmp_path, lambda raw: raw["files"][0].update(path=path))
    with pytest.raises(ArtifactError, match="relative path inside the folder"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"format": 1, "format": 1}',
        '{"format": NaN}',
        "\ud800".encode("utf-8", "surrogatepass"),
    ],
)
def test_what_is_not_a_json_object_is_refused(tmp_path, text):
    (tmp_path / "artifact.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ArtifactError, match=r"artifact\.json"):
        read_manifest(tmp_path)


def test_deep_and_huge_json_is_refused(tmp_path):
    path = tmp_path / "artifact.json"
    path.write_text('{"a":' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(ArtifactError, match=r"artifact\.json"):
        read_manifest(tmp_path)
    path.write_text('{"a":' + "[" * 70 + "]" * 70 + "}")
    with pytest.raises(ArtifactError, match="deeper than 64"):
        read_manifest(tmp_path)
    path.write_text(" " * (8 * 1024 * 1024) + "{}")
    with pytest.raises(ArtifactError, match="at most"):
        read_manifest(tmp_path)


def test_a_folder_without_manifest_is_not_an_artifact(tmp_path):
    with pytest.raises(ArtifactError, match="is not an artifact"):
        read_manifest(tmp_path)


def test_sealing_lists_every_file(tmp_path):
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"abc")
    (tmp_path / "config.json").write_bytes(b"{}")
    manifest = seal(tmp_path)
    assert [record.path for record in manifest.files] == ["config.json", "onnx/model.onnx"]


SPECULATION = Speculation(
    enabled=True, max_draft_tokens=7, step_cost=(1.0, 1.1, 1.25), reason="1.8x on grounded prompts"
)


def test_what_is_said_about_speculation_is_read_back(tmp_path):
    for speculation in (
        SPECULATION,
        replace(SPECULATION, drafter="layer-skip", draft_graph="onnx/model.onnx"),
        replace(SPECULATION, draft_graph="onnx/model.onnx"),
        Speculation(enabled=False, max_draft_tokens=0, min_rows=1),
    ):
        write_manifest(tmp_path, replace(MANIFEST, speculation=speculation))
        assert read_manifest(tmp_path).speculation == speculation


def test_without_speculation_nothing_is_written_about_it(tmp_path):
    assert "speculation" not in json.loads(write_manifest(tmp_path, MANIFEST).read_text())
    assert read_manifest(tmp_path).speculation is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.pop("min_rows"), "an object with the keys .* was expected"),
        (lambda raw: raw.update(more=1), "an object with the keys .* was expected"),
        (lambda raw: raw.update(enabled=1), "'enabled' must be true or false"),
        (lambda raw: raw.update(max_draft_tokens=-1), "'max_draft_tokens' must be a whole number, 0 or more"),
        (lambda raw: raw.update(max_draft_tokens=32), "max_draft_tokens is 32, which is not 0 to 31"),
        (lambda raw: raw.update(max_draft_tokens=0), "enabled with max_draft_tokens 0"),
        (lambda raw: raw.update(min_rows=1), "min_rows is 1; drafting needs 2"),
        (lambda raw: raw.update(drafter="oracle"), "'drafter' must be ngram or layer-skip"),
        (lambda raw: raw.update(drafter="layer-skip"), "drafter layer-skip without a draft_graph"),
        (lambda raw: raw.update(drafter="layer-skip", draft_graph="x"), "'x' is not among the listed files"),
        (lambda raw: raw.update(drafter="draft-model"), "drafter draft-model without a draft_model"),
        (lambda raw: raw.update(draft_model="../x"), "no artifact.json of the draft model '../x'"),
        (lambda raw: raw.update(step_cost=[1, "2"]), "'step_cost' must be a list of numbers"),
        (lambda raw: raw.update(step_cost=[1, 10**400]), "'step_cost' must be a list of numbers"),
        (lambda raw: raw.update(step_cost=[2.0]), "step_cost is .* it starts with 1"),
        (lambda raw: raw.update(step_cost=[1, 0]), "step_cost is .* it starts with 1"),
    ],
)
def test_what_contradicts_itself_about_speculation_is_refused(tmp_path, change, message):
    path = write_manifest(tmp_path, replace(MANIFEST, speculation=SPECULATION))
    raw = json.loads(path.read_text())
    change(raw["speculation"])
    path.write_text(json.dumps(raw))
    with pytest.raises(ArtifactError, match=message) as caught:
        read_manifest(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).count("speculation: ") <= 1
