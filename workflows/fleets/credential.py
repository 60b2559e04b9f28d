"""Credentials by which nodes trust each other for one run: a certificate, its key, a token."""

import datetime as dt
import secrets

_FROM, _TO = dt.datetime(1970, 1, 1), dt.datetime(9999, 12, 31)


def make_credential() -> dict[str, str]:
    """Return a new ``certificate`` and its ``key`` as PEM texts, and a ``token``; keep them secret.

    The certificate is good at any time of day, since the nodes' clocks need not be right: it is
    trusted for being the one that was handed out, and lives as long as its run.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "workflows")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(_FROM).not_valid_after(_TO)
    signed = builder.sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    return {
        "certificate": signed.public_bytes(pem).decode("ascii"),
        "key": private.decode("ascii"),
        "token": secrets.token_urlsafe(32),
    }
