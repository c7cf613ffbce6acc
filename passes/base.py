"""What a pass is: a frozen record of options and one method that rewrites the graph in place."""

import dataclasses
import re
from typing import ClassVar

import onnx_ir as ir


class PassRefused(Exception):
    """A pass cannot do what its options ask of this graph: what was found, what was needed, what to do."""


class GraphStep(ir.passes.PassBase):
    """What every step of a pipeline has: a name, options, a text form.

    A step is a ``@dataclass(frozen=True)`` whose fields are its options, so that equality, repr and the text
    form ``insert-qdq{granularity=channel}`` come free. Where it has preconditions, ``requires`` raises
    :class:`PassRefused`. It keeps no state on ``self``: what it matched, and what it nearly matched, goes to
    :mod:`onnxforge.passes.notes`.
    """

    summary: ClassVar[str] = ""

    @classmethod
    def pass_name(cls) -> str:
        """The kebab-case name of the class: ``FuseAttention`` is ``fuse-attention``."""
        return re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()

    def options(self) -> dict[str, bool | int | float | str | None]:
        """Options that differ from their defaults, in declaration order."""
        fields: tuple[dataclasses.Field[object], ...] = dataclasses.fields(self)  # type: ignore[arg-type]
        return {f.name: getattr(self, f.name) for f in fields if getattr(self, f.name) != f.default}

    def text(self) -> str:
        """The text form of this pass, as pipelines and reports write it."""
        options = ",".join(f"{name}={_spell(value)}" for name, value in self.options().items())
        return f"{self.pass_name()}{{{options}}}" if options else self.pass_name()


class GraphPass(GraphStep, ir.passes.InPlacePass):
    """Base of every rewrite: ``call`` does the work and returns whether the graph changed, exactly."""


class DerivingPass(GraphStep, ir.passes.FunctionalPass):
    """Base of every pass that makes a second model of a finished one, which stays as it is.

    The two share their weights: the same tensors, which are written once.
    """

    file: ClassVar[str]
    """The artifact's path of what is derived: ``onnx/model_spec.onnx``."""


def _spell(value: bool | int | float | str | None) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "none" if value is None else str(value)
