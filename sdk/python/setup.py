"""The build's include: `shared/wire` becomes `psx_peer._wire`, so that a device installs this package and nothing else."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = Path(__file__).resolve().parent
MODULES = ("__init__", "cork", "egress", "handshake", "http1", "mux", "outbox", "peer", "stream", "websocket")


def source_of(module: str) -> Path:
    """In a checkout the wire code stands in `shared/wire`; an sdist brings its copy along."""
    brought = HERE / "wire" / f"{module}.py"
    return brought if brought.exists() else HERE.parent.parent / "shared" / "wire" / f"{module}.py"


def include(target: Path, package: str | None) -> None:
    """Copy the modules; with a package name their imports are rewritten to it."""
    target.mkdir(parents=True, exist_ok=True)
    for module in MODULES:
        text = source_of(module).read_text(encoding="utf-8")
        if package is not None:
            text = text.replace("from shared.wire", f"from {package}")
            if "shared." in text.replace("`shared.", ""):
                raise SystemExit(f"shared/wire/{module}.py imports more than shared.wire")
        (target / f"{module}.py").write_text(text, encoding="utf-8")


class BuildWithWire(build_py):
    """A wheel."""

    def run(self) -> None:
        super().run()
        include(Path(self.build_lib) / "psx_peer" / "_wire", "psx_peer._wire")


class SourceWithWire(sdist):
    """A source archive."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        include(Path(base_dir) / "wire", None)


setup(cmdclass={"build_py": BuildWithWire, "sdist": SourceWithWire})
