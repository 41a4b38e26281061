"""What `bestattack doctor` finds out about this machine: software, processors, memory, data, and
how fast passes through networks are."""

from benchmark.machine.checkup import Section, closing
from benchmark.machine.examined import sections

__all__ = ["Section", "closing", "sections"]
