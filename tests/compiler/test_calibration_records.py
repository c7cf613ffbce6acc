"""Records of calibration data: what a file may hold, and what is said of one that holds something else."""

import gzip
import json

import pytest

from onnxforge.compiler.calibration_records import Record, RecordFiles, drawn
from onnxforge.compiler.errors import RequestRefused


def files(path, content, column=None):
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return RecordFiles(path.name, (path,), column)


def lines(*rows):
    return "\n".join(json.dumps(row) for row in rows)


CHAT = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a.jsonl.gz"])
def test_each_line_is_a_text_a_chat_or_ids(tmp_path, name):
    rows = (
        lines({"text": "one"}, {"messages": CHAT}, {"input_ids": [3, 4], "extra": None}, {"text": " "})
        + "\n\n"
    )
    found = list(files(tmp_path / name, rows))
    assert [record.content for record in found] == ["one", tuple(CHAT), (3, 4)]
    assert [record.where for record in found] == [f"{name}, line {number}" for number in (1, 2, 3)]


def test_a_column_is_taken_by_name(tmp_path):
    named = files(tmp_path / "a.jsonl", lines({"text": "no", "prompt": "yes"}), "prompt")
    assert [record.content for record in named] == ["yes"]


def test_csv_has_lines_within_its_fields(tmp_path):
    table = 'id,text\n1,"two\nlines"\n2,' + "long " * 40_000 + "\n"
    found = list(files(tmp_path / "a.csv", table))
    assert found[0] == Record("a.csv, line 3", "two\nlines")
    assert len(found[1].content) > 190_000


def test_a_large_text_comes_in_blocks_that_end_with_a_line(tmp_path):
    text = "".join(f"line {number}\n" for number in range(20_000))
    found = list(files(tmp_path / "a.txt", text))
    assert len(found) > 3
    assert "".join(record.content for record in found) == text
    assert all(record.content.endswith("\n") for record in found)


def test_parquet_is_read_where_pyarrow_is(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    parquet.write_table(pyarrow.table({"text": ["one", "two"], "n": [1, 2]}), tmp_path / "a.parquet")
    found = list(RecordFiles("a", (tmp_path / "a.parquet",)))
    assert [record.content for record in found] == ["one", "two"]
    assert found[1].where == "a.parquet, row 2"


def test_without_pyarrow_parquet_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(RequestRefused, match=r"a\.parquet is a Parquet file.*pip install pyarrow"):
        list(files(tmp_path / "a.parquet", b"PAR1"))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{", "line 2 is no JSON"),
        ("[1]", "line 2 is no JSON object"),
        (b"\xff", "line 2 is no JSON"),
        ('{"prompt": "x", "n": 1}', r"line 2 has neither `text` nor .*its keys: prompt, n"),
        ("{}", "its keys: none"),
        ('{"text": 5}', "line 2: `text` is to be a text.* is 5"),
        ('{"input_ids": [1, "a"]}', "line 2: `input_ids` is to be"),
        ('{"input_ids": [true]}', "line 2: `input_ids` is to be"),
        ('{"messages": [{"role": "user"}]}', r"line 2: `messages`\[0\] has no `content`"),
        ('{"messages": [{"content": "x"}]}', r"line 2: `messages`\[0\] has no `role`"),
    ],
)
def test_what_is_wrong_is_said_with_its_line_and_key(tmp_path, row, says):
    row = row if isinstance(row, bytes) else row.encode()
    with pytest.raises(RequestRefused, match=says):
        list(files(tmp_path / "a.jsonl", b'{"text": "fine"}\n' + row))


def test_a_broken_archive_is_refused(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "x"}')[:-6])
    with pytest.raises(RequestRefused, match="cannot be read"):
        list(RecordFiles("a", (path,)))


def test_about_as_many_are_drawn_as_the_budget_asks_for(tmp_path):
    held = files(tmp_path / "a.jsonl", lines(*({"text": "word " * 80} for _ in range(50))))
    assert [len(list(drawn(held, budget, 512, 0))) for budget in (100, 950, 10**6)] == [1, 10, 50]
    assert len(list(drawn(held, 1000, 50, 0))) == 20  # a record gives 50 tokens at most
    first, again, other = (list(drawn(held, 500, 512, seed)) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert [r.where for r in first] == sorted((r.where for r in first), key=lambda w: int(w.split()[-1]))
