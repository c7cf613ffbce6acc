"""Load an artifact and run it: onnxruntime, numpy and tokenizers only."""

from onnxforge.runtimes import whole_onnxruntime  # noqa: F401  (first: the others import onnxruntime)
from onnxforge.runtimes.artifact import FileRecord, Manifest, read_manifest, write_manifest
from onnxforge.runtimes.decoder import Decoder
from onnxforge.runtimes.decoder_state import DecoderState
from onnxforge.runtimes.encoder import Encoder
from onnxforge.runtimes.errors import ArtifactError, ContextOverflow, NumericalError, RequestError
from onnxforge.runtimes.generation_options import GenerationOptions
from onnxforge.runtimes.interruption import CancelToken
from onnxforge.runtimes.loading import Model, load
from onnxforge.runtimes.predictions import Prediction
from onnxforge.runtimes.result import Result, SpeculativeStats, Stats
from onnxforge.runtimes.speculation import Speculation
from onnxforge.runtimes.text_stream import TextStream
from onnxforge.runtimes.verify import verify_files

__all__ = [
    "ArtifactError",
    "CancelToken",
    "ContextOverflow",
    "Decoder",
    "DecoderState",
    "Encoder",
    "FileRecord",
    "GenerationOptions",
    "Manifest",
    "Model",
    "NumericalError",
    "Prediction",
    "RequestError",
    "Result",
    "Speculation",
    "SpeculativeStats",
    "Stats",
    "TextStream",
    "load",
    "read_manifest",
    "verify_files",
    "write_manifest",
]
