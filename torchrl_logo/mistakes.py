"""Short messages in place of tracebacks, for scripts that a user called wrongly."""

from __future__ import annotations

import functools
import linecache
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from torchrl_logo.argument_checks import MissingKeyError

__all__ = ["explain_mistakes", "is_mistake"]

P = ParamSpec("P")
R = TypeVar("R")

_PACKAGE = Path(__file__).resolve().parent
_KINDS = (ValueError, TypeError, MissingKeyError, ImportError, OSError)
#: With this environment variable set, scripts show where a mistake was found.
_TRACEBACK = "TORCHRL_LOGO_TRACEBACK"


def is_mistake(error: BaseException) -> bool:
    """Whether an error is the package's own word on what a user passed.

    That is: a ``raise`` statement of the package, or of the script that runs, raised it. Errors
    from the depth of a library are not; they need their traceback.

    Args:
        error (BaseException): that was caught.

    Examples:
        >>> from torchrl_logo.envs import make_env
        >>> try:
        ...     make_env("vmas/balanse")
        ... except ValueError as error:
        ...     is_mistake(error)
        True
        >>> try:
        ...     int("three")
        ... except ValueError as error:
        ...     is_mistake(error)
        False
    """
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or not isinstance(error, _KINDS):
        return False
    script = getattr(sys.modules["__main__"], "__file__", None)
    file = Path(frames[-1].filename).resolve()
    ours = _PACKAGE in file.parents or (script is not None and file == Path(script).resolve())
    line = linecache.getline(frames[-1].filename, frames[-1].lineno or 0)
    return ours and line.lstrip().startswith("raise ")


def explain_mistakes(main: Callable[P, R]) -> Callable[P, R]:
    """Makes a script's main function end with one short message, if its user made a mistake.

    The message goes to the standard error and the exit code is 1. All other errors (see
    :func:`is_mistake`) are raised as they are; with the environment variable
    ``TORCHRL_LOGO_TRACEBACK`` set, mistakes are, too.

    Args:
        main (callable): the function. Under ``hydra.main``, put this decorator below it.

    Examples:
        >>> from torchrl_logo.envs import make_env
        >>> @explain_mistakes
        ... def main(task):
        ...     print(make_env(task).task)
        >>> main("vmas/balance")
        vmas/balance
        >>> main("vmas/balanse")
        Traceback (most recent call last):
        ...
        SystemExit: Error: ...Nearest: vmas/balance...
    """

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        except Exception as error:
            if os.environ.get(_TRACEBACK) or not is_mistake(error):
                raise
            hint = f"({_TRACEBACK}=1 shows where it was found.)"
            raise SystemExit(f"Error: {error}\n{hint}") from None

    return run
