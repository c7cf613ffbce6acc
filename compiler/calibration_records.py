"""Calibration data that comes as records: JSON Lines, CSV, Parquet and blocks of text, read as a stream.

Nothing is ever whole in memory: a first reading counts and checks the records, a second one takes the chosen.
"""

import csv
import gzip
import importlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from onnxforge.compiler.errors import RequestRefused

KEYS = ("text", "messages", "input_ids")
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
"""Kinds of files that hold records; JSON Lines may be compressed (``.jsonl.gz``)."""
_BLOCK = 1 << 15
"""Bytes of a plain text that make one record, to the end of the line."""
_EXAMPLE = '{"text": "..."}, {"messages": [{"role": "user", "content": "..."}]} or {"input_ids": [1, 2]}'

Content: TypeAlias = "str | tuple[int, ...] | tuple[Mapping[str, object], ...]"
"""A text, token ids, or the messages of a chat."""


@dataclass(frozen=True)
class Record:
    """One sample as it stands in its file."""

    where: str
    """For messages: ``chats.jsonl, line 3``."""
    content: Content


@dataclass(frozen=True)
class RecordFiles:
    """Files of records. ``column`` names the key that holds the sample; None takes the first of KEYS."""

    name: str
    paths: tuple[Path, ...]
    column: str | None = None

    def __iter__(self) -> Iterator[Record]:
        """Every record that is not empty, in order.

        Raises:
            RequestRefused: a file cannot be read, or a record is not what it should be; says which and why.
        """
        for path in self.paths:
            for where, row in _rows(path):
                content = _content(row, self.column, where)
                if content:
                    yield Record(where, content)


def drawn(files: RecordFiles, budget: int, longest: int, seed: int) -> Iterator[Record]:
    """Records for about ``budget`` tokens of at most ``longest`` each: drawn at random, in file order.

    A token is taken for four characters; when all records together hold less, all are given.
    """
    count, total = 0, 0.0
    for record in files:
        count, total = count + 1, total + min(_tokens(record.content), longest)
    wanted = min(count, int(np.ceil(budget * count / total))) if count else 0
    chosen = set(np.random.default_rng(seed).choice(count, wanted, replace=False).tolist()) if count else ()
    return (record for number, record in enumerate(files) if number in chosen)


def _tokens(content: Content) -> float:
    letters = len(content) if isinstance(content, str) else sum(len(str(part)) for part in content)
    return len(content) if content and isinstance(content[0], int) else max(letters / 4, 1)


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Every row with its place."""
    json_rows = [".gz", *(suffix for suffix in SUFFIXES if "json" in suffix)]
    readers = {".csv": _csv_rows, ".parquet": _parquet_rows, **dict.fromkeys(json_rows, _json_rows)}
    try:
        yield from readers.get(path.suffix, _text_blocks)(path)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise RequestRefused(f"{path} cannot be read: {error}.") from error


def _json_rows(path: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    compressed = path.suffix == ".gz"
    with gzip.open(path, "rb") if compressed else open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path.name}, line {number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are both
                raise RequestRefused(
                    f"{where} is no JSON ({error}). Each line is to be an object of its own: {_EXAMPLE}."
                ) from error
            if not isinstance(row, dict):
                raise RequestRefused(f"{where} is no JSON object. Write {_EXAMPLE}.")
            yield where, row


def _csv_rows(path: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a text may be longer than the 128 KiB of the default
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        for row in reader:
            named = {name: value for name, value in row.items() if isinstance(name, str)}
            yield f"{path.name}, line {reader.line_num}", named


def _text_blocks(path: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    """A text too large to be tokenized whole."""
    with open(path, encoding="utf-8-sig") as file:
        number = 1
        while lines := file.readlines(_BLOCK):
            yield f"{path.name}, line {number}", {"text": "".join(lines)}
            number += len(lines)


def _parquet_rows(path: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise RequestRefused(
            f"{path.name} is a Parquet file, and pyarrow is not installed: `pip install pyarrow`, or name "
            "data in JSON Lines, CSV or plain text."
        ) from error
    number = 0
    for batch in parquet.ParquetFile(path).iter_batches(batch_size=256):
        for row in batch.to_pylist():
            number += 1
            yield f"{path.name}, row {number}", row


def _content(row: Mapping[str, object], column: str | None, where: str) -> Content:
    """What ``row`` holds; empty when it holds nothing."""
    key = next((key for key in ((column,) if column else KEYS) if row.get(key) is not None), None)
    if key is None:
        wanted = f"no `{column}`" if column else "neither `text` nor `messages` nor `input_ids`"
        raise RequestRefused(
            f"{where} has {wanted} (its keys: {', '.join(map(str, row)) or 'none'}). Write {_EXAMPLE}; the "
            "column of a data set is named as `org/name:split:column`."
        )
    value = row[key]
    if isinstance(value, str):
        return value if value.strip() else ""
    if isinstance(value, list):
        if all(isinstance(item, int) and not isinstance(item, bool) for item in value):
            return tuple(value)
        if all(isinstance(item, Mapping) for item in value):
            return _messages(value, f"{where}: `{key}`")
    raise RequestRefused(
        f"{where}: `{key}` is to be a text, a list of token ids or a list of chat messages, and is "
        f"{json.dumps(value, default=str)[:60]}."
    )


def _messages(value: Sequence[Mapping[str, object]], where: str) -> tuple[Mapping[str, object], ...]:
    for number, message in enumerate(value):
        missing = [key for key in ("role", "content") if key not in message]
        if missing:
            raise RequestRefused(f"{where}[{number}] has no `{missing[0]}`. Write {_EXAMPLE}.")
    return tuple(value)
