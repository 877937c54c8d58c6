"""What can go wrong with a model or a request, apart because every layer of the engine raises these and the servers translate them."""

from __future__ import annotations

from typing import ClassVar

from tidewheel.api.reasons import Reason


class ModelError(Exception):
    """A model cannot be used; `reason` is stable and becomes a condition's reason, the text says what to do."""

    reason: ClassVar[Reason]


class ModelNotFound(ModelError):
    """Nothing is at the place that the source names."""

    reason = Reason.MODEL_NOT_FOUND


class ModelUnreadable(ModelError):
    """Files are there, but truncated, inconsistent or not what their name says."""

    reason = Reason.MODEL_UNREADABLE


class ModelUnsupported(ModelError):
    """The files are sound, but this engine cannot run that architecture, quantisation or tokenizer."""

    reason = Reason.MODEL_UNSUPPORTED


class ModelDownloadFailed(ModelError):
    """A model could not be fetched from its hub: no network, no such repository, no permission."""

    reason = Reason.MODEL_DOWNLOAD_FAILED


class DeviceUnavailable(ModelError):
    """The device asked for is unknown, or its backend is not installed or finds no hardware."""

    reason = Reason.DEVICE_UNAVAILABLE


class RequestError(Exception):
    """One request cannot be taken; the engine and its other requests are unaffected."""

    reason: ClassVar[str] = "RequestError"


class InvalidRequest(RequestError):
    """The request can never be served as it is: wrong token ids, parameters or a repeated request id."""

    reason = "InvalidRequest"


class PromptTooLong(InvalidRequest):
    """The prompt leaves no room for a single new token within the limits."""

    reason = "PromptTooLong"


class KVMismatch(InvalidRequest):
    """A transferred KV cache does not have this engine's layout or the request's length."""

    reason = "KVMismatch"


class RequestFailed(RequestError):
    """The engine took the request and could not go on with it; the same request may work elsewhere."""

    reason = "RequestFailed"


class NoCapacity(RequestError):
    """The request fits this engine, but not now; try again later or elsewhere."""

    reason = "NoCapacity"


class NoFreeSequence(NoCapacity):
    """As many sequences decode as the limits allow."""

    reason = "NoFreeSequence"
