"""Reports of whole checkpoints: an unchanged file is neither opened nor searched a second time.

A report is found by where its file lies and how large that is, and holds good only for the hash that it names: the
file is hashed before it is believed. Many files are of one size, few lie at one place.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from convsv.cache._codec import decoded, encoded
from convsv.cache._keys import digest
from convsv.cache._store import Folder
from convsv.results import CheckpointReport

__all__ = ["Checkpoints", "Finished"]


@dataclass(frozen=True)
class Finished:
    """All that a call says about a checkpoint.

    Attributes:
        report: its report, with all layers.
        skipped: key, rule and reason of each tensor that is only shaped like a kernel.
    """

    report: CheckpointReport
    skipped: tuple[tuple[str, str, str], ...] = ()


class Checkpoints:
    """Finished checkpoints in a folder.

    Args:
        folder: where they are kept.
        scope: what their reports depend on, beside the file: computation, geometry, chosen layers.
    """

    def __init__(self, folder: Folder, scope: str) -> None:
        self._folder, self._scope = folder, scope

    def recall(self, path: str, sha256: Callable[[], str]) -> Finished | None:
        """Return what is known of a checkpoint; None where that is nothing, or the file is another one by now.

        Args:
            path: the file, as the user names it.
            sha256: hashes it; called only where something is known.
        """
        key = self._key(path)
        body = self._folder.get(key) if key else None
        if key is None or body is None:
            return None
        try:
            known = decoded(Finished, body)
        except ValueError:
            self._folder.drop(key)
            return None
        report = known.report
        is_sound = report.path == path and _is_whole(report)
        return known if is_sound and report.sha256 == sha256() else None

    def keep(self, path: str, known: Finished) -> None:
        """Keep what is known of a checkpoint, unless it failed in part, or has no hash."""
        report = known.report
        key = self._key(path) if _is_whole(report) else None
        if key is None:
            return
        try:
            body = encoded(known)
        except (TypeError, ValueError):
            return  # it holds what is not kept
        self._folder.put(key, body)

    def _key(self, path: str) -> str | None:
        """Return the name of a file's report; None where there is no such file."""
        try:
            status = Path(path).stat()
        except (OSError, ValueError):
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        # The path as it was named stands in reports and in what they say, so it counts too.
        return digest([self._scope, path, os.path.realpath(path), status.st_size])


def _is_whole(report: CheckpointReport) -> bool:
    """Tell whether nothing of a checkpoint could come out otherwise next time."""
    flawed = any(layer.failures or layer.unread is not None for layer in report.layers)
    return report.sha256 is not None and not report.failed and not flawed
