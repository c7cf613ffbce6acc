"""Read the calibration data once through and count which tokens it uses, for `prune-vocabulary`."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxforge.compiler.calibration_data import CalibrationData, data_of
from onnxforge.compiler.calibration_records import Record, RecordFiles, drawn
from onnxforge.compiler.calibration_source import SelfSampled
from onnxforge.compiler.calibration_tokens import RecordTokens
from onnxforge.compiler.errors import CompileError
from onnxforge.compiler.eval_text import EvaluationText
from onnxforge.compiler.graph_facts import graph_kind
from onnxforge.compiler.served_source import (
    check_vocabulary,
    renumbered_ids,
    served_source,
    special_ids,
)
from onnxforge.passes import notes
from onnxforge.passes.base import GraphPass, PassRefused
from onnxforge.passes.token_counts import TokenCounts, leave_counts

WHAT = "tokens of the corpus"
_BLOCK = 1 << 15
"""Characters of a running text that are tokenized at once, to the end of the line."""
_WHOLE = 1 << 40


@dataclass(frozen=True)
class CountTokens(GraphPass):
    """Leave on the model how often the calibration data uses each token. Nothing in the graph changes.

    All of the data is read, not the few windows that other steps run the graph on: the graph does not run
    here, and tokens are many. Give what the model will read and write, answers included. What the chat
    template writes counts as needed.
    """

    summary: ClassVar[str] = "which tokens the calibration data uses, and how often (for prune-vocabulary)"

    tokens: int = 0
    """Of larger data, records for about this many tokens are drawn; 0 reads everything."""
    least: int = 1000
    """Data of fewer tokens is refused: it would leave hardly any vocabulary."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Count; see :mod:`onnxforge.passes.token_counts`.

        Raises:
            PassRefused: no data, too little, none that was written by somebody; or a tokenizer that cannot be
                cut.
            ValueError: the model came without its source.
        """
        data = data_of(model)
        if data is None:
            raise ValueError("counting tokens needs the source of the model, which the driver attaches")
        if isinstance(data.corpus, SelfSampled):
            raise PassRefused(
                f"{self.text()}: what the model makes up shows too little of its vocabulary. Name a text "
                "with --calibration, or leave the option out."
            )
        try:
            source = served_source(data.source, model)
            pieces = check_vocabulary(source)
            needed_ids = pieces.needed | special_ids(source, pieces)
            counts = np.zeros(max(pieces.ids.values()) + 1, dtype=np.int64)
            given = partial(renumbered_ids, model=model)
            reader = RecordTokens(source, whole=graph_kind(model) != "decoder", given=given)
            for record in corpus_records(data, self.tokens):
                ids = reader.of(record, _WHOLE)
                counts += np.bincount(ids, minlength=len(counts))[: len(counts)]
        except CompileError as error:
            raise PassRefused(str(error)) from error
        total = int(counts.sum())
        if total < self.least:
            raise PassRefused(
                f"{self.text()}: {data.corpus.name} holds {total:,} tokens, and {self.least:,} are wanted. "
                "Name more text with --calibration, or set `least` lower."
            )
        exists, needed = np.zeros((2, len(counts)), dtype=np.bool_)
        exists[list(pieces.ids.values())] = True
        needed[[*needed_ids, *reader.of_template()]] = True
        leave_counts(model, TokenCounts(counts, exists, needed, pieces.parts))
        used = int((counts > 0).sum())
        notes.match(WHAT, f"{used:,} of {len(pieces.ids):,} in {total:,} tokens of {data.corpus.name}")
        return ir.passes.PassResult(model, modified=False)


def corpus_records(data: CalibrationData, tokens: int = 0) -> Iterator[Record]:
    """The records of ``data``; of a running text, blocks of whole lines. ``tokens`` as :class:`CountTokens`.

    Raises:
        RequestRefused: a record cannot be read, or is not what it should be.
    """
    corpus = data.corpus
    if isinstance(corpus, RecordFiles):
        yield from drawn(corpus, tokens, _WHOLE, 0) if tokens else corpus
    elif isinstance(corpus, EvaluationText):
        block, size = [], 0
        for line in corpus.text.splitlines(keepends=True):
            block.append(line)
            size += len(line)
            if size >= _BLOCK:
                yield Record(corpus.name, "".join(block))
                block, size = [], 0
        if block:
            yield Record(corpus.name, "".join(block))
