"""The ledger, and the reproducer of a pass that fails."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxforge.compiler.errors import PassFailed
from onnxforge.compiler.observe import graph_stats, run_passes
from onnxforge.compiler.progress import describe
from onnxforge.passes import notes
from onnxforge.passes.base import GraphPass, PassRefused

TEXT = """
<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>
g (float[4] x) => (float[4] y) { a = Abs (x) b = Neg (a) y = com.microsoft.Gelu (b) }
"""


def model(elements: int = 4096) -> ir.Model:
    loaded = ir.from_onnx_text(TEXT)
    big = ir.Value(name="big", const_value=ir.tensor(np.zeros(elements, np.float32), name="big"))
    loaded.graph.register_initializer(big)
    return loaded


@dataclass(frozen=True)
class DropAbs(GraphPass):
    """Takes ``Abs`` away, and talks about it."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = [node for node in model.graph if node.op_type == "Abs"]
        for node in found:
            node.outputs[0].replace_all_uses_with(node.inputs[0])
            model.graph.remove(node, safe=True)
            notes.match("Abs", node.name)
        notes.near_miss("Neg", "b", "it is no Abs")
        return ir.passes.PassResult(model, modified=bool(found))


@dataclass(frozen=True)
class Crash(GraphPass):
    """Ruins the graph and crashes."""

    depth: int = 1

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        DropAbs()(model)
        raise ZeroDivisionError("boom")


@dataclass(frozen=True)
class Refuse(GraphPass):
    """Refuses from its precondition, which the pass infrastructure wraps."""

    def requires(self, model: ir.Model) -> None:
        raise PassRefused("found 3 heads, needed 4: choose another model")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        raise AssertionError("not reached")


def test_the_ledger_says_what_happened():
    seen: list[str] = []
    ledger = run_passes(model(), [DropAbs(), DropAbs()], on_done=lambda record: seen.append(describe(record)))
    first, second = ledger.records
    assert (first.modified, second.modified) == (True, False)
    assert (first.before.nodes, first.after.nodes, second.after.nodes) == (3, 2, 2)
    assert first.before.ops == {"Abs": 1, "Neg": 1, "com.microsoft.Gelu": 1}
    assert first.before.weight_bytes == 4 * 4096
    assert [note.what for note in first.matches] == ["Abs"]
    assert [note.reason for note in ledger.near_misses("drop-abs")] == ["it is no Abs"] * 2
    assert ledger.near_misses("other") == ()
    assert seen == ["1 matches, 1 near-misses, 3 -> 2 nodes", "1 near-misses"]


def test_watching_changes_nothing():
    watched, alone = model(), model()
    run_passes(watched, [DropAbs()])
    DropAbs()(alone)
    assert ir.to_onnx_text(watched) == ir.to_onnx_text(alone)


def test_tied_weights_count_once():
    tied = model()
    tensor = tied.graph.initializers["big"].const_value
    tied.graph.register_initializer(ir.Value(name="again", const_value=tensor))
    assert graph_stats(tied).weight_bytes == 4 * 4096


def test_a_crash_names_a_reproducer_that_loads_and_fails_again():
    with pytest.raises(PassFailed, match=r"`crash\{depth=2\}` crashed: ZeroDivisionError: boom") as failure:
        run_passes(model(), [DropAbs(), Crash(depth=2), DropAbs()])
    found = re.search(r"are in (\S+)\. ", str(failure.value))
    assert found is not None
    folder = Path(found[1])
    assert (folder / "pipeline.txt").read_text() == "crash{depth=2}\ndrop-abs\n"
    assert "ZeroDivisionError: boom" in (folder / "error.txt").read_text()
    before = ir.load(folder / "model.onnx")
    assert graph_stats(before).ops == {"Neg": 1, "com.microsoft.Gelu": 1}, "the graph before the failing pass"
    assert list(before.graph.initializers["big"].shape) == [4096]
    assert sum(p.stat().st_size for p in folder.iterdir()) < 10_000, "large weights stay at home"
    with pytest.raises(ZeroDivisionError):
        Crash(depth=2)(before)


def test_the_reproducer_is_of_the_graph_before_the_crash():
    with pytest.raises(PassFailed) as failure:
        run_passes(model(elements=8), [Crash()])
    folder = Path(re.search(r"are in (\S+)\. ", str(failure.value))[1])
    before = ir.load(folder / "model.onnx")
    assert graph_stats(before).ops["Abs"] == 1
    assert before.graph.initializers["big"].const_value.numpy().sum() == 0, "small weights travel along"


def test_a_refusal_keeps_its_own_words():
    with pytest.raises(PassRefused, match="found 3 heads, needed 4"):
        run_passes(model(), [Refuse()])


@dataclass(frozen=True)
class PruneBig(GraphPass):
    """Makes a weight smaller."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        big = model.graph.initializers["big"]
        big.const_value = ir.tensor(np.zeros(1000, np.float32), name="big")
        return ir.passes.PassResult(model, modified=True)


def test_what_pruning_removed_is_counted_in_elements():
    assert graph_stats(model()).elements == 4096
    ledger = run_passes(model(), [DropAbs(), PruneBig()])
    assert ledger.pruned == 3096
    assert run_passes(model(), [DropAbs()]).pruned == 0
