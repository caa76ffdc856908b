"""What users pass wrongly, named before any work starts."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch

__all__ = [
    "MissingKeyError",
    "find_device",
    "require_arguments",
    "require_discount",
    "require_logger",
    "require_positive",
    "require_positive_integers",
    "require_seed",
    "require_type",
    "require_widths",
]

T = TypeVar("T")


class MissingKeyError(KeyError):
    """A missing entry; unlike a plain ``KeyError`` it prints its message as it was written.

    Examples:
        >>> print(KeyError("no state"), MissingKeyError("no state"))
        'no state' no state
    """

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


def require_type(
    value: Any, kinds: type[T] | tuple[type[T], ...], name: str, how: str | None = None
) -> T:
    """Refuses an argument of another type.

    Args:
        value (Any): the argument.
        kinds (type or tuple of type): what it must be an instance of.
        name (str): its name, for the message.
        how (str, optional): how to get one, for the message.

    Returns:
        ``value`` itself.

    Raises:
        TypeError: names the argument, the expected and the found type, and how to get one.

    Examples:
        >>> require_type("vmas/balance", dict, "dataset", "load_dataset('vmas/balance')")
        Traceback (most recent call last):
        ...
        TypeError: dataset must be of type dict, found 'vmas/balance' (str). Get one from \
load_dataset('vmas/balance').
    """
    if not isinstance(value, kinds):
        names = [kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,))]
        text = repr(value)
        shown = text if len(text) <= 60 and "\n" not in text else ""
        found = f"{shown} ({type(value).__name__})" if shown else f"a {type(value).__name__}"
        hint = "" if how is None else f" Get one from {how}."
        raise TypeError(f"{name} must be of type {' or '.join(names)}, found {found}.{hint}")
    return value


def find_device(device: torch.device | str) -> torch.device:
    """The device of that name, if this machine has it.

    Args:
        device (torch.device or str): such as ``"cpu"`` or ``"cuda:0"``.

    Raises:
        ValueError: if there is no such device; names those that there are.

    Examples:
        >>> find_device("cpu")
        device(type='cpu')
        >>> find_device("gpu")
        Traceback (most recent call last):
        ...
        ValueError: No device 'gpu' on this machine; there are: cpu... Pass device="cpu".
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = None
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    cuda_is_missing = found is not None and found.type == "cuda" and (found.index or 0) >= devices
    if found is None or cuda_is_missing:
        there = ["cpu", *(f"cuda:{index}" for index in range(devices))]
        raise ValueError(
            f"No device {str(device)!r} on this machine; there are: {', '.join(there)}. "
            f'Pass device="{there[-1]}".'
        )
    return found


def require_discount(gamma: float, owner: str) -> float:
    """Refuses a discount outside of [0, 1].

    Args:
        gamma (float): the discount.
        owner (str): whose it is, for the message.

    Returns:
        ``gamma`` itself.

    Raises:
        ValueError: names the discount and its range.

    Examples:
        >>> require_discount(1.5, "MACQLLoss")
        Traceback (most recent call last):
        ...
        ValueError: MACQLLoss: gamma must be in [0, 1], found 1.5. Above 1 values grow without end.
    """
    if not isinstance(gamma, numbers.Real) or not 0.0 <= gamma <= 1.0:
        raise ValueError(
            f"{owner}: gamma must be in [0, 1], found {gamma!r}. Above 1 values grow without end."
        )
    return gamma


def require_positive(**values: float | None) -> None:
    """Refuses numbers that are not positive and finite; ``None`` is a default, and passes.

    Args:
        **values: the numbers by their names.

    Raises:
        ValueError: names the number and what was found.

    Examples:
        >>> require_positive(lr=-1.0)
        Traceback (most recent call last):
        ...
        ValueError: lr must be positive and finite, found -1.0.
    """
    for name, value in values.items():
        if value is None:
            continue
        if not isinstance(value, numbers.Real) or not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, found {value!r}.")


def require_positive_integers(**values: int | None) -> None:
    """Refuses what is no positive integer; ``None`` is a default, and passes.

    Args:
        **values: the numbers by their names.

    Raises:
        ValueError: names the number and what was found.

    Examples:
        >>> require_positive_integers(steps=10, horizon=0)
        Traceback (most recent call last):
        ...
        ValueError: horizon must be a positive integer, found 0.
    """
    for name, value in values.items():
        if value is not None and (type(value) is not int or value < 1):
            raise ValueError(f"{name} must be a positive integer, found {value!r}.")


def require_logger(logger: Any) -> None:
    """Refuses a logger that takes no scalars; ``None`` logs nothing, and passes.

    Args:
        logger (Logger, optional): TorchRL's, or what has its ``log_scalar``.

    Raises:
        TypeError: says what was found, and how to get a logger.

    Examples:
        >>> require_logger("mlflow")
        Traceback (most recent call last):
        ...
        TypeError: logger must be a TorchRL Logger, found 'mlflow' (str). Get one from \
torchrl_logo.record.MLflowRun(name).
    """
    if logger is not None and not callable(getattr(logger, "log_scalar", None)):
        raise TypeError(
            f"logger must be a TorchRL Logger, found {logger!r} ({type(logger).__name__}). Get one "
            "from torchrl_logo.record.MLflowRun(name)."
        )


def require_seed(seed: int) -> int:
    """Refuses a seed that is no whole number.

    Args:
        seed (int): the seed.

    Returns:
        ``seed`` itself.

    Raises:
        TypeError: says what was found.

    Examples:
        >>> require_seed("0")
        Traceback (most recent call last):
        ...
        TypeError: seed must be a whole number, found '0' (str). Pass seed=0, for instance.
    """
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
        raise TypeError(
            f"seed must be a whole number, found {seed!r} ({type(seed).__name__}). Pass seed=0, "
            "for instance."
        )
    return seed


def require_widths(widths: Sequence[int], name: str) -> Sequence[int]:
    """Refuses widths of layers that are no sequence of positive integers.

    Args:
        widths (sequence of int): one a hidden layer; none is a linear map.
        name (str): the argument's name, for the message.

    Returns:
        ``widths`` itself.

    Raises:
        ValueError: names the argument and what was found.

    Examples:
        >>> require_widths(256, "hidden_sizes")
        Traceback (most recent call last):
        ...
        ValueError: hidden_sizes must hold a positive integer for each hidden layer, such as \
(128, 128), found 256.
    """
    if isinstance(widths, Iterable) and not isinstance(widths, str):
        if all(isinstance(width, numbers.Integral) and width > 0 for width in widths):
            return widths
    raise ValueError(
        f"{name} must hold a positive integer for each hidden layer, such as (128, 128), found "
        f"{widths!r}."
    )


def require_arguments(
    given: Mapping[str, Any],
    accepted: Callable[..., Any] | Iterable[Callable[..., Any]],
    name: str,
) -> None:
    """Refuses arguments that nobody takes.

    Args:
        given (mapping): the arguments.
        accepted (callable, or several): which take some of them by name. Positional arguments
            without a default are not for users, and ``**kwargs`` are not looked at.
        name (str): what takes them, for the message.

    Raises:
        TypeError: names what is unknown, and all there are.

    Examples:
        >>> require_arguments({"widht": 3}, lambda width=1, depth=2: None, "The network")
        Traceback (most recent call last):
        ...
        TypeError: The network takes no 'widht'; it takes: depth, width.
    """
    callables = (accepted,) if callable(accepted) else tuple(accepted)
    known: set[str] = set()
    for taker in callables:
        for parameter in inspect.signature(taker).parameters.values():
            has_default = parameter.default is not parameter.empty
            if parameter.kind is parameter.KEYWORD_ONLY or has_default:
                known.add(parameter.name)
    unknown = sorted(set(given) - known)
    if unknown:
        raise TypeError(
            f"{name} takes no {', '.join(map(repr, unknown))}; it takes: "
            f"{', '.join(sorted(known)) or 'nothing'}."
        )
