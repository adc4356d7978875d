"""Why a read can fail: one exception, with a closed set of reasons that become a label."""

REASONS = (
    "connect",  # nothing listens, the name does not resolve, TLS failed
    "timeout",  # no whole answer in the time allowed
    "auth",  # 401 or 403
    "redirect",  # 3xx: never followed, a key could travel with it
    "status",  # any other status than 200
    "content",  # an answer, but not metrics: HTML, JSON, empty
    "malformed",  # a line that the exposition format does not allow
    "truncated",  # the body ended before its last line feed
    "too_large",  # body, line or number of series over the limit
    "identity",  # two processes take turns behind one URL
    "internal",  # a defect of the exporter itself
)


class ReadError(Exception):
    """A read of an upstream failed. `reason` is one of REASONS; the message says what, where and what to do."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        assert reason in REASONS, reason  # noqa: S101 - a label's closed set, checked where it is made
        self.reason = reason
