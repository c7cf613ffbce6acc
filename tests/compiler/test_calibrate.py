"""The `calibrate` step: what it leaves on the values, in an artifact and in a report."""

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from onnxforge.compiler.activation_tally import ActivationTally
from onnxforge.compiler.activations import multiplied
from onnxforge.compiler.calibrate import Calibrate
from onnxforge.compiler.calibration_data import attach, calibration_batches
from onnxforge.compiler.calibration_notes import calibration_notes
from onnxforge.compiler.clipping import METHODS
from onnxforge.compiler.driver import compile_model
from onnxforge.compiler.errors import RequestRefused
from onnxforge.compiler.targets import Target
from onnxforge.passes.activation_range import range_of
from onnxforge.passes.base import PassRefused
from onnxforge.runtimes.artifact import read_manifest

QDQ = "insert-qdq{min_sqnr_db=0.0,min_elements=1}"


@pytest.fixture
def decoder(parts):
    """A graph whose LM head reads embeddings, its source with a tokenizer, and the embeddings."""
    made = Tokenizer(models.WordLevel({f"w{i}": i for i in range(32)}, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    source = replace(parts.open_model("tiny", None), sidecars={"tokenizer.json": made.to_str().encode()})
    model = parts.export_model(source, None)
    return model, source, model.graph.initializers["embed"].const_value.numpy()


def text(path, count=400, seed=0, words=32):
    ids = np.random.default_rng(seed).integers(0, words, count)
    path.write_text(" ".join(f"w{i}" for i in ids), encoding="utf-8")
    return path


def seen(model):
    (value,) = multiplied(model.graph)
    return range_of(value)


@pytest.mark.parametrize("method", METHODS)
def test_channels_keep_what_was_seen_whatever_range_a_method_chooses(decoder, tmp_path, method):
    model, source, embeddings = decoder
    attach(model, source, str(text(tmp_path / "a.txt", words=20)))
    before = ir.to_onnx_text(model)
    assert not Calibrate(method=method, percentile=99.0, samples=50, tokens=16)(model).modified
    assert ir.to_onnx_text(model) == before
    found, rows = seen(model), embeddings[:20]
    np.testing.assert_array_equal(found.low, rows.min(axis=0))
    np.testing.assert_array_equal(found.high, rows.max(axis=0))
    assert found.typical == pytest.approx(np.sqrt(np.median((rows**2).mean(axis=1))), rel=0.05)
    low, high = found.bounds
    assert rows.min() <= low < high <= rows.max()
    if method == "min-max":
        assert found.chosen is None
    if method == "percentile":
        assert high < np.quantile(rows, 0.999)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "average"}, "use one of min-max, percentile, entropy, mse"),
        ({"percentile": 50.0}, "above 50"),
        ({"percentile": 100.1}, "above 50"),
        ({"samples": 0}, "at least 1 sample"),
        ({"tokens": 1}, "of 2 tokens"),
        ({"seed": -1}, "must not be negative"),
    ],
)
def test_options_that_measure_nothing_are_refused(decoder, options, says):
    with pytest.raises(ir.passes.PreconditionError) as refused:
        Calibrate(**options)(decoder[0])
    assert isinstance(refused.value.__cause__, PassRefused)
    assert says in str(refused.value.__cause__)


def test_values_that_are_not_finite_are_refused(decoder, tmp_path):
    model, source, embeddings = decoder
    embeddings = embeddings.copy()
    embeddings[7, 3] = np.nan
    model.graph.initializers["embed"].const_value = ir.tensor(embeddings, name="embed")
    attach(model, source, str(text(tmp_path / "a.txt")))
    with pytest.raises(PassRefused, match="calibrate: 'hidden' holds NaN or an infinity"):
        Calibrate()(model)


def test_a_tally_does_not_grow_with_what_it_counts():
    def held(batches):
        tracemalloc.start()
        tally = ActivationTally("mse", 99.99)
        for seed in range(batches):
            tally.add(np.random.default_rng(seed).normal(size=(64, 32)).astype(np.float32))
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return size

    held(1)  # what is loaded at first use is not the tally's
    assert held(60) < held(3) + 4096


def target(named, *passes):
    return Target(name="mine", summary="", passes=passes or ("calibrate{method=mse}", QDQ), calibration=named)


def compiled(request_for, parts, decoder, output, named):
    given = replace(parts, open_model=lambda ref, revision: decoder[1])
    compile_model(request_for(output, target=target(str(named)), proof=False), parts=given)
    return read_manifest(output).summary, json.loads((output / "report/recipe.json").read_text())


def test_equal_data_gives_equal_bytes_and_the_artifact_says_what_it_was(
    request_for, parts, decoder, tmp_path
):
    one, other = text(tmp_path / "a.txt"), text(tmp_path / "b.txt", seed=1, words=9)
    first, recipe = compiled(request_for, parts, decoder, tmp_path / "1", one)
    again, _ = compiled(request_for, parts, decoder, tmp_path / "2", one)
    different, _ = compiled(request_for, parts, decoder, tmp_path / "3", other)
    assert (tmp_path / "1/onnx/model.onnx").read_bytes() == (tmp_path / "2/onnx/model.onnx").read_bytes()
    assert first == again
    assert first["content_digest"] != different["content_digest"]
    assert first["calibration_source"] == "a.txt"
    assert first["calibration_tokens"] == 384  # six whole windows of the context of 64
    assert first["calibration_steps"] == "calibrate{method=mse}"
    assert len(first["calibration_ids_sha256"]) == 64
    assert recipe["target"]["calibration"] == str(one)


def test_sequences_of_its_own_give_equal_bytes_too(request_for, parts, decoder, tmp_path):
    first, _ = compiled(request_for, parts, decoder, tmp_path / "1", "self")
    again, _ = compiled(request_for, parts, decoder, tmp_path / "2", "self")
    assert first == again
    assert first["calibration_source"] == "sampled from the model itself"


@pytest.mark.parametrize(
    ("content", "passes", "says"),
    [("", (), "is empty"), ("x", ("cleanup",), "no step of target `mine`")],
)
def test_bad_data_is_refused_before_anything_is_exported(request_for, parts, tmp_path, content, passes, says):
    (tmp_path / "a.txt").write_text(content, encoding="utf-8")
    exported = []
    given = replace(parts, export_model=lambda *_: exported.append(1))
    asked = request_for(tmp_path / "out", target=target(str(tmp_path / "a.txt"), *passes))
    with pytest.raises(RequestRefused, match=says):
        compile_model(asked, parts=given)
    assert not exported
    assert not (tmp_path / "out").exists()


def test_the_report_tells_when_calibration_has_seen_the_test(decoder, tmp_path):
    model, source, _ = decoder
    ours, theirs = text(tmp_path / "ours.txt", 2000), text(tmp_path / "theirs.txt", 2000, seed=1)
    attach(model, source, str(ours))
    assert calibration_notes(model, source, ours) == ()  # nothing calibrated yet
    calibration_batches(model, 8, 64, used_by="calibrate")
    assert calibration_notes(model, source, theirs) == ()
    assert calibration_notes(None, source, ours) == ()
    (note,) = calibration_notes(model, source, ours)
    assert note.startswith("**Calibrated on the test**: 100% of the calibration data (ours.txt) is also in")
    assert "makes 2" in note
    assert "--eval-text" in note


def test_the_report_tells_when_there_was_little_to_calibrate_on(decoder, tmp_path):
    model, source, _ = decoder
    attach(model, source, str(text(tmp_path / "a.txt", 30)))
    calibration_batches(model, 8, 64, used_by="calibrate")
    (note,) = calibration_notes(model, source, text(tmp_path / "b.txt", 300, seed=1))
    assert note == "Calibration had 30 tokens, of 512 asked for: all that a.txt holds."


def test_the_texts_that_are_there_by_default_are_apart(decoder):
    model, source, _ = decoder
    attach(model, source)
    calibration_batches(model, 4, 64)
    assert calibration_notes(model, source, None) == ()


def test_a_text_of_which_the_tokenizer_knows_nothing_is_refused(decoder):
    model, source, _ = decoder
    attach(model, source)  # the default text: to this tokenizer one unknown word after the other
    with pytest.raises(PassRefused, match=r"only \d different ones.*--calibration FILE"):
        Calibrate(samples=2, tokens=32)(model)
