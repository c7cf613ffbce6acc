"""What a user may name as calibration data, and what is refused, before any work."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from onnxforge.compiler.calibration_check import check_calibration
from onnxforge.compiler.calibration_hub import DatasetName, dataset_name
from onnxforge.compiler.calibration_records import RecordFiles
from onnxforge.compiler.calibration_source import LARGE, SelfSampled, open_corpus
from onnxforge.compiler.errors import RequestRefused
from onnxforge.compiler.eval_text import EvaluationText, calibration_text
from onnxforge.compiler.targets import Target
from onnxforge.models.source import Source, SourceKind

CALIBRATED = Target("t", "", ("calibrate",))
DECODER = Source("tiny", SourceKind.FOLDER, {"architectures": ["LlamaForCausalLM"], "vocab_size": 9})
ENCODER = replace(DECODER, config={"architectures": ["BertModel"]})


def test_each_form_has_its_kind(tmp_path: Path):
    (tmp_path / "a.txt").write_text("some text", encoding="utf-8")
    (tmp_path / "notes").write_text("without a suffix", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text("{}", encoding="utf-8")
    assert open_corpus(None) == calibration_text()
    assert open_corpus("self") == SelfSampled()
    assert open_corpus(str(tmp_path / "a.txt")) == EvaluationText("a.txt", "some text")
    assert open_corpus(str(tmp_path / "notes")) == EvaluationText("notes", "without a suffix")
    assert open_corpus(str(tmp_path / "a.jsonl")) == RecordFiles("a.jsonl", (tmp_path / "a.jsonl",))


def test_a_text_too_large_to_tokenize_is_drawn_from(tmp_path: Path):
    path = tmp_path / "large.txt"
    with path.open("wb") as file:
        file.truncate(LARGE + 1)
    assert open_corpus(str(path)) == RecordFiles("large.txt", (path,))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("org/data", DatasetName("org/data")),
        ("wikitext", DatasetName("wikitext")),
        ("org/data:test", DatasetName("org/data", split="test")),
        ("org/data::body", DatasetName("org/data", column="body")),
        ("org/data@v1:en/test:my text", DatasetName("org/data", "v1", "en/test", "my text")),
        ("a b", None),
        ("a/b/c", None),
        ("org/data:a:b:c", None),
    ],
)
def test_a_data_set_has_a_split_and_a_column(text, name):
    assert dataset_name(text) == name


@pytest.mark.parametrize(
    ("content", "named", "says"),
    [
        (None, "{}/absent.txt", "no calibration file .*absent.txt"),
        (None, "./absent", "no calibration file absent"),
        (None, "absent.jsonl", "no calibration file absent.jsonl"),
        (None, "a b", "`a b` names no calibration data"),
        (b"", "{}/a.txt", "a.txt is empty"),
        (b" \n\t\n", "{}/a.txt", "a.txt is empty"),
        (b"\xff\xfe", "{}/a.txt", "not UTF-8 .byte 0"),
        (b"PK\0\0", "{}/a.bin", "a.bin is no text"),
        (b"", "{}/a.jsonl", "holds no record"),
        (b'{"text": ""}\n', "{}/a.jsonl", "holds no record"),
        (b'{"text": "a"}\n{"text": 1}', "{}/a.jsonl", "line 2: `text`"),
        (b'{"text": "a"}', "{}/a.jsonl", "line 1: tiny brings no tokenizer.json"),
        (
            b'{"messages": [{"role": "user", "content": ""}]}',
            "{}/a.jsonl",
            "line 1: tiny brings no chat templ",
        ),
        (b'{"input_ids": [1, 9]}', "{}/a.jsonl", "line 1: `input_ids` holds 9, and the vocabulary .* has 9"),
        (b'{"input_ids": [-1]}', "{}/a.jsonl", "line 1: `input_ids` holds -1"),
    ],
)
def test_what_cannot_serve_is_refused(tmp_path: Path, content, named, says):
    if content is not None:
        (tmp_path / Path(named).name).write_bytes(content)
    target = replace(CALIBRATED, calibration=named.format(tmp_path))
    with pytest.raises(RequestRefused, match=says):
        check_calibration(target, DECODER, None)


def test_what_serves_passes(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"input_ids": [1, 2]}), encoding="utf-8")
    for named in (None, "self", str(path)):
        for task in (None, "auto", "text-generation", "text-generation-with-past"):
            check_calibration(replace(CALIBRATED, calibration=named), DECODER, task)
    graph = Source("a.onnx", SourceKind.ONNX, {})  # whose kind shows when `calibrate` runs
    check_calibration(replace(CALIBRATED, calibration="self"), graph, None)


def test_an_encoder_cannot_write_its_own_text():
    target = replace(CALIBRATED, calibration="self")
    with pytest.raises(RequestRefused, match="--calibration self needs a model that writes text"):
        check_calibration(target, ENCODER, None)
    with pytest.raises(RequestRefused, match="needs a model that writes text"):
        check_calibration(target, DECODER, "feature-extraction")


def test_data_that_no_step_looks_at_is_refused():
    with pytest.raises(RequestRefused, match=r"no step of target `t` looks at any: these do: .*calibrate"):
        check_calibration(Target("t", "", ("cleanup",), calibration="self"), DECODER, None)
