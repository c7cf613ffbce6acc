"""Which models and tasks export, and what is said of those that do not."""

import dataclasses

import pytest

from onnxforge.models.errors import SourceError, UnsupportedModel
from onnxforge.models.export import export_model
from onnxforge.models.families import FAMILIES
from onnxforge.models.source import Source, SourceKind
from onnxforge.models.tasks import Task, parse_task, task_for


def _source(config, sidecars=()):
    return Source("m", SourceKind.FOLDER, config, sidecars=dict.fromkeys(sidecars, b""))


def _changed(source, **config):
    return dataclasses.replace(source, config=dict(source.config) | config)


def test_an_unknown_architecture_names_the_missing_piece_and_the_near_ones():
    with pytest.raises(UnsupportedModel, match=r"'qwen4'.*models/families\.py.*Nearest: qwen3, qwen2"):
        export_model(_source({"model_type": "qwen4"}))


def test_a_config_without_model_type_is_refused():
    with pytest.raises(UnsupportedModel, match="no model_type"):
        export_model(_source({"hidden_size": 3}))


def test_a_task_the_family_has_not_is_refused(tiny_source):
    with pytest.raises(
        UnsupportedModel, match=r"llama has no exporter for the task 'fill-mask'.*text-generation"
    ):
        export_model(tiny_source("llama"), "fill-mask")


@pytest.mark.parametrize(
    ("given", "task"),
    [
        ("text-generation-with-past", Task.TEXT_GENERATION),
        ("causal-lm-with-past", Task.TEXT_GENERATION),
        ("text-generation", Task.TEXT_GENERATION),
        ("sequence-classification", Task.TEXT_CLASSIFICATION),
        ("masked-lm", Task.FILL_MASK),
        ("sentence-similarity", Task.FEATURE_EXTRACTION),
    ],
)
def test_tasks_are_optimums_with_its_synonyms(given, task):
    assert parse_task(given) is task


def test_an_unknown_task_lists_the_known_ones():
    with pytest.raises(UnsupportedModel, match=r"'mind-reading' is not exported.*fill-mask"):
        parse_task("mind-reading")


@pytest.mark.parametrize(
    ("config", "sidecars", "task"),
    [
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, (), "text-generation-with-past"),
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, (), "text-generation-with-past"),
        ({"model_type": "llama"}, (), "text-generation-with-past"),
        ({"model_type": "bert", "architectures": ["BertModel"]}, (), "feature-extraction"),
        ({"model_type": "bert"}, (), "feature-extraction"),
        ({"model_type": "bert", "architectures": ["BertForPreTraining"]}, (), "fill-mask"),
        (
            {"model_type": "electra", "architectures": ["ElectraForPreTraining"]},
            (),
            "feature-extraction",  # the discriminator: it tells replaced words, and guesses none
        ),
        (
            {"model_type": "mpnet", "architectures": ["MPNetForMaskedLM"]},
            ("modules.json",),
            "feature-extraction",
        ),
        ({"model_type": "bert", "architectures": ["BertForTokenClassification"]}, (), "token-classification"),
        (
            {"model_type": "bert", "architectures": ["BertForSequenceClassification"]},
            (),
            "text-classification",
        ),
    ],
)
def test_the_models_own_files_imply_the_task(config, sidecars, task):
    assert task_for(_source(config, sidecars)) == task


def test_electras_discriminator_exports_as_the_encoder_that_it_is(tiny_source):
    tiny = tiny_source("electra")
    weights = {f"electra.{name}": tensor for name, tensor in tiny.weights.items()}
    weights["discriminator_predictions.dense.weight"] = tiny.weights["encoder.layer.0.output.dense.weight"]
    config = dict(tiny.config) | {"architectures": ["ElectraForPreTraining"]}
    model = export_model(dataclasses.replace(tiny, config=config, weights=weights))
    assert [value.name for value in model.graph.outputs] == ["last_hidden_state"]


def test_an_architecture_without_a_task_is_refused():
    with pytest.raises(UnsupportedModel, match="BertForQuestionAnswering"):
        task_for(_source({"model_type": "bert", "architectures": ["BertForQuestionAnswering"]}))


def test_packed_weights_are_refused(tiny_source):
    with pytest.raises(UnsupportedModel, match="quantization_config"):
        export_model(_changed(tiny_source("llama"), quantization_config={"quant_method": "gptq"}))


def test_rotary_tables_that_follow_the_prompt_are_refused(tiny_source):
    scaling = {"rope_type": "dynamic", "factor": 2.0}
    with pytest.raises(UnsupportedModel, match="'dynamic' changes its frequencies"):
        export_model(_changed(tiny_source("llama"), rope_scaling=scaling))


def test_a_mask_rule_of_the_models_own_is_refused(tiny_source):
    with pytest.raises(UnsupportedModel, match="only causal"):
        export_model(_changed(tiny_source("gemma3_text"), use_bidirectional_attention=True))


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_size": "many"},
        {"num_hidden_layers": 0},
        {"num_hidden_layers": 1000000},
        {"vocab_size": -1},
        {"max_position_embeddings": 10**15},
        {"rope_scaling": 7},
        {"rope_scaling": {"rope_type": "llama3"}},
        {"hidden_act": "nothing"},
    ],
)
def test_an_impossible_configuration_is_a_source_error(values, tiny_source):
    with pytest.raises(SourceError, match=r"config\.json"):
        export_model(_changed(tiny_source("llama"), **values))


def test_keys_that_choose_code_are_not_obeyed(tiny_source):
    hostile = {
        "auto_map": {"AutoModelForCausalLM": "evil--model.Evil"},
        "attn_implementation": "somebody/kernel",
        "_attn_implementation": "somebody/kernel",
        "torch_dtype": "float16",
    }
    model = export_model(_changed(tiny_source("llama", num_hidden_layers=2), **hostile))
    assert [node.op_type for node in model.graph].count("Attention") == 2


def test_every_class_in_the_table_exists():
    import importlib

    for family in FAMILIES.values():
        module = importlib.import_module(f"transformers.models.{family.module}.modeling_{family.module}")
        missing = [name for name in family.classes.values() if not hasattr(module, name)]
        assert not missing, family.model_type
