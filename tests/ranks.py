"""One rank of a distributed training run with a penalty and a clip: run by ``test_distributed.py``.

``python ranks.py RANK RANKS STORE``: the ranks meet at the file STORE. Each prints one JSON object: a hash of its
weights, by module path the norm that a clip certified at the end, and by how much clips moved weights at most.
"""

from __future__ import annotations

import hashlib
import json
import sys

import torch
from torch import distributed, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from convsv.differentiable import SpectralClip, bounded, spectral_penalty
from networks import BasicBlock

STEPS, EVERY, MAX_NORM = 4, 2, 0.8


def network() -> nn.Sequential:
    """A small residual network; one of its convolutions is bounded by a parametrisation."""
    torch.manual_seed(0)
    first = bounded(nn.Conv2d(1, 8, 3, padding=1, padding_mode="reflect"), MAX_NORM)
    blocks = BasicBlock(8, 8, 1), BasicBlock(8, 12, 2)
    return nn.Sequential(first, nn.ReLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10))


def main(rank: int, ranks: int, store: str) -> None:
    """Train, and print."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    model = network()
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    clip = SpectralClip(model, MAX_NORM, EVERY)
    generator = torch.Generator().manual_seed(rank)  # every rank has data of its own
    moved = 0.0
    for _ in range(STEPS):
        images = torch.randn(8, 1, 8, 8, generator=generator)
        labels = torch.randint(10, (8,), generator=generator)
        loss = cross_entropy(parallel(images), labels)
        loss = (
            loss + 1e-2 * spectral_penalty(model) + 1e-2 * spectral_penalty(model, "norm", target=0.5, include=["3.*"])
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        before = [parameter.detach().clone() for parameter in model.parameters()]
        clip.step()
        moved = max(float((p - b).detach().abs().max()) for p, b in zip(model.parameters(), before, strict=True))
    norms = clip.clip()
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters()))
    print(json.dumps({"digest": digest.hexdigest(), "norms": norms, "moved": moved, "loss": float(loss.detach())}))
    torch.save(model.state_dict(), f"{store}.{rank}")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
