"""Training by several processes, on PyTorch's process groups."""

from .gradients import Sums
from .joining import PeerError, is_launched, joined, leads
from .world import ALONE, World, silenced

__all__ = ["ALONE", "PeerError", "Sums", "World", "is_launched", "joined", "leads", "silenced"]
