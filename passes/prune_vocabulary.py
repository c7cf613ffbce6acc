"""Keep the tokens that a corpus uses: rows of the embedding and columns of the LM head go together."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxforge.passes import notes
from onnxforge.passes.base import GraphPass, PassRefused
from onnxforge.passes.constants import add_initializer, constant, extents, readable
from onnxforge.passes.lazy import lazy_tensor
from onnxforge.passes.stored_blocks import kept_rows
from onnxforge.passes.token_counts import TokenCounts, counts_of, leave_counts, leave_kept
from onnxforge.passes.unpruned import unpruned
from onnxforge.passes.vocabulary_axis import VocabularyAxis, vocabulary_axis

WHAT = "vocabulary"


@dataclass(frozen=True)
class PruneVocabulary(GraphPass):
    """Cut the embedding, the LM head and the logits down to chosen tokens, and renumber these from 0.

    ::

        Gather(E [V, H], input_ids) ... MatMul(x, W [H, V]) + b [V]      logits [B, S, V]
        Gather(E [n, H], input_ids) ... MatMul(x, W [H, n]) + b [n]      logits [B, S, n]

    `count-tokens` in front of it says how often the corpus uses each token, and which ones the tokenizer
    cannot do without: special tokens, those of single bytes or characters, and those that a kept token is
    merged from. Their order stays, so that token i of the result is the i-th of those kept. Tokenizer,
    configurations and everything else that names token ids is rewritten when the artifact is; later steps of
    the compile see the new ids. Logits of kept tokens are those that they were.

    A text that uses a removed token is written with smaller ones: right, but in more steps, and the model was
    not trained on such texts. Where `unpruned` was remembered, that model speaks the new ids as well.
    """

    summary: ClassVar[str] = (
        "keep the tokens that a corpus uses; embedding, head and tokenizer shrink together"
    )

    share: float = 0.0
    """Of the vocabulary that is removed. The most used tokens stay; where that leaves room for more than the
    corpus uses, the tokenizer's own order goes on, which is that of common use. 0 keeps what the corpus uses,
    and no more."""
    keep: int = 0
    """The same as a number: how many tokens stay. 0: as ``share`` says."""
    min_count: int = 1
    """Where neither is given: how often the corpus has to use a token that stays."""
    multiple: int = 32
    """Round the number of tokens up to a multiple of this, for kernels that want one."""

    def requires(self, model: ir.Model) -> None:
        """Refuse options that mean nothing, and a model whose tokens were not counted.

        Raises:
            PassRefused: an option out of its range, two that say how many, or no counts on the model.
        """
        if not 0 <= self.share < 1:
            raise PassRefused(f"{self.text()}: share is {self.share}; it must be at least 0 and below 1.")
        if self.keep < 0 or self.min_count < 1 or self.multiple < 1:
            raise PassRefused(f"{self.text()}: keep is at least 0, min_count and multiple are at least 1.")
        if (self.share > 0) + (self.keep > 0) + (self.min_count > 1) > 1:
            raise PassRefused(
                f"{self.text()}: share, keep and min_count each say how many tokens stay: give one."
            )
        if counts_of(model) is None:
            raise PassRefused(
                f"{self.text()}: nobody counted the tokens of a corpus. Put `count-tokens` in front of it."
            )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Cut the graph, and leave on the model which tokens were kept.

        Raises:
            PassRefused: the graph or the choice of tokens is not possible; the graph is as it was.
        """
        counts = counts_of(model)
        assert counts is not None
        kept = self._chosen(counts)
        teacher = unpruned(model)
        axes = [(part.graph, vocabulary_axis(part.graph)) for part in (model, teacher) if part is not None]
        for graph, axis in axes:
            self._check(graph, axis, kept)
        size = axes[0][1].size
        if len(kept) == size:
            return ir.passes.PassResult(model, modified=False)
        for graph, axis in axes:
            _cut(graph, axis, kept)
        leave_kept(model, kept)
        leave_counts(model, _renumbered(counts, kept))
        used = int(counts.counts[kept].sum())
        share = used / max(int(counts.counts.sum()), 1)
        notes.match(WHAT, f"{len(kept):,} of {size:,} tokens, {share:.2%} of what the corpus holds")
        return ir.passes.PassResult(model, modified=True)

    def _chosen(self, counts: TokenCounts) -> np.ndarray:
        """int64 [n], ascending: the ids of the tokens to keep."""
        have = int(counts.exists.sum())
        kept = counts.closure(np.flatnonzero(counts.needed & counts.exists).tolist())
        least = len(kept)
        wanted = self.keep or round((1 - self.share) * have)
        if not self.keep and not self.share:
            kept |= counts.closure(np.flatnonzero(counts.counts >= self.min_count).tolist())
            wanted = len(kept)
        wanted = min(-(-wanted // self.multiple) * self.multiple, have)
        if wanted < least:
            raise PassRefused(
                f"{self.text()}: {wanted:,} tokens are asked for, and {least:,} are needed so that any text "
                "can be written (single bytes or characters, special tokens). Keep more."
            )
        for token in _by_use(counts):
            if len(kept) == wanted:
                break
            added = counts.closure([token]) - kept
            if len(kept) + len(added) <= wanted:
                kept |= added
        return np.array(sorted(kept), dtype=np.int64)

    def _check(self, graph: ir.Graph, axis: VocabularyAxis, kept: np.ndarray) -> None:
        """That every kept id has a row, and every id that the graph itself names is kept."""
        if kept[-1] >= axis.size:
            raise PassRefused(
                f"{self.text()}: the tokenizer has a token {kept[-1]}, and the table of {graph.name!r} has "
                f"{axis.size} rows: they do not belong together."
            )
        for node, index in axis.compared:
            named = readable(node.inputs[index])
            inside = np.empty(0) if named is None else named[(named >= 0) & (named < axis.size)]
            lost = np.setdiff1d(inside, kept).tolist()
            if lost:
                raise PassRefused(
                    f"{self.text()}: {node.op_type} {node.name!r} looks for token {lost[0]}, which no config "
                    "or tokenizer file marks as special, and the corpus does not use it. Nothing was changed."
                )


def _by_use(counts: TokenCounts) -> Iterator[int]:
    """Every token: the most used first, equals in the tokenizer's own order."""
    order = np.argsort(-counts.counts, kind="stable")
    return (int(token) for token in order if counts.exists[token])


def _renumbered(counts: TokenCounts, kept: np.ndarray) -> TokenCounts:
    """The same of the tokens that are left, under their new ids."""
    new = {int(old): number for number, old in enumerate(kept)}
    parts = {
        new[token]: tuple(new[part] for part in made_of)
        for token, made_of in counts.parts.items()
        if token in new
    }
    return TokenCounts(counts.counts[kept], counts.exists[kept], counts.needed[kept], parts)


def _cut(graph: ir.Graph, axis: VocabularyAxis, kept: np.ndarray) -> None:
    shared: dict[tuple[int, int], ir.TensorProtocol] = {}  # a tensor that two names hold is cut once
    for value, along in axis.constants.items():
        tensor = constant(value)
        assert tensor is not None
        key = (id(tensor), along)
        shared.setdefault(key, _taken(tensor, along, kept))
        _replace(graph, value, shared[key])
    for value in axis.values:
        if value.shape is not None:
            value.shape = ir.Shape([*value.shape.dims[:-1], len(kept)])
    for node, index in axis.compared:
        named = readable(node.inputs[index])
        if named is None:
            continue
        places = np.searchsorted(kept, named).clip(0, len(kept) - 1)
        renumbered = np.where(kept[places] == named, places, named).astype(named.dtype)
        name = f"{node.name}/kept_id"
        node.replace_input_with(index, add_initializer(graph, name, ir.tensor(renumbered)))


def _taken(tensor: ir.TensorProtocol, along: int, kept: np.ndarray) -> ir.LazyTensor:
    shape = list(extents(tensor))
    shape[along] = len(kept)
    new = lazy_tensor(
        lambda: np.take(tensor.numpy(), kept, axis=along), dtype=tensor.dtype, shape=shape, name=tensor.name
    )
    kept_rows(tensor, tuple(kept.tolist()), new)
    return new


def _replace(graph: ir.Graph, value: ir.Value, tensor: ir.TensorProtocol) -> None:
    """Let ``value``, or an initializer in its place, hold ``tensor``. The name stays where it can."""
    if value.producer() is None:
        value.const_value = tensor
        value.shape = ir.Shape(extents(tensor))
        return
    new = add_initializer(graph, f"{value.name}.kept", tensor)
    value.replace_all_uses_with(new)
