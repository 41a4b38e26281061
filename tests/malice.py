"""What runs code when it is unpickled."""

import os
from pathlib import Path
from typing import Any


class Malice:
    """An object that makes a folder where it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.target,)
