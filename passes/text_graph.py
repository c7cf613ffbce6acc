"""The nodes that turn one string into token ids, and token ids into one string."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from onnxforge.passes import text_contractions, text_cutting, text_merging, text_reading, text_writing
from onnxforge.passes.constants import extents
from onnxforge.passes.graph_text import splice
from onnxforge.passes.text_rules import Cut, TextRules

Table: TypeAlias = np.ndarray | ir.StringTensor

PAIR = 1 << 20
"""What the left token of a pair is multiplied with: no vocabulary has as many tokens."""
_NO_RANK = 1_048_576_000
_NO_CHARACTER = 0x110000
_PAGE = 256
_TAILS = tuple(bytes([byte]) for byte in range(0x80, 0xC0))


def tokenize(graph: ir.Graph, text: ir.Value, rules: TextRules, opset: int) -> ir.Value:
    """Add to ``graph`` what makes token ids int64 [n] of ``text``, string [1], and none around them."""
    build = _Builder(graph, opset)
    (code,) = build.add(
        text_reading.CODES, [text, *map(build.table, _known()), build.table(_strings(_TAILS))]
    )
    specials = [build.table(array) for array in _specials(rules)]
    inside, edge, special = build.add(text_reading.SPECIALS, [code, *specials])
    paged = [build.table(array) for array in _paged(rules.kinds)]
    kind, border = build.add(text_cutting.KINDS, [code, *paged, inside, edge])
    if rules.cut is Cut.GPT2:
        natural, opens = build.add(text_cutting.GPT2, [code, kind, border])
        contractions = text_contractions.CASED
    else:
        group = build.table(np.array([rules.number_group], np.int64))
        natural, opens = build.add(text_cutting.CL100K, [code, kind, border, group])
        contractions = text_contractions.CASELESS
    ends = map(build.table, contractions)
    (begin,) = build.add(text_contractions.CONTRACTIONS, [code, border, natural, opens, *ends])
    byte_id = build.table(rules.byte_ids)
    token, word = build.add(text_merging.BYTES, [code, inside, special, begin, byte_id])
    merged = rules.merges[:, 2] if len(rules.merges) else np.zeros(1, np.int64)
    (ids,) = build.add(text_merging.MERGE, [token, word, build.table(merged)], rules.merges)
    return ids


def detokenize(graph: ir.Graph, ids: ir.Value, shown: Sequence[bytes], opset: int) -> ir.Value:
    """Add to ``graph`` what makes the text, string [1], of token ids int64 [n]: the bytes that each shows."""
    build = _Builder(graph, opset)
    offset = np.cumsum([0, *map(len, shown)], dtype=np.int64)
    byte = np.frombuffer(b"".join(shown) or b"\0", np.uint8)
    symbols = _strings([*(bytes([number]) for number in range(256)), "�".encode()])
    (text,) = build.add(
        text_writing.DECODE, [ids, *(build.table(table) for table in (offset, byte, symbols))]
    )
    return text


class _Builder:
    """Appends pieces of ONNX text and their tables to a graph. Lives for one call."""

    def __init__(self, graph: ir.Graph, opset: int) -> None:
        self._graph, self._opset = graph, opset

    def add(self, piece: str, inputs: Sequence[ir.Value], merges: np.ndarray | None = None) -> list[ir.Value]:
        name = piece.split("(", 1)[0].strip()
        nodes, outputs = splice(piece, inputs, f"text/{name}", self._opset)
        self._graph.extend(nodes)
        if merges is not None:
            _set_merges(nodes, merges)
        return outputs

    def table(self, content: Table) -> ir.Value:
        """A constant that stays in the graph's own file: its bytes are no weights."""
        tensor = ir.tensor(content) if isinstance(content, np.ndarray) else content
        node = ir.node("Constant", [], {"value": tensor})
        value = node.outputs[0]
        value.name = f"text/table_{len(self._graph)}"
        value.shape, value.type = ir.Shape(extents(tensor)), ir.TensorType(tensor.dtype)
        node.name = f"/{value.name}"
        self._graph.append(node)
        return value


def _set_merges(nodes: Sequence[ir.Node], merges: np.ndarray) -> None:
    """Give the LabelEncoder in the Loop its pairs and their ranks."""
    keys = merges[:, 0] * PAIR + merges[:, 1] if len(merges) else np.array([-2], np.int64)
    ranks = np.arange(len(keys), dtype=np.int64)
    for outer in nodes:
        for attribute in outer.attributes.values():
            if attribute.type is ir.AttributeType.GRAPH:
                for node in attribute.as_graph():
                    if node.op_type == "LabelEncoder":
                        node.attributes["keys_int64s"] = ir.AttrInt64s("keys_int64s", keys.tolist())
                        node.attributes["values_int64s"] = ir.AttrInt64s("values_int64s", ranks.tolist())
                        node.attributes["default_int64"] = ir.AttrInt64("default_int64", _NO_RANK)


def _strings(items: Sequence[bytes]) -> ir.StringTensor:
    return ir.StringTensor(list(items), shape=ir.Shape([len(items)]))


def _known() -> tuple[Table, ...]:
    """Characters of one and two bytes, and the first two bytes of longer ones: sorted, with the code point
    (of the first that begins so) and the bytes of such characters."""
    found = [(chr(code).encode(), code, 1 + (code >= 0x80)) for code in range(0x800)]
    found += [
        (bytes([0xE0 | high, low]), high << 12 | (low & 63) << 6, 3) for high in range(16) for low in _LOW
    ]
    found += [
        (bytes([0xF0 | high, low]), high << 18 | (low & 63) << 12, 4) for high in range(5) for low in _LOW
    ]
    found.sort()
    return (
        _strings([item[0] for item in found]),
        np.array([item[1] for item in found], np.int64),
        np.array([item[2] for item in found], np.int64),
    )


_LOW = range(0x80, 0xC0)


def _specials(rules: TextRules) -> tuple[np.ndarray, ...]:
    """First characters; characters (longest first, -1 behind the end), lengths and ids of special tokens."""
    listed = sorted(rules.specials, key=lambda token: -len(token.text))
    texts = [[ord(letter) for letter in token.text] for token in listed] or [[_NO_CHARACTER]]
    width = max(map(len, texts))
    return (
        np.array(sorted({text[0] for text in texts}), np.int64),
        np.array([text + [-1] * (width - len(text)) for text in texts], np.int64),
        np.array([len(text) for text in texts], np.int64),
        np.array([token.id for token in listed] or [0], np.int64),
    )


def _paged(kinds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct pages of 256 kinds, uint8 [pages, 256], and which one each page is, int64 [4352]."""
    pages, page = np.unique(kinds.reshape(-1, _PAGE), axis=0, return_inverse=True)
    return pages, page.reshape(-1).astype(np.int64)
