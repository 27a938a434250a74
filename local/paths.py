"""Where things are: the checkout, its cache, and the folder of one run."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
STATE: Final = ROOT / ".psx"
CACHE: Final = STATE / "cache"
RUNS: Final = STATE / "runs"
PACKAGES: Final = STATE / "package"
WHEELS: Final = CACHE / "wheels"
MODULES: Final = ROOT / "local" / "node_modules"
ANVIL: Final = MODULES / "@foundry-rs" / "anvil-linux-amd64" / "bin" / "anvil"
DYNOXIDE: Final = MODULES / "@dynoxide" / "linux-x64" / "dynoxide"
