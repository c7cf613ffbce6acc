"""Load an artifact and run it: onnxruntime, numpy and tokenizers only."""
