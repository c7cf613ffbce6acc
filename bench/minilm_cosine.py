"""Our sentence embeddings against sentence-transformers' own PyTorch pipeline, 200 sentences.

    compile minilm-l6 --target cpu-fp32 -o build/minilm
    python bench/minilm_cosine.py build/minilm --peer-python /path/to/venv/bin/python

The other venv needs sentence-transformers. Exit code 1 when any cosine is below 0.9999.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from hf_folder_from_source import write_hf_folder
from record import record

from onnxforge.compiler.eval_text import sentences
from onnxforge.runtimes import load

FLOOR = 0.9999
EXTRA = (
    "",
    "Hi",
    "!!! ??? ...",
    "naïve façade, Straße, 東京 and Москва",
    "emoji 🙂🚀 and tabs\tand\nnewlines",
    "word " * 600,
)
PEER = """
import json, sys
import numpy as np
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu")
texts = json.load(open(sys.argv[2]))
np.save(sys.argv[3], model.encode(texts, normalize_embeddings=True, show_progress_bar=False))
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--model", default="minilm-l6")
    parser.add_argument("--sentences", type=int, default=200)
    asked = parser.parse_args()
    texts = [*EXTRA, *sentences(asked.sentences - len(EXTRA))]
    with tempfile.TemporaryDirectory() as temp:
        folder = write_hf_folder(asked.model, Path(temp) / "hf")
        work, answer = Path(temp) / "texts.json", Path(temp) / "peer.npy"
        work.write_text(json.dumps(texts))
        subprocess.run([asked.peer_python, "-c", PEER, folder, work, answer], check=True)
        theirs = np.load(answer)
    with load(asked.artifact) as model:
        ours = model.encode(texts, normalize_embeddings=True)
    cosine = (ours.astype(np.float64) * theirs).sum(axis=1)
    norms = np.linalg.norm(ours, axis=1)
    facts = {
        "sentences": len(texts),
        "min_cosine": float(cosine.min()),
        "mean_cosine": float(cosine.mean()),
        "max_abs_difference": float(np.abs(ours - theirs).max()),
        "norms": [float(norms.min()), float(norms.max())],
        "worst": texts[int(cosine.argmin())][:80],
    }
    rows = [
        (key.replace("_", " "), f"{value:.8g}")
        for key, value in facts.items()
        if isinstance(value, int | float)
    ]
    record("minilm_cosine", "Embeddings against sentence-transformers (PyTorch)", facts, ("", "value"), rows)
    return 0 if cosine.min() >= FLOOR else 1


if __name__ == "__main__":
    sys.exit(main())
