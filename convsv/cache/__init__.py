"""Results kept from one call to the next: by what they depend on, in a bounded folder, and never trusted blindly."""

from __future__ import annotations

from convsv.cache._analyst import Cached, KeyOf
from convsv.cache._checkpoints import Checkpoints, Finished
from convsv.cache._keys import Computation, digest, layer_key
from convsv.cache._store import Folder, Memory, Usage

__all__ = [
    "Cached",
    "Checkpoints",
    "Computation",
    "Finished",
    "Folder",
    "KeyOf",
    "Memory",
    "Usage",
    "digest",
    "layer_key",
]
