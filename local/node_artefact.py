"""`./psx artefact`: one zip with all that a node runs: its programs, their packages, units and rules. Decision 0051.

Named by its own SHA-256: the name is the version, what is fetched can be checked against it, and rolling back is naming
another one. The same sources and locks give the same bytes. Leaves out the interpreter and what the image brings.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grimp

from local.packaging import MB, RUNTIME, PackageFailed, interpreter, own_files, staged, wheels, write_zip
from local.paths import PACKAGES

ENTRIES: Final = (
    "relay_node.__main__",
    "gateway_node.__main__",
    "gateway_node.prober.__main__",
    "gateway_node.prober.target",
    "infra.mesh.__main__",
    "infra.nodes.boot",
    "infra.nodes.lifecycle",
)
UNZIPPED_BOUND_MB: Final = 120


@dataclass(frozen=True, slots=True)
class NodeArtefact:
    """The zip, and its version."""

    path: Path
    version: str
    zipped_bytes: int
    unzipped_bytes: int


def build_artefact(folder: Path, version: str = RUNTIME) -> NodeArtefact:
    """Build the zip in a folder, under the name of its hash. Raises PackageFailed."""
    python = interpreter(version)
    if python is None:
        raise PackageFailed(
            f"Python {version} is needed to compile for the nodes: install it, or see --python"
        )
    graph = grimp.build_graph(
        "shared", "relay_node", "gateway_node", "infra", cache_dir=None, exclude_type_checking_imports=True
    )
    own = {name: path for entry in ENTRIES for name, path in own_files(graph, entry)}
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / "nodes.draft.zip"
    with tempfile.TemporaryDirectory() as staging:
        code = staged(Path(staging), sorted(own.items()), python)
        unzipped = write_zip(draft, (wheels("nodes", python, version), code))
    if unzipped > UNZIPPED_BOUND_MB * MB:
        draft.unlink()
        raise PackageFailed(f"nodes: {unzipped / MB:.0f} MB unzipped, {UNZIPPED_BOUND_MB} are allowed")
    digest = hashlib.sha256(draft.read_bytes()).hexdigest()
    path = draft.rename(folder / f"{digest}.zip")
    return NodeArtefact(path, digest, path.stat().st_size, unzipped)


def artefact(version: str) -> int:
    """Build it and say how it is called; answers the exit status."""
    try:
        made = build_artefact(PACKAGES / "nodes", version)
    except PackageFailed as failed:
        sys.stderr.write(f"psx: {failed}\n")
        return 2
    sizes = f"{made.zipped_bytes / MB:.1f} MB zipped, {made.unzipped_bytes / MB:.1f} MB unzipped"
    sys.stdout.write(f"{made.path}\nversion {made.version}\n{sizes}\n")
    return 0
