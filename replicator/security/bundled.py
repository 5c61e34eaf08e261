"""TLS 1.3 by the OpenSSL that comes with the package `cryptography`, in the shape of Python's `ssl`.

That one is newer than what Python is linked to on most systems, knows the wide instructions of today's
processors (VAES, AVX-512), and can be called without copies to and from objects of Python: half the time for
the same bytes, if the processor has nothing else to do. Its functions are those that pyOpenSSL is made of.
Importing this module raises ImportError where they are not all there; Python's `ssl` does the same work then.

Errors are those of `ssl`. An object is for one thread at a time.
"""

import ssl
from typing import Any, Literal

from cryptography.hazmat.bindings.openssl.binding import Binding

_lib: Any = Binding().lib
_ffi: Any = Binding().ffi

_NEEDED = (
    *("BIO_free", "BIO_get_mem_data", "BIO_new", "BIO_new_mem_buf", "BIO_read", "BIO_s_mem", "BIO_write"),
    *("ERR_clear_error", "ERR_peek_error", "ERR_reason_error_string", "PEM_read_bio_X509", "SSL_CTX_free"),
    *("SSL_CTX_get_cert_store", "SSL_CTX_new", "SSL_CTX_set_min_proto_version"),
    *("SSL_CTX_set_options", "SSL_CTX_set_session_cache_mode", "SSL_CTX_set_verify"),
    *("SSL_CTX_use_PrivateKey_file", "SSL_CTX_use_certificate_chain_file"),
    *("SSL_ERROR_WANT_READ", "SSL_ERROR_ZERO_RETURN", "SSL_OP_NO_TICKET", "SSL_SESS_CACHE_OFF"),
    *("SSL_VERIFY_FAIL_IF_NO_PEER_CERT", "SSL_VERIFY_PEER", "SSL_do_handshake", "SSL_free"),
    *("SSL_get_error", "SSL_get_peer_certificate", "SSL_get_verify_result", "SSL_new", "SSL_read"),
    *("SSL_set_accept_state", "SSL_set_bio", "SSL_set_connect_state", "SSL_write", "TLS1_3_VERSION"),
    *("TLS_method", "X509_STORE_add_cert", "X509_STORE_set_flags", "X509_V_FLAG_PARTIAL_CHAIN"),
    *("X509_free", "X509_verify_cert_error_string", "i2d_X509_bio"),
)
if _missing := [name for name in _NEEDED if not hasattr(_lib, name)]:
    raise ImportError(f"cryptography lacks {', '.join(_missing)}")

_PEM = 1  # SSL_FILETYPE_PEM


class Context:
    """One side of sessions: it shows the certificate in a file, and lets in who shows `anchor` (PEM)."""

    def __init__(self, certificate: str, key: str | None, anchor: str, *, server: bool) -> None:
        """Raises ssl.SSLError if something cannot be used."""
        self.server = server
        _lib.ERR_clear_error()
        self.pointer = _ffi.gc(_lib.SSL_CTX_new(_lib.TLS_method()), _lib.SSL_CTX_free)
        _succeed(_lib.SSL_CTX_set_min_proto_version(self.pointer, _lib.TLS1_3_VERSION))
        # Each session proves itself anew.
        _lib.SSL_CTX_set_options(self.pointer, _lib.SSL_OP_NO_TICKET)
        _lib.SSL_CTX_set_session_cache_mode(self.pointer, _lib.SSL_SESS_CACHE_OFF)
        _succeed(_lib.SSL_CTX_use_certificate_chain_file(self.pointer, certificate.encode()))
        _succeed(_lib.SSL_CTX_use_PrivateKey_file(self.pointer, (key or certificate).encode(), _PEM))
        required = _lib.SSL_VERIFY_PEER | _lib.SSL_VERIFY_FAIL_IF_NO_PEER_CERT
        _lib.SSL_CTX_set_verify(self.pointer, required, _ffi.NULL)
        store = _lib.SSL_CTX_get_cert_store(self.pointer)
        # A certificate that is trusted by itself needs no issuer that is.
        _succeed(_lib.X509_STORE_set_flags(store, _lib.X509_V_FLAG_PARTIAL_CHAIN))
        text = anchor.encode()
        file = _ffi.gc(_lib.BIO_new_mem_buf(text, len(text)), _lib.BIO_free)
        trusted = _ffi.gc(_lib.PEM_read_bio_X509(file, _ffi.NULL, _ffi.NULL, _ffi.NULL), _lib.X509_free)
        _succeed(trusted != _ffi.NULL)
        _succeed(_lib.X509_STORE_add_cert(store, trusted))

    def connect(self) -> "Connection":
        return Connection(self)


class Incoming:
    """What has arrived and is not decrypted: as `ssl.MemoryBIO`."""

    def __init__(self) -> None:
        self.pointer = _lib.BIO_new(_lib.BIO_s_mem())

    def write(self, data: bytes | bytearray | memoryview) -> int:
        with _ffi.from_buffer(data) as buffer:
            return int(_lib.BIO_write(self.pointer, buffer, len(data))) if len(data) else 0


class Outgoing:
    """What is to be sent: as `ssl.MemoryBIO`."""

    def __init__(self) -> None:
        self.pointer = _lib.BIO_new(_lib.BIO_s_mem())
        self._taken = memoryview(b"")
        self._start = _ffi.new("char **")

    @property
    def pending(self) -> int:
        return int(_lib.BIO_get_mem_data(self.pointer, self._start))

    def read(self) -> memoryview:
        """All of it. Good until the next call."""
        size = self.pending
        if size > len(self._taken):  # as large as what is usual here, and not allocated each time
            self._taken = memoryview(bytearray(size))
        with _ffi.from_buffer(self._taken) as buffer:
            return self._taken[: _lib.BIO_read(self.pointer, buffer, size)] if size else self._taken[:0]


class Connection:
    """As `ssl.SSLObject`; with `incoming` and `outgoing`."""

    def __init__(self, context: Context) -> None:
        self._context = context  # its private key may not go before
        self.incoming, self.outgoing = Incoming(), Outgoing()
        self._pointer = _ffi.gc(_lib.SSL_new(context.pointer), _lib.SSL_free)
        _lib.SSL_set_bio(self._pointer, self.incoming.pointer, self.outgoing.pointer)  # they are its own now
        begin = _lib.SSL_set_accept_state if context.server else _lib.SSL_set_connect_state
        begin(self._pointer)

    def do_handshake(self) -> None:
        _lib.ERR_clear_error()
        result = _lib.SSL_do_handshake(self._pointer)
        if result != 1:
            raise self._error(result)

    def getpeercert(self, *, binary_form: Literal[True]) -> bytes | None:
        """In DER."""
        found = _lib.SSL_get_peer_certificate(self._pointer)
        if found == _ffi.NULL:
            return None
        certificate = _ffi.gc(found, _lib.X509_free)
        file = _ffi.gc(_lib.BIO_new(_lib.BIO_s_mem()), _lib.BIO_free)
        _succeed(_lib.i2d_X509_bio(file, certificate))
        start = _ffi.new("char **")
        size = _lib.BIO_get_mem_data(file, start)
        return bytes(_ffi.buffer(start[0], size))

    def write(self, data: memoryview) -> int:
        """Encrypt all of it: a buffer in memory takes everything."""
        _lib.ERR_clear_error()
        with _ffi.from_buffer(data) as buffer:
            written = _lib.SSL_write(self._pointer, buffer, len(data))
        if written <= 0:
            raise self._error(written)
        return int(written)

    def read(self, size: int, buffer: memoryview) -> int:
        """Decrypt into `buffer` what has arrived, as many records as fit. 0: the peer has ended."""
        filled = count = 0
        _lib.ERR_clear_error()
        with _ffi.from_buffer(buffer) as start:
            while filled < size:
                count = _lib.SSL_read(self._pointer, start + filled, size - filled)
                if count <= 0:
                    break
                filled += count
        if not filled and _lib.SSL_get_error(self._pointer, count) != _lib.SSL_ERROR_ZERO_RETURN:
            raise self._error(count)
        return filled  # what came behind it is told by the next call

    def _error(self, result: int) -> ssl.SSLError:
        if _lib.SSL_get_error(self._pointer, result) == _lib.SSL_ERROR_WANT_READ:
            return ssl.SSLWantReadError()
        verified = _lib.SSL_get_verify_result(self._pointer)
        if not verified:
            return _last_error()
        message = _ffi.string(_lib.X509_verify_cert_error_string(verified)).decode()
        error = ssl.SSLCertVerificationError(message)
        error.verify_code, error.verify_message = verified, message
        _lib.ERR_clear_error()
        return error


def _succeed(result: int) -> None:
    if not result:
        raise _last_error()


def _last_error() -> ssl.SSLError:
    """The reason is spelled as Python's `ssl` does."""
    text = _lib.ERR_reason_error_string(_lib.ERR_peek_error())
    _lib.ERR_clear_error()
    reason = "" if text == _ffi.NULL else _ffi.string(text).decode()
    error = ssl.SSLError(reason or "the connection is of no use any more")
    error.reason = reason.upper().replace(" ", "_")
    return error
