"""What can go wrong with a command that is nobody's fault in the code."""

from __future__ import annotations

__all__ = ["BadImage", "RefusedError", "UnreachableError", "first_line", "is_of_the_network"]


# Of urllib, requests, httpx and huggingface_hub, of which none need be installed.
_NETWORK = {
    "ConnectionError",
    "TimeoutError",
    "URLError",
    "Timeout",
    "TransportError",
    "LocalEntryNotFoundError",
    "OfflineModeIsEnabled",
}


class BadImage(Exception):  # noqa: N818 - not a fault of the program
    """An image that cannot be scored; the message is the reason."""


class RefusedError(ValueError):
    """What was asked for would mix the results of two different runs, or overwrite some."""


class UnreachableError(ConnectionError):
    """A model or data set that has to be fetched, from where nobody answers."""


def is_of_the_network(error: BaseException | None) -> bool:
    """Look for a connection that failed, among the causes too: each library wraps them in its own.

    Args:
        error: What was raised.

    Returns:
        Whether nobody answered, or somebody who could not; "there is no such thing" is an answer.
    """
    while error is not None:
        status = getattr(
            getattr(error, "response", None), "status_code", getattr(error, "code", None)
        )
        if isinstance(status, int) and 400 <= status < 600:
            return status >= 500
        if _NETWORK & {kind.__name__ for kind in type(error).__mro__}:
            return True
        error = error.__cause__ or error.__context__
    return False


def first_line(error: Exception) -> str:
    """Shorten what libraries say.

    Args:
        error: What was raised.

    Returns:
        Its first line, or its kind where it says nothing.
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]
