"""Write any model that onnxforge can open as a plain Hugging Face folder, so that peers get the same weights.

python bench/hf_folder_from_source.py smollm2-135m /tmp/hf
"""

import argparse
import json
from pathlib import Path

from safetensors.numpy import save_file

from onnxforge.models import open_model


def write_hf_folder(ref: str, folder: Path) -> Path:
    """``config.json``, ``model.safetensors`` (as the source stores it) and the tokenizer files."""
    source = open_model(ref)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in source.sidecars.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (folder / "config.json").write_text(json.dumps(dict(source.config), indent=2))
    weights = {name: tensor.numpy() for name, tensor in source.weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    print(write_hf_folder(asked.model, asked.folder))
