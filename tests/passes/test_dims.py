"""Arithmetic on named sizes agrees with arithmetic on numbers."""

from hypothesis import given
from hypothesis import strategies as st

from onnxforge.passes.dims import Dim, product

SIZES = {"batch": 3, "past": 0, "sequence": 7}
TERMS = st.one_of(st.integers(-4, 6).map(Dim.number), st.sampled_from(sorted(SIZES)).map(Dim.symbol))
DIMS = st.recursive(
    TERMS,
    lambda inner: st.tuples(inner, inner, st.sampled_from("+-*")).map(
        lambda item: {"+": item[0] + item[1], "-": item[0] - item[1], "*": item[0] * item[1]}[item[2]]
    ),
    max_leaves=6,
)


@given(DIMS, DIMS)
def test_evaluation_is_a_homomorphism(left, right):
    a, b = left.evaluate(SIZES), right.evaluate(SIZES)
    assert (left + right).evaluate(SIZES) == a + b
    assert (left - right).evaluate(SIZES) == a - b
    assert (left * right).evaluate(SIZES) == a * b


@given(DIMS, DIMS)
def test_order_does_not_matter(left, right):
    assert left + right == right + left
    assert left * right == right * left
    assert (left + right) - right == left


@given(DIMS, TERMS.filter(lambda dim: bool(dim.terms)))
def test_division_undoes_multiplication(left, right):
    assert (left * right).divided_by(right) == left


def test_what_does_not_divide_is_not_divided():
    batch, sequence = Dim.symbol("batch"), Dim.symbol("sequence")
    assert (batch * sequence).divided_by(Dim.symbol("past")) is None
    assert Dim.number(7).divided_by(Dim.number(2)) is None
    assert (batch + sequence).divided_by(batch) is None


def test_spelling():
    batch, past, sequence = (Dim.symbol(name) for name in SIZES)
    assert str(past + sequence) == "past + sequence"
    assert str(product([batch, Dim.number(4), sequence])) == "4*batch*sequence"
    assert str(past - past) == "0"
    assert (past - past).value == 0


def test_a_missing_size_is_no_number():
    assert (Dim.symbol("heads") + Dim.number(1)).evaluate(SIZES) is None
