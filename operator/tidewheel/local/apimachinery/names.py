"""The syntax of names, labels and annotations, with the complaints that kube-apiserver makes about them."""

from __future__ import annotations

import re
from typing import Final

_LABEL: Final = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN: Final = rf"{_LABEL}(\.{_LABEL})*"
_LABEL_1035: Final = "[a-z]([-a-z0-9]*[a-z0-9])?"
_QUALIFIED: Final = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_CONFIG_KEY: Final = "[-._a-zA-Z0-9]+"

_LABEL_RE: Final = re.compile(_LABEL)
_SUBDOMAIN_RE: Final = re.compile(_SUBDOMAIN)
_LABEL_1035_RE: Final = re.compile(_LABEL_1035)
_QUALIFIED_RE: Final = re.compile(_QUALIFIED)
_ENV_NAME_RE: Final = re.compile(r"[ -<>-~]+")
_CONFIG_KEY_RE: Final = re.compile(_CONFIG_KEY)

_BAD_LABEL: Final = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with "
    f"an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '{_LABEL}')"
)
_BAD_SUBDOMAIN: Final = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    f"end with an alphanumeric character (e.g. 'example.com', regex used for validation is '{_SUBDOMAIN}')"
)
_BAD_LABEL_1035: Final = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and "
    f"end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '{_LABEL_1035}')"
)
_BAD_QUALIFIED: Final = (
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character "
    f"(e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '{_QUALIFIED}')"
)
_BAD_LABEL_VALUE: Final = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end "
    "with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    f"'(({_QUALIFIED})?')"
)


def label_complaints(text: str) -> list[str]:
    """Why `text` is no RFC 1123 label (at most 63 lower-case letters, digits and dashes)."""
    return _complaints(text, 63, _LABEL_RE, _BAD_LABEL)


def subdomain_complaints(text: str) -> list[str]:
    """Why `text` is no RFC 1123 subdomain (labels with dots between them, at most 253 characters)."""
    return _complaints(text, 253, _SUBDOMAIN_RE, _BAD_SUBDOMAIN)


def label_1035_complaints(text: str) -> list[str]:
    """Why `text` is no RFC 1035 label, which begins with a letter."""
    return _complaints(text, 63, _LABEL_1035_RE, _BAD_LABEL_1035)


def path_segment_complaints(text: str) -> list[str]:
    """Why `text` cannot be a segment of a URL path, which is all that names of RBAC objects must be."""
    if text in (".", ".."):
        return [f"may not be '{text}'"]
    return [f"may not contain '{character}'" for character in "/%" if character in text]


def qualified_name_complaints(text: str) -> list[str]:
    """Why `text` is no qualified name: a name of at most 63 characters, with an optional DNS prefix and a slash."""
    prefix, slash, name = text.rpartition("/")
    complaints: list[str] = []
    if "/" in prefix:
        return [
            f"a qualified name {_BAD_QUALIFIED} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
        ]
    if slash and not prefix:
        complaints.append("prefix part must be non-empty")
    elif slash:
        complaints.extend(f"prefix part {complaint}" for complaint in subdomain_complaints(prefix))
    if not name:
        complaints.append("name part must be non-empty")
    elif len(name) > 63:
        complaints.append("name part must be no more than 63 bytes")
    if not _QUALIFIED_RE.fullmatch(name):
        complaints.append(f"name part {_BAD_QUALIFIED}")
    return complaints


def label_value_complaints(text: str) -> list[str]:
    """Why `text` cannot be the value of a label."""
    complaints = ["must be no more than 63 bytes"] if len(text) > 63 else []
    if text and not _QUALIFIED_RE.fullmatch(text):
        complaints.append(_BAD_LABEL_VALUE)
    return complaints


def env_name_complaints(text: str) -> list[str]:
    """Why `text` cannot be the name of an environment variable."""
    if not text or not _ENV_NAME_RE.fullmatch(text):
        return [
            "a valid environment variable name must consist only of printable ASCII characters other than '='"
        ]
    return []


def config_key_complaints(text: str) -> list[str]:
    """Why `text` cannot be a key of a ConfigMap or Secret."""
    if len(text) > 253:
        return ["must be no more than 253 bytes"]
    if text in (".", ".."):
        return [f"must not be '{text}'"]
    if text.startswith(".."):
        return ["must not start with '..'"]
    if not _CONFIG_KEY_RE.fullmatch(text):
        return [
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME', "
            f" or 'key-name', regex used for validation is '{_CONFIG_KEY}')"
        ]
    return []


def port_name_complaints(text: str) -> list[str]:
    """Why `text` is no name of a container's port (at most 15 characters with a letter among them)."""
    complaints = ["must be no more than 15 characters"] if len(text) > 15 else []
    if not re.fullmatch(r"[-a-z0-9]+", text):
        complaints.append("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)")
    if not re.search(r"[a-z]", text):
        complaints.append("must contain at least one letter (a-z)")
    if "--" in text:
        complaints.append("must not contain consecutive hyphens")
    if text.startswith("-") or text.endswith("-"):
        complaints.append("must not begin or end with a hyphen")
    return complaints


def _complaints(text: str, most: int, pattern: re.Pattern[str], complaint: str) -> list[str]:
    complaints = [f"must be no more than {most} bytes"] if len(text) > most else []
    if not pattern.fullmatch(text):
        complaints.append(complaint)
    return complaints
