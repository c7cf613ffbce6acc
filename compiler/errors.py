"""What the conductor itself can refuse, and how every failure becomes one paragraph and an exit code."""

from typing import ClassVar


class CompileError(Exception):
    """Base of the conductor's own failures. The message says what, where, and what to do."""

    exit_code: ClassVar[int] = 2


class RequestRefused(CompileError):
    """The request cannot be served as written: unknown target, pass, option or task, or a bad recipe."""


class ExpectationMissed(CompileError):
    """A pass ran but the operators its target promises are not in the graph."""


class PublishRefused(CompileError):
    """The artifact cannot be written where it was asked for: disk full, no permission, not ours."""


class SelfCheckFailed(CompileError):
    """The finished artifact does not load or does not run. Nothing was published."""

    exit_code = 1


class PassFailed(CompileError):
    """A pass crashed. The message names the reproducer."""

    exit_code = 1


class BudgetMissed(CompileError):
    """The measured result is worse than the target allows. Nothing was published."""

    exit_code = 3
