"""Arithmetic on dimensions that are known only by name.

A dimension is a polynomial with integer coefficients over symbols (``batch_size``,
``past_sequence_length + sequence_length``). Equality of two polynomials proves equality of two sizes,
which is what lets a computed Reshape become a constant one.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

Monomial: TypeAlias = tuple[str, ...]
"""The sorted symbols of one product; empty for the constant term."""


@dataclass(frozen=True)
class Dim:
    """A polynomial over size symbols; ``terms`` is sorted and holds no zero coefficient."""

    terms: tuple[tuple[Monomial, int], ...]

    @staticmethod
    def number(value: int) -> "Dim":
        """The constant polynomial."""
        return Dim((((), value),) if value else ())

    @staticmethod
    def symbol(name: str) -> "Dim":
        """The polynomial of one symbol."""
        return Dim((((name,), 1),))

    @property
    def value(self) -> int | None:
        """The number, when no symbol is left."""
        if not self.terms:
            return 0
        return self.terms[0][1] if len(self.terms) == 1 and not self.terms[0][0] else None

    @property
    def symbols(self) -> frozenset[str]:
        """Every symbol that occurs."""
        return frozenset(name for monomial, _ in self.terms for name in monomial)

    @property
    def is_size(self) -> bool:
        """Whether it cannot be negative, given that no symbol is."""
        return all(coefficient > 0 for _, coefficient in self.terms)

    def __add__(self, other: "Dim") -> "Dim":
        return _from_counts((*self.terms, *other.terms))

    def __neg__(self) -> "Dim":
        return Dim(tuple((monomial, -coefficient) for monomial, coefficient in self.terms))

    def __sub__(self, other: "Dim") -> "Dim":
        return self + -other

    def __mul__(self, other: "Dim") -> "Dim":
        return _from_counts(
            (tuple(sorted((*left, *right))), a * b) for left, a in self.terms for right, b in other.terms
        )

    def divided_by(self, other: "Dim") -> "Dim | None":
        """The exact quotient by a single product of symbols and a number; None where it is not exact."""
        if len(other.terms) != 1:
            return Dim.number(1) if self == other and self.terms else None
        divisor, factor = other.terms[0]
        quotient: list[tuple[Monomial, int]] = []
        for monomial, coefficient in self.terms:
            rest = Counter(monomial)
            rest.subtract(Counter(divisor))
            if coefficient % factor or any(count < 0 for count in rest.values()):
                return None
            quotient.append((tuple(sorted(rest.elements())), coefficient // factor))
        return _from_counts(quotient)

    def evaluate(self, sizes: Mapping[str, int]) -> int | None:
        """The number under an assignment of symbols; None where one is missing."""
        total = 0
        for monomial, coefficient in self.terms:
            product = coefficient
            for name in monomial:
                if name not in sizes:
                    return None
                product *= sizes[name]
            total += product
        return total

    def __str__(self) -> str:
        return " + ".join(_spell(monomial, coefficient) for monomial, coefficient in self.terms) or "0"


def product(dims: Iterable[Dim]) -> Dim:
    """The product of all of them; 1 for none."""
    total = Dim.number(1)
    for dim in dims:
        total = total * dim
    return total


def _from_counts(terms: Iterable[tuple[Monomial, int]]) -> Dim:
    counts: dict[Monomial, int] = {}
    for monomial, coefficient in terms:
        counts[monomial] = counts.get(monomial, 0) + coefficient
    return Dim(tuple(sorted((monomial, count) for monomial, count in counts.items() if count)))


def _spell(monomial: Monomial, coefficient: int) -> str:
    if not monomial:
        return str(coefficient)
    return "*".join(monomial if coefficient == 1 else (str(coefficient), *monomial))
