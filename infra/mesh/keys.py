"""A node's own key: made here, kept in a file that only its owner reads, and shown to nobody but `wg`'s standard input.

Two files: `key` is in use, `next-key` is announced. Switching is one rename, so a crash leaves the one or the other.
"""

from __future__ import annotations

import base64
import contextlib
import os
import stat
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from infra.mesh.config import KEY_BYTES, mesh_key
from infra.mesh.model import MeshKey

OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
OWNER_ONLY: Final = 0o600


class KeyRefused(Exception):
    """A key file that is not ours alone, or is no key; the message names the file and never what is in it."""


class PrivateKey:
    """A private key that does not print itself."""

    __slots__ = ("_raw", "public")

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        public = X25519PrivateKey.from_private_bytes(raw).public_key()
        self.public: MeshKey = mesh_key(base64.b64encode(public.public_bytes_raw()).decode())

    @staticmethod
    def fresh() -> PrivateKey:
        """A new one, from the kernel's randomness."""
        made = X25519PrivateKey.generate()
        encoding, form = serialization.Encoding.Raw, serialization.PrivateFormat.Raw
        return PrivateKey(made.private_bytes(encoding, form, serialization.NoEncryption()))

    def reveal(self) -> str:
        """Base64, for WireGuard's configuration and the key file."""
        return base64.b64encode(self._raw).decode()

    def __repr__(self) -> str:
        return f"PrivateKey(of {self.public})"


class KeyFolder:
    """The folder of the two files, 0700."""

    def __init__(self, folder: Path) -> None:
        self._key, self._next = folder / "key", folder / "next-key"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def own(self) -> PrivateKey:
        """The key in use; made the first time. Raises KeyRefused."""
        if not self._key.exists():
            _write(self._key, PrivateKey.fresh())
        return _read(self._key)

    def following(self) -> PrivateKey | None:
        """The announced key, if there is one. Raises KeyRefused."""
        return _read(self._next) if self._next.exists() else None

    def prepare(self) -> PrivateKey:
        """Make the key that will be next."""
        made = PrivateKey.fresh()
        _write(self._next, made)
        return made

    def switch(self) -> PrivateKey:
        """Make the next key the one in use; the old one is gone."""
        self._next.rename(self._key)
        return _read(self._key)

    def abandon(self) -> None:
        """Forget the next key."""
        self._next.unlink(missing_ok=True)

    def age_s(self, now_s: float) -> float:
        """How long the key in use has existed, in seconds."""
        return max(now_s - self._key.stat().st_mtime, 0.0)


def _write(path: Path, key: PrivateKey) -> None:
    """All or nothing: a file that is half written is never read."""
    draft = path.with_name(f".{path.name}.new")
    with contextlib.suppress(FileNotFoundError):
        draft.unlink()
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, OWNER_ONLY)
    with os.fdopen(descriptor, "w") as file:
        file.write(key.reveal() + "\n")
        file.flush()
        os.fsync(descriptor)
    draft.rename(path)


def _read(path: Path) -> PrivateKey:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        raise KeyRefused(f"{path}: {error.strerror}") from None
    with os.fdopen(descriptor) as file:
        if os.fstat(descriptor).st_mode & OTHERS:
            raise KeyRefused(f"{path}: others may read it; it must be 0600")
        text = file.read(2 * KEY_BYTES).strip()
    try:
        return PrivateKey(base64.b64decode(mesh_key(text)))
    except ValueError:
        raise KeyRefused(f"{path}: not a key") from None
