"""What the service side may be told instead of an answer, with IoT Hub's own numbers.

`status` is the HTTP status, `code` IoT Hub's six digits, `name` its word for it. The text is a
sentence that is safe to log and to send.
"""


class ServiceError(Exception):
    status = 500
    code = 500001
    name = "ServerError"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ArgumentInvalid(ServiceError):
    status, code, name = 400, 400004, "ArgumentInvalid"


class Unauthorized(ServiceError):
    status, code, name = 401, 401002, "IotHubUnauthorizedAccess"


class QueueFull(ServiceError):
    """The device has its fifty commands waiting already."""

    status, code, name = 403, 403004, "DeviceMaximumQueueDepthExceeded"


class DeviceNotFound(ServiceError):
    status, code, name = 404, 404001, "DeviceNotFound"


class DeviceNotOnline(ServiceError):
    """A method for a device that is not connected, or has not subscribed to methods."""

    status, code, name = 404, 404103, "DeviceNotOnline"


class TooSlow(ServiceError):
    """The request's body did not come in time."""

    status, code, name = 408, 408001, "RequestTimeout"


class DeviceAlreadyExists(ServiceError):
    status, code, name = 409, 409001, "DeviceAlreadyExists"


class PreconditionFailed(ServiceError):
    """The ETag given with If-Match is not the present one."""

    status, code, name = 412, 412002, "PreconditionFailed"


class TooLarge(ServiceError):
    status, code, name = 413, 413001, "RequestEntityTooLarge"


class Throttled(ServiceError):
    status, code, name = 429, 429001, "ThrottlingException"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(ServiceError):
    """The hub's own disk does not do what it must."""

    status, code, name = 503, 503001, "ServiceUnavailable"


class GatewayTimeout(ServiceError):
    """The device took the method and did not answer in time."""

    status, code, name = 504, 504101, "GatewayTimeout"
