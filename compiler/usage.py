"""A command line that typer cannot read: an unknown verb or option, an argument too few or too many."""

from typing import Protocol, runtime_checkable

from onnxforge.compiler.nearest import nearest


@runtime_checkable
class WrongUsage(Protocol):
    """typer's usage errors by their shape: their base class has moved between its releases, this has not."""

    exit_code: int

    def format_message(self) -> str:
        """What is wrong."""


def usage_message(error: WrongUsage) -> str:
    """What is wrong, what was probably meant, and where the help is."""
    context = getattr(error, "ctx", None)
    unknown = getattr(error, "option_name", "")
    text = error.format_message().strip()
    if context is None or not text:
        return text
    if unknown and hasattr(error, "possibilities"):
        known = [name for p in context.command.get_params(context) for name in (*p.opts, *p.secondary_opts)]
        text = f"No such option: {unknown}{nearest(unknown, [n for n in known if n.startswith('--')])}"
    stop = "" if text.endswith((".", "?", "!")) else "."
    return f"{text}{stop} See `{context.command_path} --help`."
