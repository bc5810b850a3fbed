"""Kernels made to have a property that the analysis confirms: a paper is one file in this folder.

What each guarantees is said where it is made; what only holds nearly comes back measured or certified.
"""

from __future__ import annotations

from convsv.constructions._symbol import Constructed
from convsv.constructions.feng2024 import flat_spectrum
from convsv.constructions.senderovich2022 import Compressed, compress
from convsv.constructions.trockman2021 import cayley, truncate
from convsv.constructions.yang2020 import factors, low_rank

__all__ = ["Compressed", "Constructed", "cayley", "compress", "factors", "flat_spectrum", "low_rank", "truncate"]
