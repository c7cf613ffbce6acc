"""Our tokenizer for a GGUF file against llama.cpp's, on generated text.

    pip install llama-cpp-python tokenizers numpy gguf onnx-ir
    python bench/tokenizer_oracle.py [model.gguf] [--texts 500] [--pre NAME | --sentencepiece]

Without a file, the demo model's. llama.cpp loads the vocabulary only. Both sides parse special tokens in the
text and add BOS where the file says so. ``--pre`` first rewrites ``tokenizer.ggml.pre`` in a copy that holds
no weights, so that every cutting rule can be compared with one vocabulary (``--pre all`` runs them all).
``--sentencepiece`` compares SentencePiece BPE on a small vocabulary trained here, with and without the space
prefix. Exit code 1 when any text differs.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from gguf import GGUFWriter
from llama_cpp import Llama
from tokenizers import Tokenizer

from onnxforge.compiler.text_corpus import CODE, WORDS, texts
from onnxforge.models.demo import locate_demo
from onnxforge.models.gguf_file import GgufFile, read_gguf
from onnxforge.models.gguf_pretokenizers import PRE_TOKENIZERS
from onnxforge.models.gguf_tokenizer import tokenizer_files


def compare(path: Path, file: GgufFile, count: int) -> int:
    """Print matches and mismatches for one file; return the number of mismatches."""
    ours = Tokenizer.from_str(tokenizer_files(file, 2048)["tokenizer.json"].decode())
    theirs = Llama(str(path), vocab_only=True, verbose=False)
    specials = [token.content for token in ours.get_added_tokens_decoder().values()][:8]
    wrong = 0
    for text in texts(count, specials):
        mine = ours.encode(text).ids
        reference = theirs.tokenize(text.encode(), add_bos=True, special=True)
        if mine != reference:
            wrong += 1
            if wrong <= 5:
                print(f"  differs: {text!r}\n    ours      {mine}\n    llama.cpp {reference}")
    print(f"{file.metadata.get('tokenizer.ggml.pre')}: {count - wrong}/{count} texts give the same token ids")
    return wrong


def with_rule(file: GgufFile, rule: str, folder: Path) -> Path:
    """A copy of the file's tokenizer, without weights, under another cutting rule."""
    path = folder / f"{rule}.gguf"
    writer = GGUFWriter(path, "llama")
    _add_sizes(writer)
    metadata = file.metadata
    writer.add_tokenizer_model(str(metadata["tokenizer.ggml.model"]))
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(list(metadata["tokenizer.ggml.tokens"]))
    writer.add_token_types(list(metadata["tokenizer.ggml.token_type"]))
    writer.add_token_merges(list(metadata["tokenizer.ggml.merges"]))
    _finish(
        writer, int(metadata["tokenizer.ggml.bos_token_id"]), int(metadata["tokenizer.ggml.eos_token_id"])
    )
    return path


def sentencepiece(folder: Path, space_prefix: bool) -> Path:
    """A SentencePiece vocabulary of about 6,000 pieces, trained on Python's own documentation."""
    import json
    import pydoc_data.topics

    from gguf import GGUFWriter
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    prose = "\n".join(pydoc_data.topics.topics.values())[:400_000]
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    corpus = [prose, "\n".join(WORDS * 50), "\n".join(CODE * 20)]
    trained.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=6000, show_progress=False))
    merged = [left + right for left, right in json.loads(trained.to_str())["model"]["merges"]]
    letters = sorted(trained.get_vocab().keys() - set(merged))
    head = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces, tail = list(dict.fromkeys([*merged, *letters])), ["<|user|>", "[tool]"]
    path = folder / f"sentencepiece-{space_prefix}.gguf"
    writer = GGUFWriter(path, "llama")
    _add_sizes(writer)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("SentencePiece" + (", space prefix" if space_prefix else ""))
    writer.add_token_list([*head, *pieces, *tail])
    writer.add_token_scores(
        [0.0] * len(head) + [-float(rank) for rank in range(len(pieces))] + [0.0] * len(tail)
    )
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * len(pieces), 3, 4])
    writer.add_unk_token_id(0)
    writer.add_add_space_prefix(space_prefix)
    _finish(writer, 1, 2)
    return path


def _add_sizes(writer: GGUFWriter) -> None:
    """The sizes without which llama.cpp opens no file, whatever is asked of it."""
    writer.add_block_count(1)
    writer.add_context_length(2048)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(64)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)


def _finish(writer: GGUFWriter, bos: int, eos: int) -> None:
    writer.add_bos_token_id(bos)
    writer.add_eos_token_id(eos)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> int:
    """Run the comparison that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", type=Path, help="a GGUF file (default: the demo model)")
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--pre", help="compare under this cutting rule, or 'all'")
    parser.add_argument("--sentencepiece", action="store_true", help="compare SentencePiece BPE")
    options = parser.parse_args()
    if options.sentencepiece:
        with tempfile.TemporaryDirectory() as folder:
            copies = [sentencepiece(Path(folder), prefix) for prefix in (True, False)]
            return int(sum(compare(copy, read_gguf(copy), options.texts) for copy in copies) > 0)
    path = options.model or locate_demo("smollm2-135m")
    file = read_gguf(path)
    if options.pre is None:
        return int(compare(path, file, options.texts) > 0)
    rules = sorted(PRE_TOKENIZERS) if options.pre == "all" else [options.pre]
    with tempfile.TemporaryDirectory() as folder:
        copies = [with_rule(file, rule, Path(folder)) for rule in rules]
        return int(sum(compare(copy, read_gguf(copy), options.texts) for copy in copies) > 0)


if __name__ == "__main__":
    sys.exit(main())
