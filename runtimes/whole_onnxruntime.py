"""Refuses half an installation of onnxruntime, before anything looks into it.

``onnxruntime`` and ``onnxruntime-gpu`` write the same files: whoever uninstalls one of the two is left with a
folder in which hardly anything is, and with errors that say nothing of it.
"""

_REPAIR = (
    "Repair it: pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime (with an NVIDIA GPU: "
    "onnxruntime-gpu)."
)

try:
    import onnxruntime
except ImportError as error:
    raise ImportError(f"onnxforge needs onnxruntime, which cannot be imported: {error}. {_REPAIR}") from error

if not hasattr(onnxruntime, "InferenceSession"):
    raise ImportError(f"Only a part of onnxruntime is left in {list(onnxruntime.__path__)}. {_REPAIR}")
