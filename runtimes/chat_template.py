"""Chat messages to prompt text, by the model's own template, with transformers' conventions.

The template sees ``messages``, ``add_generation_prompt``, ``tools``, ``documents``, the special tokens as
text, ``raise_exception``, ``strftime_now``, a ``tojson`` that keeps non-ASCII text, loop controls and the
``generation`` block (used in training to mark answers; here its body).
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser

from onnxforge.runtimes.errors import ArtifactError, RequestError
from onnxforge.runtimes.strict_json import read_optional_json
from onnxforge.runtimes.template_budget import budget
from onnxforge.runtimes.template_sandbox import TemplateSandbox

MAX_SOURCE = 256 * 1024


class ChatTemplate:
    """A compiled chat template; safe to share between threads."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Raises ArtifactError when the source is too large or not a valid template."""
        if len(source) > MAX_SOURCE:
            raise ArtifactError(
                f"The chat template has {len(source)} characters; at most {MAX_SOURCE} are read."
            )
        self._special_tokens = dict(special_tokens)
        sandbox = TemplateSandbox([jinja2.ext.loopcontrols, _GenerationBlock])
        sandbox.add_filter("tojson", _to_json)
        sandbox.globals["raise_exception"] = _raise_exception
        sandbox.globals["strftime_now"] = _strftime_now
        try:
            with budget():
                self._template = sandbox.from_string(source)
        except (jinja2.TemplateError, RecursionError, MemoryError, ValueError, TypeError) as error:
            raise ArtifactError(f"The chat template does not compile: {error}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        documents: Sequence[Mapping[str, object]] | None = None,
        **variables: object,
    ) -> str:
        """The prompt text. Raises RequestError when the template refuses the messages or goes too far."""
        given = {**self._special_tokens, **variables}
        try:
            with budget():
                return self._template.render(
                    messages=list(messages),
                    add_generation_prompt=add_generation_prompt,
                    tools=tools,
                    documents=documents,
                    **given,
                )
        except (
            jinja2.TemplateError,
            RecursionError,
            TypeError,
            ValueError,
            KeyError,
            AttributeError,
            ArithmeticError,
            MemoryError,
        ) as error:
            raise RequestError(f"The chat template refused these messages: {error}") from error


def read_chat_template(folder: Path, special_tokens: Mapping[str, str]) -> ChatTemplate | None:
    """The template of ``chat_template.jinja``, else of tokenizer_config.json; None when there is neither."""
    path = folder / "chat_template.jinja"
    if path.exists():
        return ChatTemplate(path.read_text(encoding="utf-8"), special_tokens)
    listed = read_optional_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(listed, list):
        named = {item.get("name"): item.get("template") for item in listed if isinstance(item, dict)}
        listed = named.get("default")
    return ChatTemplate(listed, special_tokens) if isinstance(listed, str) else None


class _GenerationBlock(jinja2.ext.Extension):
    """``{% generation %}body{% endgeneration %}`` renders its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
