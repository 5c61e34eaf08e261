"""Passwords of the operating system, by PAM (pam(3)). What is asked is a file in /etc/pam.d.

By ctypes, as no library on PyPI has what is needed here: a directory of services other than /etc/pam.d
(`pam_start_confdir`), the caller's address for the log of PAM (`PAM_RHOST`), no pause of PAM's own after a
failure (it would hold a thread: `throttle.py` slows down instead), and no password for any question but the
first.
"""

import ctypes
import ctypes.util
from functools import cache
from typing import Any

from replicator.errors import ReplicatorError

# Linux-PAM, security/_pam_types.h
_SUCCESS, _OPEN_ERR, _BUF_ERR, _CONV_ERR = 0, 1, 5, 19
_PROMPT_ECHO_OFF, _PROMPT_ECHO_ON, _ERROR_MSG, _TEXT_INFO = 1, 2, 3, 4
_USER, _RHOST, _FAIL_DELAY = 2, 4, 10
_SILENT = 0x8000
# What says something about the user, and not about this host.
_REFUSED = {
    6: "permission denied",
    7: "authentication failed",
    8: "insufficient credentials",
    10: "no such user",
    11: "too many tries",
    12: "the password has expired",
    13: "the account has expired",
}


class PamError(ReplicatorError):
    """PAM could not say whether a password is right."""


class RefusedError(ReplicatorError):
    """The password is wrong, or this account may not log in. The text is for the log, not for the caller."""


class _Message(ctypes.Structure):
    _fields_ = (("style", ctypes.c_int), ("text", ctypes.c_char_p))


class _Response(ctypes.Structure):
    _fields_ = (("text", ctypes.c_void_p), ("code", ctypes.c_int))


_Converse = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_int,
    ctypes.POINTER(ctypes.POINTER(_Message)),
    ctypes.POINTER(ctypes.POINTER(_Response)),
    ctypes.c_void_p,
)
_Delay = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)
_no_delay = _Delay(lambda status, microseconds, data: None)


class _Conversation(ctypes.Structure):
    _fields_ = (("converse", _Converse), ("data", ctypes.c_void_p))


@cache
def _libraries() -> tuple[Any, Any]:
    """(libpam, libc). Raises PamError."""
    try:
        pam, libc = ctypes.CDLL("libpam.so.0"), ctypes.CDLL(None)
    except OSError as error:
        raise PamError(f"passwords cannot be checked: {error}; install PAM (libpam0g)") from None
    libc.calloc.restype = ctypes.c_void_p
    libc.calloc.argtypes = (ctypes.c_size_t, ctypes.c_size_t)
    libc.strdup.restype = ctypes.c_void_p
    libc.strdup.argtypes = (ctypes.c_char_p,)
    pam.pam_strerror.restype = ctypes.c_char_p
    for name in ("authenticate", "acct_mgmt", "end", "strerror"):
        getattr(pam, f"pam_{name}").argtypes = (ctypes.c_void_p, ctypes.c_int)
    pam.pam_set_item.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    pam.pam_get_item.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(ctypes.c_void_p))
    return pam, libc


def authenticate(service: str, user: str, password: str, address: str, directory: str = "") -> str:
    """The name of the account whose password this is. May block for long.

    `directory`: where services are, "" for the system's places. Raises RefusedError, PamError.
    """
    pam, libc = _libraries()
    conversation = _Conversation(_Converse(_answers(libc, password)), None)
    handle = ctypes.c_void_p()
    if "\0" in user or "\0" in password:
        raise RefusedError("a NUL character")
    name = user.encode("utf-8", "replace")
    arguments = [service.encode(), name, ctypes.byref(conversation)]
    if directory:
        status = pam.pam_start_confdir(*arguments, directory.encode(), ctypes.byref(handle))
    else:
        status = pam.pam_start(*arguments, ctypes.byref(handle))
    if status != _SUCCESS:
        raise PamError(f"PAM does not start (service {service!r}, error {status})")
    try:
        pam.pam_set_item(handle, _RHOST, ctypes.c_char_p(address.encode()))
        pam.pam_set_item(handle, _FAIL_DELAY, ctypes.cast(_no_delay, ctypes.c_void_p))
        status = pam.pam_authenticate(handle, _SILENT)
        if status == _SUCCESS:
            status = pam.pam_acct_mgmt(handle, _SILENT)
        if status != _SUCCESS:
            text = pam.pam_strerror(handle, status).decode(errors="replace")
            if status in _REFUSED:
                raise RefusedError(_REFUSED[status])
            raise PamError(f"PAM (service {service!r}): {text}")
        found = ctypes.c_void_p()
        status = pam.pam_get_item(handle, _USER, ctypes.byref(found))
        if status != _SUCCESS or not found.value:
            raise PamError(f"PAM (service {service!r}) names no user")
        return ctypes.string_at(found.value).decode(errors="replace")  # modules may map one name to another
    finally:
        pam.pam_end(handle, status)


def _answers(libc: Any, password: str) -> Any:
    """The conversation: the password for the first question that asks for one, nothing else."""
    left = [password.encode("utf-8", "surrogatepass")]

    def converse(count: int, messages: Any, responses: Any, data: object) -> int:
        # PAM frees what it gets here, so it is libc's memory.
        block = libc.calloc(count, ctypes.sizeof(_Response))
        if not block:
            return _BUF_ERR
        answers = ctypes.cast(block, ctypes.POINTER(_Response))
        for number in range(count):
            style = messages[number].contents.style
            if style == _PROMPT_ECHO_OFF and left:
                answers[number].text = libc.strdup(left.pop())
            elif style not in (_ERROR_MSG, _TEXT_INFO):
                _free(libc, answers, count)
                return _CONV_ERR
        responses[0] = answers
        return _SUCCESS

    return converse


def _free(libc: Any, answers: Any, count: int) -> None:
    for number in range(count):
        libc.free(ctypes.c_void_p(answers[number].text))
    libc.free(ctypes.cast(answers, ctypes.c_void_p))
