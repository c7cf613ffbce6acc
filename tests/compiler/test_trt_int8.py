"""trt-int8: every family of encoders comes out in the form that TensorRT takes; decoders are refused."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from onnxforge.compiler.build import build
from onnxforge.compiler.driver import Parts, compile_model
from onnxforge.compiler.errors import RequestRefused
from onnxforge.compiler.graph_feeds import whole_sequence_feeds
from onnxforge.compiler.provider_options import provider_options
from onnxforge.compiler.save import save_model
from onnxforge.compiler.structure import check_structure
from onnxforge.compiler.target_file import find_target
from onnxforge.compiler.targets import CPU, CUDA, TENSORRT
from onnxforge.runtimes.artifact import read_manifest

TARGET = find_target("trt-int8")
IDS = np.arange(4, 22, dtype=np.int64).reshape(2, 9)
MASK = np.array([[1] * 9, [1] * 5 + [0] * 4], dtype=np.int64)


def answers(graph: Path) -> np.ndarray:
    """float32, the first output's real tokens, with ONNX Runtime's own rewriting on."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(str(graph), options, providers=[CPU])
    found = session.run(None, whole_sequence_feeds(session.get_inputs(), IDS, MASK, "test"))[0]
    return found.astype(np.float32)[MASK.astype(bool)]


@pytest.mark.parametrize(
    "family",
    [
        "bert",
        "modernbert",
        *(
            pytest.param(family, marks=pytest.mark.slow)
            for family in ("roberta", "distilbert", "mpnet", "electra", "xlm-roberta")
        ),
    ],
)
def test_an_encoder_in_tensorrts_form(family, tiny_export, tiny_source, tmp_path):
    exported = tiny_export(family, "feature-extraction")
    source = tiny_source(family, "feature-extraction")
    (tmp_path / "a").mkdir()
    built = build(source, exported, TARGET, "feature-extraction", tmp_path / "a", name="a")
    broken = [check for check in check_structure(built.model, TENSORRT) if check.required and not check.held]
    assert broken == []
    assert any(node.op_type == "QuantizeLinear" for node in built.model.graph)
    save_model(exported, tmp_path / "float")
    meant = answers(tmp_path / "float/onnx/model.onnx")
    got = answers(tmp_path / "a/onnx/model.onnx")
    assert (got * meant).sum() / np.linalg.norm(got) / np.linalg.norm(meant) > 0.98


def test_the_profile_is_in_the_manifest_and_the_readme(tiny_export, tiny_source, tmp_path):
    source, exported = tiny_source("bert", "feature-extraction"), tiny_export("bert", "feature-extraction")
    folder = tmp_path / "a"
    folder.mkdir()
    built = build(source, exported, TARGET, "feature-extraction", folder, name="a")
    options = read_manifest(folder).provider_options
    assert options == built.manifest.provider_options
    fed = ("input_ids", "attention_mask", "token_type_ids")
    assert options["trt_profile_min_shapes"] == ",".join(f"{name}:1x1" for name in fed)
    assert options["trt_profile_max_shapes"] == ",".join(f"{name}:64x40" for name in fed), "40 is its context"
    assert not {"trt_fp16_enable", "trt_int8_enable"} & set(options), "strongly typed"
    page = (folder / "README.md").read_text()
    assert "tensorrt-cu13==10.16.1.11" in page
    assert f'"trt_profile_opt_shapes": "{options["trt_profile_opt_shapes"]}"' in page
    assert f'providers = [("{TENSORRT}", options), "{CUDA}", "{CPU}"]' in page


def test_other_providers_have_no_options(tiny_export):
    assert provider_options(CUDA, None, 512) == {}


def test_a_decoder_is_refused_with_what_serves_it(tmp_path: Path, parts: Parts, request_for):
    with pytest.raises(RequestRefused, match=r"does not compile a decoder: .*`cuda-int8`"):
        compile_model(request_for(tmp_path / "a", target=TARGET), parts=parts)
    assert not (tmp_path / "a").exists()
