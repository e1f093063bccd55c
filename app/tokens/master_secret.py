"""The master secret: the only secret that an operator keeps. Keyturn uses it only to seal the working keys.

An operator gives it as a setting. The embedded default makes its own, in a file that only the file's owner may read.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
from itertools import pairwise

from ..command_name import called
from ..errors import ConfigurationError, WrongSettings
from ..own_files import mode_if_ours
from ..settings import Settings
from ..settings_sources import PREFIX

SECRET_BYTES = 32
"""The least number of bytes of a master secret."""


def master_secret_of(settings: Settings) -> bytes:
    """The master secret, from the settings or from the embedded default's own file.

    Raises:
        ConfigurationError: there is no master secret, it is weak, or other users own or may read its file.
    """
    if settings.secret is not None:
        return master_secret(settings.secret.get_secret_value())
    path = settings.secret_path
    try:
        if mode_if_ours(path, f"the master secret in {path} ") & 0o077 and os.name == "posix":
            raise ConfigurationError(f"the master secret in {path} is open to others; chmod 600 it")
        return master_secret(path.read_text(encoding="ascii"))
    except FileNotFoundError:
        advice = f"set {PREFIX}SECRET"
        if settings.embedded:  # perhaps the operator forgot the settings of the service
            advice += f" and {PREFIX}DATABASE_URL, or run {called()} serve once to try Keyturn on SQLite"
        raise ConfigurationError(f"there is no master secret in {path}: {advice}") from None
    except (OSError, UnicodeDecodeError):
        raise ConfigurationError(f"the master secret in {path} can't be read") from None


def previous_secret_of(settings: Settings) -> bytes | None:
    """The master secret before the present one, while the keys move from one to the other. None if none is set.

    Raises:
        WrongSettings: the secret is weak, or is the present one.
    """
    if settings.secret_previous is None:
        return None
    previous = master_secret(settings.secret_previous.get_secret_value(), f"{PREFIX}SECRET_PREVIOUS")
    if previous == master_secret_of(settings):
        raise WrongSettings(f"{PREFIX}SECRET_PREVIOUS: is the same secret as {PREFIX}SECRET")
    return previous


def make_secret(settings: Settings) -> bool:
    """Makes the embedded default's master secret if there is none. Returns whether it made one.

    Raises:
        ConfigurationError: the file can't be written.
    """
    path = settings.secret_path
    if settings.secret is not None or path.exists():
        return False
    # The file gets its name by a link when it is whole. So a process that starts at the same time never sees a part.
    draft = path.with_name(f"secret.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(base64.b64encode(os.urandom(SECRET_BYTES)).decode() + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    except FileExistsError:
        return False
    except OSError as e:
        raise ConfigurationError(f"the master secret in {path} can't be written ({e.strerror})") from None
    finally:
        draft.unlink(missing_ok=True)
    return True


_HEX = re.compile(r"(?:[0-9A-Fa-f]{2})+")
_SAMPLES = {"secret", "changeme", "change-me", "password", "keyturn", "example", "default", "insecure", "sample"}


def master_secret(text: str, name: str = f"{PREFIX}SECRET") -> bytes:
    """The master secret's bytes from its base64, base64url or hex text. `name` is the setting's.

    Raises:
        WrongSettings: as `random_secret`.
    """
    # The key derivation gets the same size for every text.
    return hashlib.sha256(b"keyturn master secret\0" + random_secret(text, name)).digest()


def random_secret(text: str, name: str) -> bytes:
    """The bytes that a text spells in base64, base64url or hex. `name` names them in an error.

    Raises:
        WrongSettings: the secret is shorter than 256 bits, is not random, or is a sample.
    """
    decoded = _decode(text)
    if decoded is None or len(decoded) < SECRET_BYTES:
        raise WrongSettings(
            f"{name}: must be at least 256 random bits as base64 or hex; make one with: openssl rand -base64 32"
        )
    # 32 random bytes have fewer than 16 distinct values about once in 10**13, and practically never the same steps.
    repetitive = len(set(decoded)) < SECRET_BYTES // 2 or len({(b - a) % 256 for a, b in pairwise(decoded)}) == 1
    if repetitive or _typed(text.strip(), decoded) or any(word in text.lower() for word in _SAMPLES):
        raise WrongSettings(f"{name}: is not random; make one with: openssl rand -base64 32")
    return decoded


def _typed(text: str, decoded: bytes) -> bool:
    """Whether a person typed the secret: an encoded passphrase, or letters that happen to be base64.

    A random secret of 32 bytes is refused so rarely:

    1. The bytes are readable text once in 10**10.
    2. Their base64 has letters of one case only once in 10**9.
    3. Their base64 has fewer than 20 different characters once in 10**8.
    """
    try:
        if "".join(decoded.decode().split()).isprintable():
            return True
    except UnicodeDecodeError:
        pass
    return not _HEX.fullmatch(text) and (text in {text.lower(), text.upper()} or len(set(text)) < 20)  # noqa: PLR2004


def _decode(text: str) -> bytes | None:
    """The bytes that a text spells in hex, base64 or base64url, with or without padding. None if it is none of them."""
    text = text.strip()
    if _HEX.fullmatch(text):
        return bytes.fromhex(text)
    if re.fullmatch(r"[A-Za-z0-9+/_-]+={0,2}", text):
        try:
            return base64.b64decode(
                text.replace("-", "+").replace("_", "/").rstrip("=") + "=" * (-len(text.rstrip("=")) % 4)
            )
        except ValueError:
            return None
    return None
