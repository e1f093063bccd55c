"""Keys of the stand-in: they sign tokens, and one authority signs the certificate of its server.

RSA keys are slow to make. So they stand as files in a folder of the test run, and each is made once.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, hmac, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

Private = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _number(value: int, size: int | None = None) -> str:
    return base64url(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


@dataclass(frozen=True)
class Key:
    """A key that signs tokens, with the `kid` and the `alg` under which it is published."""

    kid: str
    alg: str
    private: Private

    @property
    def jwk(self) -> dict[str, str]:
        """The public key, as `/keys` publishes it."""
        public = self.private.public_key()
        names = {"use": "sig", "alg": self.alg, "kid": self.kid}
        match public:
            case rsa.RSAPublicKey():
                numbers = public.public_numbers()
                return {"kty": "RSA", **names, "n": _number(numbers.n), "e": _number(numbers.e)}
            case ec.EllipticCurvePublicKey():
                point = public.public_numbers()
                return {"kty": "EC", **names, "crv": "P-256", "x": _number(point.x, 32), "y": _number(point.y, 32)}
            case _:
                raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
                return {"kty": "OKP", **names, "crv": "Ed25519", "x": base64url(raw)}

    @property
    def private_jwk(self) -> dict[str, str]:
        """The private key as a JWK, which no key set may hold."""
        assert isinstance(self.private, rsa.RSAPrivateKey)
        return {**self.jwk, "d": _number(self.private.private_numbers().d)}

    @property
    def public_pem(self) -> bytes:
        """The public key as an attacker has it, who tries it as the secret of HS256."""
        return self.private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def sign(self, data: bytes) -> bytes:
        match self.private:
            case rsa.RSAPrivateKey():
                return self.private.sign(data, padding.PKCS1v15(), hashes.SHA256())
            case ec.EllipticCurvePrivateKey():
                r, s = decode_dss_signature(self.private.sign(data, ec.ECDSA(hashes.SHA256())))
                return r.to_bytes(32, "big") + s.to_bytes(32, "big")
            case _:
                return self.private.sign(data)

    def token(self, claims: Mapping[str, Any], header: Mapping[str, Any] | None = None) -> str:
        """A JWT with these claims. Members of `header` replace the usual ones; a member that is `...` is left out."""
        usual: dict[str, Any] = {"alg": self.alg, "kid": self.kid, "typ": "JWT"}
        return signed(
            {name: value for name, value in {**usual, **(header or {})}.items() if value is not ...}, claims, self
        )


def signed(header: Mapping[str, Any] | str, claims: Mapping[str, Any] | str, key: Key | bytes | None) -> str:
    """A JWS of exactly this header and these claims, also of such that no honest library would sign.

    Args:
        header: an object, or its text as it shall stand (for duplicate members).
        claims: likewise.
        key: the key; octets are a secret of HS256; None leaves the signature empty.
    """
    first, second = (
        part if isinstance(part, str) else json.dumps(part, separators=(",", ":")) for part in (header, claims)
    )
    content = f"{base64url(first.encode())}.{base64url(second.encode())}"
    if isinstance(key, Key):
        signature = key.sign(content.encode())
    elif key is None:
        signature = b""
    else:
        mac = hmac.HMAC(key, hashes.SHA256())
        mac.update(content.encode())
        signature = mac.finalize()
    return f"{content}.{base64url(signature)}"


class Keys:
    """The keys of one test run. They stand in a folder, from which the process of the stand-in reads them too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, Key] = {}

    def rsa(self, number: int = 1) -> Key:
        """An RSA key of 2,048 bits."""
        return self.named(f"snk_{number}")

    def weak(self) -> Key:
        """An RSA key of 1,024 bits, which nobody may accept."""
        return self.named("snk_weak")

    def ec(self, number: int = 1) -> Key:
        return self.named(f"snk_ec{number}")

    def ed(self, number: int = 1) -> Key:
        return self.named(f"snk_ed{number}")

    def named(self, kid: str) -> Key:
        """The key of this `kid`, which is made at its first use."""
        if kid not in self._known:
            path = self.folder / f"{kid}.pem"
            if not path.exists():
                _write(path, _made(kid))
            private = serialization.load_pem_private_key(path.read_bytes(), None)
            assert isinstance(private, Private)
            alg = {"ec": "ES256", "ed": "EdDSA"}.get(kid.removeprefix("snk_")[:2], "RS256")
            self._known[kid] = Key(kid, alg, private)
        return self._known[kid]

    @property
    def ca_file(self) -> Path:
        """The certificate of the authority that signs the server's certificate."""
        self.server_file()
        return self.folder / "ca.pem"

    def server_file(self, name: str = "server") -> Path:
        """Certificate and private key of the server. `stranger` is signed by itself, so no client may trust it."""
        path = self.folder / f"{name}.pem"
        if not path.exists():
            authority = ec.generate_private_key(ec.SECP256R1())
            key = authority if name == "stranger" else ec.generate_private_key(ec.SECP256R1())
            if name != "stranger":
                own = _certificate("Stand-in authority", authority, authority, None)
                (self.folder / "ca.pem").write_bytes(own.public_bytes(serialization.Encoding.PEM))
            made = _certificate("Stand-in", key, authority, None if name == "stranger" else "Stand-in authority")
            _write(path, key, made.public_bytes(serialization.Encoding.PEM))
        return path


def _made(kid: str) -> Private:
    if kid.startswith("snk_ec"):
        return ec.generate_private_key(ec.SECP256R1())
    if kid.startswith("snk_ed"):
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(65537, 1024 if kid == "snk_weak" else 2048)


def _write(path: Path, key: Private, more: bytes = b"") -> None:
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    part = path.with_suffix(".part")
    part.touch(mode=0o600)
    part.write_bytes(text + more)
    part.rename(path)  # so that the other process never reads half a key


def _certificate(
    subject: str, key: ec.EllipticCurvePrivateKey, authority: ec.EllipticCurvePrivateKey, by: str | None
) -> x509.Certificate:
    """A certificate. Without `by` it is signed by itself, and may sign others."""
    now = datetime.now(UTC)
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in (subject, by or subject)]
    made = (
        x509.CertificateBuilder()
        .subject_name(names[0])
        .issuer_name(names[1])
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]),
            critical=False,
        )
    )
    if by is None:
        usage = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False)
        usage |= {"encipher_only": False, "decipher_only": False}
        made = made.add_extension(
            x509.KeyUsage(digital_signature=True, key_cert_sign=True, crl_sign=True, **usage), critical=True
        )
    return made.sign(authority, hashes.SHA256())
