"""Typed fields of a JSON object that a program wrote: exact types, or one clear error."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from onnxforge.runtimes.errors import ArtifactError


@dataclass(frozen=True)
class JsonFields:
    """Typed access to one JSON object; every mismatch names where it is, the key and what was found."""

    where: str
    """The file, and inside it the object: ``artifact.json: speculation``."""
    raw: Mapping[str, object]

    def fail(self, key: str, wanted: str) -> ArtifactError:
        """The error for a key that holds something else."""
        return ArtifactError(f"{self.where}: {key!r} must be {wanted}, found {self.raw[key]!r:.100}.")

    def text(self, key: str) -> str:
        """A string, not empty."""
        value = self.raw[key]
        if not isinstance(value, str) or not value:
            raise self.fail(key, "a non-empty string")
        return value

    def flag(self, key: str) -> bool:
        """true or false."""
        value = self.raw[key]
        if not isinstance(value, bool):
            raise self.fail(key, "true or false")
        return value

    def positive(self, key: str) -> int:
        """A whole number above 0."""
        value = self.raw[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.fail(key, "a positive whole number")
        return value

    def natural(self, key: str) -> int:
        """A whole number, 0 or more."""
        value = self.raw[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self.fail(key, "a whole number, 0 or more")
        return value

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of finite numbers."""
        value = self.raw[key]
        if not isinstance(value, list):
            raise self.fail(key, "a list of numbers")
        found = tuple(n for n in value if isinstance(n, int | float) and not isinstance(n, bool))
        if len(found) != len(value) or not all(abs(n) <= sys.float_info.max for n in found):
            raise self.fail(key, "a list of numbers")
        return tuple(map(float, found))

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings."""
        value = self.raw[key]
        if not isinstance(value, list):
            raise self.fail(key, "a list of strings")
        found = tuple(item for item in value if isinstance(item, str))
        if len(found) != len(value):
            raise self.fail(key, "a list of strings")
        return found

    def text_map(self, key: str) -> dict[str, str]:
        """An object of strings."""
        value = self.raw[key]
        if not isinstance(value, dict):
            raise self.fail(key, "an object of strings")
        found = {str(name): item for name, item in value.items() if isinstance(item, str)}
        if len(found) != len(value):
            raise self.fail(key, "an object of strings")
        return found

    def scalars(self, key: str) -> dict[str, float | str | bool]:
        """An object of numbers, strings and truth values."""
        value = self.raw[key]
        if not isinstance(value, dict):
            raise self.fail(key, "an object of numbers, strings and truth values")
        found = {str(name): item for name, item in value.items() if isinstance(item, str | int | float)}
        if len(found) != len(value):
            raise self.fail(key, "an object of numbers, strings and truth values")
        return found
