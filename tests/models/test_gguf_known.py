"""The GGUF architectures that are said to be known are those that compile."""

import pytest
from gguf import GGUFWriter

from onnxforge.models import UnsupportedModel, open_model
from onnxforge.models.families import FAMILIES
from onnxforge.models.gguf_architectures import ARCHITECTURES
from onnxforge.models.tasks import Task


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_record_is_for_a_family_that_exports(name):
    record = ARCHITECTURES[name]
    assert FAMILIES[record.model_type].classes[Task.TEXT_GENERATION] == record.causal_class


def test_an_unknown_architecture_is_named_with_the_known_ones(tmp_path, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "gemma0", ARCHITECTURES["gemma"].__class__("gemma0", "", {}, {}))
    writer = GGUFWriter(tmp_path / "model.gguf", "mamba9")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedModel, match=r"'mamba9' is not known. Known: gemma, gemma2"):
        open_model(str(tmp_path / "model.gguf"))
