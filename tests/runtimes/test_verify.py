import os
import shutil

import pytest
from tiny_artifacts import write_decoder

from onnxforge.runtimes import ArtifactError, load, read_manifest, verify, verify_files


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_decoder(tmp_path_factory.mktemp("artifact") / "tiny")


@pytest.fixture
def artifact(original, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return shutil.copytree(original, tmp_path / "tiny")


FILES = [
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "onnx/model.onnx",
    "onnx/model.onnx_data",
    "tokenizer.json",
    "tokenizer_config.json",
]


def test_the_list_of_files_below_is_complete(original):
    assert sorted(record.path for record in read_manifest(original).files) == FILES


def test_an_untouched_artifact_passes(artifact):
    verify_files(artifact)
    verify_files(artifact, full=True)


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "flipped bit": _flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "extended": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "emptied": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_every_damaged_file_is_refused_by_name(artifact, name, damage):
    DAMAGE[damage](artifact / name)
    with pytest.raises(ArtifactError, match=name):
        load(artifact)


@pytest.mark.parametrize("name", FILES)
def test_links_are_refused(artifact, tmp_path, name):
    moved = tmp_path / "elsewhere"
    (artifact / name).rename(moved)
    (artifact / name).symlink_to(moved)
    with pytest.raises(ArtifactError, match=f"{name}: a symbolic link"):
        load(artifact)
    (artifact / name).unlink()
    os.link(moved, artifact / name)
    with pytest.raises(ArtifactError, match=f"{name}: a hard link"):
        load(artifact)


def test_a_linked_folder_a_pipe_and_a_linked_manifest_are_refused(artifact, tmp_path):
    (tmp_path / "other").mkdir()
    (artifact / "more").symlink_to(tmp_path / "other", target_is_directory=True)
    with pytest.raises(ArtifactError, match="more: a symbolic link"):
        verify_files(artifact)
    (artifact / "more").unlink()
    os.mkfifo(artifact / "pipe")
    with pytest.raises(ArtifactError, match="pipe: not a plain file"):
        verify_files(artifact)
    (artifact / "pipe").unlink()
    (artifact / "artifact.json").rename(tmp_path / "kept.json")
    (artifact / "artifact.json").symlink_to(tmp_path / "kept.json")
    with pytest.raises(ArtifactError, match="is not an artifact"):
        verify_files(artifact)


def test_all_problems_are_named_at_once(artifact):
    _flip(artifact / "config.json")
    (artifact / "tokenizer.json").unlink()
    (artifact / "onnx" / "notes.txt").write_text("hello")
    with pytest.raises(ArtifactError) as caught:
        verify_files(artifact)
    message = str(caught.value)
    assert "config.json: changed" in message
    assert "tokenizer.json: missing" in message
    assert "onnx/notes.txt: not part of the artifact" in message


def test_verification_can_be_switched_off(artifact):
    (artifact / "notes.txt").write_text("hello")
    with load(artifact, verify="off") as model:
        assert model.generate([5], max_new_tokens=1).stats.new_tokens == 1


@pytest.fixture
def hashed(monkeypatch):
    """Every file counts as large; the names hashed are recorded."""
    names = []
    real = verify.sha256_of

    def recording(path):
        names.append(path.name)
        return real(path)

    monkeypatch.setattr(verify, "SMALL", 0)
    monkeypatch.setattr(verify, "sha256_of", recording)
    return names


def test_large_files_are_hashed_once_until_they_change(artifact, hashed):
    verify_files(artifact)
    assert len(hashed) == len(FILES)
    hashed.clear()
    verify_files(artifact)
    assert hashed == []
    verify_files(artifact, full=True)
    assert len(hashed) == len(FILES)
    hashed.clear()
    _flip(artifact / "onnx" / "model.onnx_data")
    with pytest.raises(ArtifactError, match=r"model\.onnx_data: changed"):
        verify_files(artifact)
    assert hashed == ["model.onnx_data"]


def test_a_change_that_keeps_size_and_mtime_is_seen_by_its_ctime(artifact, hashed):
    verify_files(artifact)
    path = artifact / "onnx" / "model.onnx_data"
    before = path.stat()
    _flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(ArtifactError, match=r"model\.onnx_data: changed"):
        verify_files(artifact)


def test_a_failed_check_is_not_remembered(artifact, hashed):
    _flip(artifact / "config.json")
    for _ in range(2):
        with pytest.raises(ArtifactError, match=r"config\.json: changed"):
            verify_files(artifact)


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', "\xff"])
def test_a_damaged_cache_only_costs_time(artifact, tmp_path, hashed, content):
    cache = tmp_path / "cache" / "onnxforge" / "verified.json"
    cache.parent.mkdir(parents=True)
    cache.write_text(content, encoding="latin-1")
    verify_files(artifact)
    assert len(hashed) == len(FILES)


def test_an_unwritable_cache_only_costs_time(artifact, tmp_path, hashed):
    (tmp_path / "cache").write_text("in the way")
    verify_files(artifact)
    verify_files(artifact)
    assert len(hashed) == 2 * len(FILES)
