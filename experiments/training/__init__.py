"""How a masked network is trained: steps, the resumable loop, checkpoints, failures."""
