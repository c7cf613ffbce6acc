"""``--text-io``: a graph with the tokenizer inside. What it does to a target, and where it cannot be had."""

from dataclasses import replace

import onnx_ir as ir

from onnxforge.compiler.errors import RequestRefused
from onnxforge.compiler.graph_facts import graph_kind
from onnxforge.compiler.targets import CPU, Target
from onnxforge.compiler.text_rules_of import text_rules
from onnxforge.models.source import Source
from onnxforge.passes.add_text_io import AddTextIo
from onnxforge.passes.text_rules import attach_rules

_STEP = AddTextIo.pass_name()


def with_text_io(target: Target) -> Target:
    """``target`` with the step at its end.

    Raises:
        RequestRefused: the target's provider is not the CPU.
    """
    _check_provider(target)
    return target if asked(target) else replace(target, passes=(*target.passes, _STEP))


def asked(target: Target) -> bool:
    """Whether ``target`` has the step."""
    return _STEP in target.pass_names


def check_text_io(target: Target, source: Source) -> None:
    """Refuse a provider or a tokenizer for which there is no such graph, before anything is exported.

    Raises:
        RequestRefused: the target, perhaps one of a file, runs on another provider than the CPU.
        TextNotFollowed: see :func:`text_rules_of.text_rules`.
    """
    if asked(target):
        _check_provider(target)
        text_rules(source.sidecars["tokenizer.json"])


def check_answers(target: Target, source: Source, model: ir.Model) -> None:
    """Refuse the step for a model that writes no text, before any pass runs.

    Raises:
        RequestRefused: ``model``, of ``source``, is an encoder.
    """
    if asked(target) and graph_kind(model) != "decoder":
        raise RequestRefused(
            f"--text-io: {source.ref} is an encoder, and the graph is one that answers with text. "
            "Leave --text-io out."
        )


def attach_text(model: ir.Model, source: Source, target: Target) -> None:
    """Let the step find the tokenizer's rules on ``model``, where ``target`` has it.

    ``source`` is the one with the tokenizer that goes with the model as it is now.

    Raises:
        TextNotFollowed: its tokenizer cannot be followed.
    """
    if asked(target):
        attach_rules(model, text_rules(source.sidecars["tokenizer.json"]))


def _check_provider(target: Target) -> None:
    if target.provider != CPU:
        raise RequestRefused(
            f"--text-io: target `{target.name}` runs on {target.provider}, where strings have no kernels and "
            "nobody has checked the graph. Use a cpu target, or leave --text-io out."
        )
