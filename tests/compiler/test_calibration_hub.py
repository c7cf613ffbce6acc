"""Data sets of a hub, against a loopback server that speaks the part of its API that downloads use."""

import json
import os
import subprocess
import sys
from hashlib import sha1
from urllib.parse import unquote

import pytest

from onnxforge.compiler.calibration_hub import DatasetName, _of_split
from onnxforge.compiler.errors import RequestRefused

COMMIT = "c0ffee" * 6 + "c0ff"
LINES = b'{"text": "one"}\n{"text": "two"}\n'
DATASETS = {
    "org/chats": {
        "README.md": b"# prose",
        "train.jsonl": LINES,
        "test.csv": b"text,body\nx,three\n",
        "test.parquet": b"PAR1",
    },
    "org/words": {"a.txt": b"first", "b.txt": b"second"},
    "org/pictures": {"train/1.png": b"", ".gitattributes": b""},
}
SCRIPT = """
import json, sys
from onnxforge.compiler.calibration_source import open_corpus
from onnxforge.compiler.errors import RequestRefused
for named in sys.argv[1:]:
    try:
        corpus = open_corpus(named)
        text = getattr(corpus, "text", None)
        print(json.dumps([corpus.name, text if text else [record.content for record in corpus]]))
    except RequestRefused as error:
        print(json.dumps(str(error)))
"""


@pytest.fixture
def hub(loopback):
    """The server's address, and the paths it was asked for."""
    asked = []

    def noted(path, _):
        asked.append(path)
        return answer(path)

    return loopback(noted), asked


def answer(path):
    parts = [unquote(part) for part in path.strip("/").split("/")]
    parts = parts[parts.index("datasets") + 1 :] if "datasets" in parts else [""] * 4
    name, kind, revision, file = "/".join(parts[:2]), *[*parts[2:4], "", ""][:2], "/".join(parts[4:])
    files = DATASETS.get(name)
    if files is None:
        return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
    if kind in ("", "revision"):
        if revision not in ("", "main", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        siblings = [{"rfilename": file} for file in files]
        return 200, {}, json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode()
    if kind != "resolve" or file not in files:
        return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
    etag = f'"{sha1(files[file]).hexdigest()}"'
    return 200, {"ETag": etag, "X-Repo-Commit": COMMIT}, files[file]


def opened(url, home, *named, **environment):
    """Open each in a fresh process: the hub client reads its environment at import."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    clean |= {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *named],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_split_is_fetched_once_and_then_read_from_the_cache(hub, tmp_path):
    url, asked = hub
    named = ("org/chats", "org/chats:test:body", "org/words")
    train, test, words = opened(url, tmp_path, *named)
    assert train == [f"org/chats@{COMMIT[:12]}, train", ["one", "two"]]
    assert test == [f"org/chats@{COMMIT[:12]}, test", ["three"]]
    assert words == [f"org/words@{COMMIT[:12]}, train", "first\nsecond"]
    fetched = {path.rsplit("/", 1)[-1] for path in asked if "/resolve/" in path}
    assert fetched == {"train.jsonl", "test.csv", "a.txt", "b.txt"}

    count = len(asked)
    offline = opened(url, tmp_path, *named, "org/other", HF_HUB_OFFLINE="1")
    assert offline[:3] == [train, test, words]
    assert "org/other is not in the cache" in offline[3]
    assert len(asked) == count


def test_what_the_hub_refuses_is_said_in_one_paragraph(hub, tmp_path):
    url, _ = hub
    missing, revision, split, pictures = opened(
        url, tmp_path, "org/absent", "org/chats@v9", "org/chats:validation", "org/pictures"
    )
    assert f"the data set org/absent is not on {url}" in missing
    assert "org/chats@v9 has no such revision" in revision
    assert "no file of the split `validation`; it has: test.csv, test.parquet, train.jsonl" in split
    assert "org/pictures has no file that can be read here" in pictures
    assert not any("\n" in message for message in (missing, revision, split, pictures))


@pytest.mark.parametrize(
    ("split", "files", "chosen"),
    [
        ("train", ["data/train-00000-of-00002.parquet", "data/test-0.parquet"], 1),
        ("train", ["trained.jsonl", "b.jsonl"], 2),
        ("train", ["a.jsonl", "a.csv"], 1),
        ("test", ["test/1.jsonl", "test/2.jsonl", "train/1.jsonl"], 2),
        ("en/test", ["en/test.jsonl", "de/test.jsonl"], 1),
        ("test", ["en/test.jsonl", "de/test.jsonl"], "several folders: de, en.*`org/x:de/test`"),
        ("test", ["a.jsonl"], "no file of the split `test`"),
        ("train", ["test.jsonl"], "no file of the split `train`"),
        ("train", ["dataset_infos.json", ".x.json"], "no file that can be read"),
    ],
)
def test_the_files_of_a_split(split, files, chosen):
    name = DatasetName("org/x", split=split)
    if isinstance(chosen, str):
        with pytest.raises(RequestRefused, match=chosen):
            _of_split(name, files)
    else:
        assert _of_split(name, files) == files[:chosen]
