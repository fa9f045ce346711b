"""Certificates for servers that speak TLS, and for those who talk to them: made for the tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trustme

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers import RealServer


class Certificates:
    """An authority, what it signed for servers and clients, and what another one signed.

    With `mutual` servers let nobody in who shows no certificate of that authority.
    """

    def __init__(self, directory: Path, host: str, *, mutual: bool) -> None:
        self._directory = directory
        self.mutual = mutual
        authority, stranger = trustme.CA(), trustme.CA()
        self.ca_file = self._write("ca.pem", authority.cert_pem)
        #: An authority that did not sign the servers' certificates: a client that trusts it, and
        #: not the other, must refuse.
        self.other_ca_file = self._write("other-ca.pem", stranger.cert_pem)
        self.server = self._pair("server", authority.issue_cert("localhost", host))
        self.elsewhere = self._pair("elsewhere", authority.issue_cert("elsewhere.example"))
        self.client = self._pair("client", authority.issue_cert("worker.example"))
        self.stranger = self._pair("stranger", stranger.issue_cert("stranger.example"))

    def _pair(self, name: str, made: trustme.LeafCert) -> tuple[Path, Path]:
        certificate = self._write(f"{name}.pem", *made.cert_chain_pems)
        return certificate, self._write(f"{name}-key.pem", made.private_key_pem)

    def _write(self, name: str, *blobs: trustme.Blob) -> Path:
        path = self._directory / name
        path.write_bytes(b"".join(blob.bytes() for blob in blobs))
        return path

    @property
    def settings(self) -> dict[str, str]:
        """What a server is told of its certificates."""
        certificate, key = self.server
        return {
            "tls-cert-file": str(certificate),
            "tls-key-file": str(key),
            "tls-ca-cert-file": str(self.ca_file),
            "tls-auth-clients": "yes" if self.mutual else "no",
        }

    @property
    def options(self) -> dict[str, str]:
        """What a client is told, as redis-py reads it in a URL."""
        trusted = {"ssl_ca_certs": str(self.ca_file)}
        return trusted | self.shown_by_client(self.client) if self.mutual else trusted

    @staticmethod
    def shown_by_client(pair: tuple[Path, Path]) -> dict[str, str]:
        return {"ssl_certfile": str(pair[0]), "ssl_keyfile": str(pair[1])}

    def present(self, server: RealServer, pair: tuple[Path, Path]) -> None:
        """Have a server show another certificate from now on."""
        cert, key = map(str, pair)
        server.execute("CONFIG", "SET", "tls-cert-file", cert, "tls-key-file", key)


def with_options(url: str, options: dict[str, str]) -> str:
    """Get a URL with these options."""
    return "?".join([url, "&".join(f"{name}={value}" for name, value in options.items())])
