"""Frozen TorchScript archives: weights that ``torch.jit.freeze`` turned into constants of the code.

They stand in ``constants.pkl`` as a tuple of tensors, and the code calls them ``CONSTANTS.c0``, ``CONSTANTS.c1`` and so
on. Their modules are gone, and with them their names.
"""

from __future__ import annotations

from dataclasses import replace

from convsv.checkpoints import ModuleFacts
from convsv.checkpoints._pickle import Pickle
from convsv.checkpoints._torch_objects import ObjectIndex, geometry_of, index_objects
from convsv.checkpoints._torch_script import ScriptCode
from convsv.checkpoints._torch_tensors import FindStorage

__all__ = ["add_constants"]


def add_constants(found: ObjectIndex, pickle: Pickle, find: FindStorage, code: ScriptCode) -> None:
    """Add the constants of the code to what an archive holds.

    Args:
        found: what its modules hold.
        pickle: its constants.
        find: finds their storages.
        code: its code.

    Raises:
        CorruptCheckpointError: a constant names a storage that the archive lacks.
        UnsafeCheckpointError: there are too many.
    """
    calls = code.frozen()
    for tensor in index_objects(pickle.value, find).tensors:
        if tensor.container or not tensor.key.isdecimal():
            continue
        key = f"CONSTANTS.c{tensor.key}"
        # Its bytes may stand in the archive more than once: it is read, not written.
        found.tensors.append(replace(tensor, key=key, place=None, identity=None))
        stated = calls.get(int(tensor.key), [])
        if stated and 3 <= len(tensor.shape) <= 5:
            geometries = tuple(dict.fromkeys(geometry_of(constants, "") for constants in stated))
            kind = f"Conv{'Transpose' if stated[0]['transposed'] is True else ''}{len(tensor.shape) - 2}d"
            several = geometries if len(geometries) > 1 else ()
            found.modules.append(
                ModuleFacts("CONSTANTS", kind, geometries[0], (), key, variables={key: "kernel_oik"}, calls=several)
            )
