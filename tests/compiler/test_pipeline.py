"""Pass text, both ways, and the edits of a command line."""

from dataclasses import dataclass

import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxforge.compiler import pipeline
from onnxforge.compiler.errors import RequestRefused
from onnxforge.passes import registry
from onnxforge.passes.base import GraphPass


@dataclass(frozen=True)
class StandIn(GraphPass):
    """Options of every type that a pass may have."""

    bits: int = 8
    ratio: float = 0.5
    fast: bool = False
    mode: str = "plain"
    limit: int | None = None

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return ir.passes.PassResult(model, modified=False)


@dataclass(frozen=True)
class Other(StandIn):
    """Another name."""


@pytest.fixture(autouse=True)
def two_passes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(registry, "NAMES", ("stand-in", "other"))
    monkeypatch.setattr(registry, "pass_class", {"stand-in": StandIn, "other": Other}.__getitem__)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stand-in", StandIn()),
        ("stand-in{}", StandIn()),
        (" stand-in{bits=4, mode=x} ", StandIn(bits=4, mode="x")),
        ("stand-in{fast=true,limit=7,ratio=1}", StandIn(fast=True, limit=7, ratio=1.0)),
        ("other{limit=none}", Other()),
    ],
)
def test_text_to_pass(text: str, expected: GraphPass):
    assert pipeline.parse_pass(text) == expected


@given(
    st.builds(
        StandIn,
        bits=st.integers(),
        ratio=st.floats(allow_nan=False),
        fast=st.booleans(),
        mode=st.text("abcxyz-", min_size=1),
        limit=st.none() | st.integers(),
    )
)
def test_every_pass_survives_its_text(graph_pass: StandIn):
    assert pipeline.parse_pass(graph_pass.text()) == graph_pass


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("stand-ni", "did you mean `stand-in`"),
        ("stand-in{bist=4}", r"no option `bist` of pass `stand-in`; did you mean `bits`.*Known: bits, ratio"),
        ("stand-in{bits=four}", "`bits` of pass `stand-in` wants int, not `four`"),
        ("stand-in{fast=1}", "wants bool, not `1`"),
        ("stand-in{limit=x}", "wants none or int, not `x`"),
        ("stand-in{bits=4", "write `name` or"),
        ("Stand In", "write `name` or"),
    ],
)
def test_what_is_refused(text: str, says: str):
    with pytest.raises(RequestRefused, match=says):
        pipeline.parse_pass(text)


def test_edits():
    passes = pipeline.parse(["stand-in", "other", "stand-in{bits=4}"])
    edited = pipeline.edit(passes, settings=("stand-in.mode=x", "stand-in.fast=true"), without=("other",))
    assert [p.text() for p in edited] == ["stand-in{fast=true,mode=x}", "stand-in{bits=4,fast=true,mode=x}"]
    assert passes[0] == StandIn(), "the target's own passes are untouched"


@pytest.mark.parametrize(
    ("settings", "without", "says"),
    [
        (("bits=4",), (), "write `--set pass.option=value`"),
        (("stand-in.bits",), (), "write `--set pass.option=value`"),
        (("standin.bits=4",), (), "did you mean `stand-in`"),
        (("stand-in.bit=4",), (), "did you mean `bits`"),
        ((), ("othr",), "did you mean `other`"),
        (("other.bits=4",), ("other",), "no pass `other` in this target"),
    ],
)
def test_edits_that_are_refused(settings: tuple[str, ...], without: tuple[str, ...], says: str):
    with pytest.raises(RequestRefused, match=says):
        pipeline.edit(pipeline.parse(["stand-in", "other"]), settings=settings, without=without)
