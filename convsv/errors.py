"""Everything convsv raises on purpose.

The tree::

    ConvsvError                     one line: what, where, found, what to do
    ├── UsageError                  wrong options, or a file that is not there
    │   └── GeometryError           a stated geometry is impossible or contradicts the weights
    ├── CheckpointError             a checkpoint could not be read
    │   ├── UnknownFormatError      no reader recognises the content
    │   ├── CorruptCheckpointError  the content contradicts itself: truncated, bad checksum, bad offsets
    │   └── UnsafeCheckpointError   reading it would mean running, trusting or allocating too much
    ├── ComputationError            a result could not be computed
    │   ├── AbandonedError          whoever computes is gone: nothing more comes of this run
    │   ├── UnavailableError        this one result does not exist for this layer: becomes a value, never an exit
    │   └── ContradictionError      two certified statements exclude each other: a bug, always raised
    └── OutputError                 a result could not be written

Exceptions carry strings only, so that any module may raise them. Exit codes belong to the command line.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = [
    "AbandonedError",
    "CheckpointError",
    "ComputationError",
    "ContradictionError",
    "ConvsvError",
    "CorruptCheckpointError",
    "GeometryError",
    "OutputError",
    "UnavailableError",
    "UnknownFormatError",
    "UnsafeCheckpointError",
    "UsageError",
    "error_context",
    "escaped",
]


def escaped(text: str) -> str:
    """Return a text on one line that steers no terminal: what is not printable is escaped as ``repr`` does."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class ConvsvError(Exception):
    """An error that says what happened, where, what was found, and what to do.

    Args:
        what: what went wrong, in a few words.
        path: the file it concerns, when known.
        tensor: the tensor or layer it concerns, when known.
        found: what was found instead of what was expected.
        advice: what the user can do about it.
    """

    def __init__(
        self,
        what: str,
        *,
        path: str | None = None,
        tensor: str | None = None,
        found: str | None = None,
        advice: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.path = path
        self.tensor = tensor
        self.found = found
        self.advice = advice

    @property
    def reason(self) -> str:
        """What happened and what was found, for where the place is told already; not escaped."""
        return f"{self.what} (found {self.found})" if self.found else self.what

    def __str__(self) -> str:
        """Return the whole message on one line, whatever is in names and paths: what is not printable is escaped."""
        where = ": ".join(part for part in (self.path, self.tensor) if part)
        text = f"{where}: {self.what}" if where else self.what
        if self.found:
            text += f" (found {self.found})"
        if self.advice:
            text += f"; {self.advice}"
        return escaped(text)


class UsageError(ConvsvError):
    """Wrong options, or a file that is not there."""


class GeometryError(UsageError):
    """A stated geometry is impossible or contradicts the weights."""


class CheckpointError(ConvsvError):
    """A checkpoint could not be read."""


class UnknownFormatError(CheckpointError):
    """No reader recognises the content of the file."""


class CorruptCheckpointError(CheckpointError):
    """The content contradicts itself: truncated, wrong checksum, wrong offsets."""


class UnsafeCheckpointError(CheckpointError):
    """Reading the file would mean running, trusting or allocating too much."""


class ComputationError(ConvsvError):
    """A result could not be computed."""


class AbandonedError(ComputationError):
    """Whoever computes is gone, a cluster's scheduler for instance: nothing more comes of this run."""


class UnavailableError(ComputationError):
    """This one result does not exist for this layer; callers turn it into a value."""


class ContradictionError(ComputationError):
    """Two certified statements about the same operator exclude each other."""


class OutputError(ConvsvError):
    """A result could not be written."""


@contextmanager
def error_context(*, path: str | None = None, tensor: str | None = None) -> Iterator[None]:
    """Fill in where an error happened, once, at the boundary that knows it.

    Args:
        path: the file in work.
        tensor: the tensor or layer in work.

    Raises:
        ConvsvError: what was raised within, with the place filled in.
    """
    try:
        yield
    except ConvsvError as error:
        error.path = error.path or path
        error.tensor = error.tensor or tensor
        raise
