"""Write a fused attention in place of the one that was found; no decisions are made here."""

from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import onnx_ir as ir

from onnxforge.passes.attention_heads import HeadSource, Layout
from onnxforge.passes.attention_parts import Cache, Parts, Rotary
from onnxforge.passes.constants import add_array
from onnxforge.passes.matching import CONTRIB


class Hidden(Enum):
    """Which keys of the batch an operator has to hide."""

    PADDING = "those that attention_mask excludes"
    NOTHING = "none"


@dataclass
class Writer:
    """Writes into one graph; what all layers share (lengths, mask, shape constants) is written once."""

    graph: ir.Graph
    first: ir.Node
    """The first node of the graph as it was: shared nodes go before it."""
    _shared: dict[str, ir.Value] = field(default_factory=dict)

    def group_query(
        self, parts: Parts, *, rotary: Rotary | None, window: int | None, hidden: Hidden
    ) -> ir.Node:
        """``com.microsoft.GroupQueryAttention`` over the layer's past and present.

        query [B, S, H*D], key and value [B, S, KV*D], past [B, KV, P, D]; rotates inside when ``rotary``.
        """
        cache = parts.cache
        assert cache is not None
        name = self._name(parts, "GroupQueryAttention")
        anchor = parts.core.anchor
        query = parts.query.bare if rotary else parts.query.rotated
        key = parts.key.bare if rotary else parts.key.rotated
        inputs = [self._flat(source, anchor, name) for source in (query, key, parts.value)]
        inputs += [
            cache.past_key,
            cache.past_value,
            self._last_slots(hidden, cache),
            self._total(hidden, cache),
        ]
        inputs += [rotary.cos, rotary.sin] if rotary else []
        attributes: dict[str, int | float] = {
            "num_heads": query.heads,
            "kv_num_heads": key.heads,
            "scale": parts.scale,
            "do_rotary": int(rotary is not None),
        }
        if rotary is not None:
            attributes["rotary_interleaved"] = int(rotary.interleaved)
        if window is not None:
            attributes["local_window_size"] = window
        if parts.softcap:
            attributes["softcap"] = parts.softcap
        node = self._node(anchor, CONTRIB, "GroupQueryAttention", inputs, attributes, name, outputs=3)
        self._connect(parts, node.outputs[0], name)
        self._return(cache.present_key, node.outputs[1])
        self._return(cache.present_value, node.outputs[2])
        return node

    def bias(
        self, parts: Parts, added: tuple[ir.Value, ...], *, boolean: bool, shape: tuple[int, ...]
    ) -> ir.Value:
        """The sum of ``added``, or a boolean mask turned into numbers, as float [B or 1, H or 1, S, T].

        ``shape`` is the shape of the sum at some sizes: the kernel does not broadcast queries or keys.
        """
        key = f"bias {[id(item) for item in added]}"
        if key in self._shared:
            return self._shared[key]
        anchor, stem = parts.core.anchor, self._name(parts, "attention_bias")
        value = added[0]
        for index, item in enumerate(added[1:]):
            value = self._node(anchor, "", "Add", [value, item], {}, f"{stem}/Add_{index}").outputs[0]
        if boolean:
            zero = self._constant("zero_score", np.array(0, np.float32))
            never = self._constant("no_score", np.array(np.finfo(np.float32).min))
            value = self._node(anchor, "", "Where", [value, zero, never], {}, f"{stem}/Where").outputs[0]
        if len(shape) < 4 or shape[-2] == 1 or shape[-1] == 1:
            one = self._constant("one", np.array([1], np.int64))
            flat = [self._flat(source, anchor, stem) for source in (parts.query.rotated, parts.key.rotated)]
            sizes = [self._length(item, anchor, f"{stem}/{index}") for index, item in enumerate(flat)]
            target = self._node(anchor, "", "Concat", [one, one, *sizes], {"axis": 0}, f"{stem}/Concat")
            expand = self._node(anchor, "", "Expand", [value, target.outputs[0]], {}, f"{stem}/Expand")
            value = expand.outputs[0]
        self._shared[key] = value
        return value

    def multi_head(self, parts: Parts, *, hidden: Hidden, causal: bool, bias: ir.Value | None) -> ir.Node:
        """``com.microsoft.MultiHeadAttention``: query, key, value [B, L, H*D], key padding mask [B, T]."""
        name = self._name(parts, "MultiHeadAttention")
        anchor = parts.core.anchor
        sources = (parts.query.rotated, parts.key.rotated, parts.value)
        inputs: list[ir.Value | None] = [self._flat(source, anchor, name) for source in sources]
        inputs += [None, self._token_mask() if hidden is Hidden.PADDING else None, bias]
        while inputs[-1] is None:
            inputs.pop()
        attributes: dict[str, int | float] = {"num_heads": sources[0].heads, "scale": parts.scale}
        if causal:
            attributes["unidirectional"] = 1
        node = self._node(anchor, CONTRIB, "MultiHeadAttention", inputs, attributes, name)
        self._connect(parts, node.outputs[0], name)
        return node

    def standard(self, parts: Parts, bias: ir.Value | None) -> ir.Node:
        """``Attention`` of opset 23 over heads [B, H, S, D]; a cache stays the Concat that it is."""
        name, anchor, cache = self._name(parts, "Attention"), parts.core.anchor, parts.cache
        inputs: list[ir.Value | None] = [self._heads(parts.query.rotated, anchor, name)]
        inputs.append(cache.present_key if cache else self._heads(parts.key.rotated, anchor, name))
        inputs.append(cache.present_value if cache else self._heads(parts.value, anchor, name))
        inputs += [bias] if bias is not None else []
        attributes: dict[str, int | float] = {"scale": parts.scale}
        if parts.softcap:
            attributes["softcap"] = parts.softcap
        node = self._node(anchor, "", "Attention", inputs, attributes, name)
        old, new = parts.core.output, node.outputs[0]
        new.shape, new.type = old.shape, old.type or new.type
        self._return(old, new)
        old.replace_all_uses_with(new)
        return node

    def _node(
        self,
        anchor: ir.Node,
        domain: str,
        op_type: str,
        inputs: list[ir.Value | None] | list[ir.Value],
        attributes: dict[str, int | float],
        name: str,
        outputs: int = 1,
    ) -> ir.Node:
        made = tuple(
            ir.Value(name=f"{name}_output_{index}", type=ir.TensorType(ir.DataType.FLOAT))
            for index in range(outputs)
        )
        converted = ir.convenience.convert_attributes(attributes)
        node = ir.Node(domain, op_type, inputs, converted, outputs=made, name=name)
        self.graph.insert_before(anchor, node)
        if domain and domain not in self.graph.opset_imports:
            self.graph.opset_imports[domain] = 1
        return node

    def _name(self, parts: Parts, op_type: str) -> str:
        """A name in the attention's own scope."""
        scope, _, _ = parts.core.where.rpartition("/")
        return f"{scope}/{op_type}" if scope else f"{parts.core.where}/{op_type}"

    def _flat(self, source: HeadSource, anchor: ir.Node, name: str) -> ir.Value:
        """``source`` as [B, L, n*D]."""
        if source.layout is Layout.FLAT:
            return source.value
        key = f"flat {id(source.value)}"
        if key in self._shared:
            return self._shared[key]
        value, stem = source.value, f"{name}/{source.value.name}"
        if source.layout is Layout.HEADS:
            turn = self._node(anchor, "", "Transpose", [value], {}, f"{stem}/Transpose")
            turn.attributes["perm"] = ir.AttrInt64s("perm", [0, 2, 1, 3])
            value = turn.outputs[0]
        shape = self._constant("merged_heads", np.array([0, 0, source.heads * source.head_size], np.int64))
        flat = self._node(anchor, "", "Reshape", [value, shape], {}, f"{stem}/Reshape").outputs[0]
        self._shared[key] = flat
        return flat

    def _heads(self, source: HeadSource, anchor: ir.Node, name: str) -> ir.Value:
        """``source`` as [B, n, L, D]."""
        value, stem = source.value, f"{name}/{source.value.name}"
        if source.layout is Layout.FLAT:
            shape = self._constant("split_heads", np.array([0, 0, source.heads, source.head_size], np.int64))
            value = self._node(anchor, "", "Reshape", [value, shape], {}, f"{stem}/Reshape").outputs[0]
        if source.layout is not Layout.HEADS:
            turn = self._node(anchor, "", "Transpose", [value], {}, f"{stem}/Transpose")
            turn.attributes["perm"] = ir.AttrInt64s("perm", [0, 2, 1, 3])
            value = turn.outputs[0]
        return value

    def _connect(self, parts: Parts, fused: ir.Value, name: str) -> None:
        """Let the readers of the old result read ``fused`` [B, S, H*D]."""
        old = parts.merged
        if old is None:
            anchor, query = parts.core.anchor, parts.query.rotated
            shape = self._constant("split_heads", np.array([0, 0, query.heads, query.head_size], np.int64))
            split = self._node(anchor, "", "Reshape", [fused, shape], {}, f"{name}/split/Reshape")
            turn = self._node(anchor, "", "Transpose", [split.outputs[0]], {}, f"{name}/split/Transpose")
            turn.attributes["perm"] = ir.AttrInt64s("perm", [0, 2, 1, 3])
            old, fused = parts.core.output, turn.outputs[0]
        fused.shape, fused.type = old.shape, old.type or fused.type
        self._return(old, fused)
        old.replace_all_uses_with(fused)

    def _return(self, old: ir.Value, new: ir.Value) -> None:
        """If the graph returns ``old``, return ``new`` under its name; other readers of ``old`` keep it."""
        if not old.is_graph_output():
            return
        index = next(index for index, value in enumerate(self.graph.outputs) if value is old)
        name = old.name
        old.name = f"{name}_unfused"
        new.name, new.shape, new.type = name, old.shape, old.type or new.type
        self.graph.outputs[index] = new

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:
        key = f"{name}_{'_'.join(map(str, array.reshape(-1).tolist()))}"
        if key not in self._shared:
            self._shared[key] = add_array(self.graph, key.replace("-", "m"), array)
        return self._shared[key]

    def _last_slots(self, hidden: Hidden, cache: Cache) -> ir.Value:
        """seqlens_k, int32 [B]: the number of tokens in each row, new ones included, less one."""
        one = self._constant("one", np.array([1], np.int64))
        if hidden is Hidden.NOTHING:
            zero, total = self._constant("zero", _ZERO), self._total(hidden, cache)
            width = self._head("total_slots", "Unsqueeze", [total, zero])
            batch = self._size("input_ids", 0)
            rows = self._head("slots_of_rows", "Expand", [width, batch])
            one = self._head("one_int32", "Cast", [one], to=ir.DataType.INT32)
            return self._head("last_slots", "Sub", [rows, one])
        tokens = self._head("tokens", "ReduceSum", [self._input("attention_mask"), one], keepdims=0)
        last = self._head("last_token", "Sub", [tokens, one])
        return self._head("seqlens_k", "Cast", [last], to=ir.DataType.INT32)

    def _total(self, hidden: Hidden, cache: Cache) -> ir.Value:
        """total_sequence_length, int32 scalar: T."""
        if hidden is Hidden.PADDING:
            width = self._size("attention_mask", 1)
        else:
            past = self._size(cache.past_key.name or "", 2)
            width = self._head("total_length", "Add", [past, self._size("input_ids", 1)])
        total = self._head("total_int64", "Squeeze", [width, self._constant("zero", _ZERO)])
        return self._head("total_sequence_length", "Cast", [total], to=ir.DataType.INT32)

    def _token_mask(self) -> ir.Value:
        """key_padding_mask, int32 [B, T]."""
        return self._head("key_padding_mask", "Cast", [self._input("attention_mask")], to=ir.DataType.INT32)

    def _size(self, name: str, axis: int) -> ir.Value:
        """Dimension ``axis`` of a graph input, int64 [1]."""
        shape = self._head(f"{name}_shape", "Shape", [self._input(name)])
        index = self._constant("axis", np.array([axis], np.int64))
        return self._head(f"{name}_size_{axis}", "Gather", [shape, index], axis=0)

    def _length(self, value: ir.Value, anchor: ir.Node, stem: str) -> ir.Value:
        """L of a value [B, L, n*D], int64 [1]."""
        shape = self._node(anchor, "", "Shape", [value], {}, f"{stem}/Shape").outputs[0]
        index = self._constant("axis", np.array([1], np.int64))
        return self._node(anchor, "", "Gather", [shape, index], {"axis": 0}, f"{stem}/Gather").outputs[0]

    def _input(self, name: str) -> ir.Value:
        return next(value for value in self.graph.inputs if value.name == name)

    def _head(self, name: str, op_type: str, inputs: list[ir.Value], **attributes: int) -> ir.Value:
        """The output of a node at the head of the graph, written once for all layers."""
        if name not in self._shared:
            converted = ir.convenience.convert_attributes(attributes)
            output = ir.Value(name=f"attention/{name}")
            node = ir.Node("", op_type, inputs, converted, outputs=(output,), name=f"/attention/{name}")
            self.graph.insert_before(self.first, node)
            self._shared[name] = output
        return self._shared[name]


_ZERO = np.array([0], np.int64)
