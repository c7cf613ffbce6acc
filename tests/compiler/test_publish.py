"""What is at the target is the whole old artifact, the whole new one, or nothing."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from onnxforge.compiler import publish
from onnxforge.compiler.errors import PublishRefused
from onnxforge.runtimes.artifact import FileRecord, Manifest, write_manifest


def manifest(*files: str) -> Manifest:
    return Manifest(
        name="a",
        task="feature-extraction",
        model_type="bert",
        target="cpu-fp32",
        pipeline=(),
        graph=files[0],
        provider="CPUExecutionProvider",
        session={},
        context_length=8,
        shared_cache=False,
        files=tuple(FileRecord(name, 1, "0" * 64) for name in files),
    )


def artifact(folder: Path, content: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data").write_text(content)
    write_manifest(folder, manifest("data"))


def write(output: Path, content: str) -> None:
    with publish.staging(output) as folder:
        artifact(folder, content)
        publish.swap(folder, output)


def test_into_nothing_an_empty_folder_and_over_an_artifact(tmp_path: Path):
    for output in (tmp_path / "new", tmp_path / "deep" / "er" / "new", tmp_path / "spaces und Ümlaute 模型"):
        write(output, "one")
        assert (output / "data").read_text() == "one"
        write(output, "two")
        assert (output / "data").read_text() == "two"
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", "three")
    assert (tmp_path / "empty" / "data").read_text() == "three"
    assert not [p for p in tmp_path.rglob(".*") if p.name.startswith(".")], "no staging folder, no lock left"


def test_a_reader_keeps_the_old_files(tmp_path: Path):
    write(tmp_path / "a", "old")
    with open(tmp_path / "a" / "data") as reader:
        write(tmp_path / "a", "new")
        assert reader.read() == "old"


def test_a_link_to_an_artifact_stays_a_link(tmp_path: Path):
    write(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "data").read_text() == "new"


def test_without_exchange_two_renames_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "a", "old")
    monkeypatch.setattr(publish.sys, "platform", "darwin")
    write(tmp_path / "a", "new")
    assert (tmp_path / "a" / "data").read_text() == "new"
    assert os.listdir(tmp_path) == ["a"]


def test_what_is_not_an_artifact_is_never_replaced(tmp_path: Path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years")
    (tmp_path / "file").write_text("x")
    for name, says in (("home", "not an artifact"), ("file", "is a file")):
        with pytest.raises(PublishRefused, match=says):
            write(tmp_path / name, "new")
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years"


def test_another_tools_manifest_is_no_artifact(tmp_path: Path):
    (tmp_path / "site" / "src").mkdir(parents=True)
    (tmp_path / "site" / "artifact.json").write_text('{"name": "my-web-project"}')
    (tmp_path / "site" / "src" / "thesis.txt").write_text("years")
    with pytest.raises(PublishRefused, match="not an artifact"):
        write(tmp_path / "site", "new")
    assert (tmp_path / "site" / "src" / "thesis.txt").read_text() == "years"


def test_what_somebody_put_into_an_artifact_is_not_deleted(tmp_path: Path):
    write(tmp_path / "a", "old")
    (tmp_path / "a" / "notes").mkdir()
    (tmp_path / "a" / "notes" / "thesis.txt").write_text("years")
    with pytest.raises(PublishRefused, match=r"no compile wrote: notes/thesis\.txt"):
        write(tmp_path / "a", "new")
    assert (tmp_path / "a" / "data").read_text() == "old"


def test_a_damaged_artifact_may_be_replaced(tmp_path: Path):
    write(tmp_path / "a", "old")
    (tmp_path / "a" / "data").unlink()
    write(tmp_path / "a", "new")
    assert (tmp_path / "a" / "data").read_text() == "new"


def test_what_appeared_while_we_compiled_is_not_replaced(tmp_path: Path):
    output = tmp_path / "a"
    with pytest.raises(PublishRefused), publish.staging(output) as folder:  # noqa: PT012
        artifact(folder, "new")
        output.mkdir()
        (output / "thesis.txt").write_text("years")
        publish.swap(folder, output)
    assert os.listdir(tmp_path) == ["a"]


def test_two_compiles_into_one_folder(tmp_path: Path):
    with (
        publish.staging(tmp_path / "a"),
        pytest.raises(PublishRefused, match="Another compile"),
        publish.staging(tmp_path / "a"),
    ):
        pass
    write(tmp_path / "a", "free again")


def test_leftovers_of_dead_compiles_go_and_nothing_else(tmp_path: Path):
    stale = tmp_path / ".a.tmp-1-0123abcd"
    others = [tmp_path / ".a.tmp-mine", tmp_path / ".ab.tmp-1-0123abcd", tmp_path / "a.tmp-1-0123abcd"]
    for folder in (stale, *others):
        folder.mkdir()
    (stale / "weights").write_text("half")
    write(tmp_path / "a", "new")
    assert not stale.exists()
    assert all(folder.exists() for folder in others)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_failure_inside_leaves_the_old_artifact(tmp_path: Path, error: type[BaseException]):
    write(tmp_path / "a", "old")
    with pytest.raises(error), publish.staging(tmp_path / "a") as folder:  # noqa: PT012
        artifact(folder, "new")
        raise error
    assert (tmp_path / "a" / "data").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_full_disk_is_told_as_such(tmp_path: Path):
    write(tmp_path / "a", "old")
    with pytest.raises(PublishRefused, match=r"disk is full.*untouched"), publish.staging(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (tmp_path / "a" / "data").read_text() == "old"


def test_a_file_size_limit_is_not_told_as_a_full_disk(tmp_path: Path):
    with pytest.raises(PublishRefused, match=r"ulimit -f.*Raise the limit"), publish.staging(tmp_path / "a"):
        raise OSError(errno.EFBIG, "File too large")


def test_a_disk_full_of_missing_folders_is_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(PublishRefused, match="disk is full"):
        write(tmp_path / "no" / "such" / "a", "new")


def test_a_link_that_leads_to_itself_is_refused(tmp_path: Path):
    (tmp_path / "loop").symlink_to("loop")
    for output in (tmp_path / "loop", tmp_path / "loop" / "a"):
        with pytest.raises(PublishRefused, match="leads to itself"):
            write(output, "new")
    assert os.listdir(tmp_path) == ["loop"]


def test_a_missing_model_is_not_told_as_a_publishing_problem(tmp_path: Path):
    with pytest.raises(FileNotFoundError), publish.staging(tmp_path / "a"):
        (tmp_path / "model.gguf").read_bytes()


def test_room_is_asked_for_up_front(tmp_path: Path):
    publish.require_space(tmp_path, 1)
    with pytest.raises(PublishRefused, match=r"needs 9,000,000,000\.0 MB .* are free\. Make room for"):
        publish.require_space(tmp_path, 9 * 10**15)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_parent(tmp_path: Path):
    parent = tmp_path / "read-only"
    parent.mkdir(mode=0o555)
    with pytest.raises(PublishRefused, match="not writable"):
        write(parent / "a", "new")


def test_a_parent_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(PublishRefused, match="not writable"):
        write(tmp_path / "a", "new")


def test_a_name_that_is_too_long(tmp_path: Path):
    with pytest.raises(PublishRefused, match="too long"):
        write(tmp_path / ("x" * 250), "new")
    for name in ("x" * 300, "x" * 5000, f"{'x' * 300}/a"):
        with pytest.raises(PublishRefused, match="too long"):
            write(tmp_path / name, "new")


def test_every_file_is_synced_before_the_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Power may go at any moment: what the rename makes visible must already be on the disk."""
    order: list[str] = []
    monkeypatch.setattr(publish, "_sync", lambda path: order.append(path.name))
    monkeypatch.setattr(publish.os, "rename", lambda *_: order.append("RENAME") or shutil.copytree(*_))
    with publish.staging(tmp_path / "a") as folder:
        artifact(folder, "new")
        publish.swap(folder, tmp_path / "a")
    before = order[: order.index("RENAME")]
    assert {"artifact.json", "data", folder.name} <= set(before)
    assert order[order.index("RENAME") + 1 :] == [tmp_path.name]
