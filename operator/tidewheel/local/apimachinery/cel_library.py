"""The Kubernetes extensions of CEL, as Python functions that the CEL engine calls.

Values of types that the engine does not know (quantities, addresses, URLs) travel as maps that carry one reserved key.
Optional field syntax (`self.?a`, `self[?0]`), `cel.bind` and two-variable comprehensions are not in the engine's grammar.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlsplit

import cel
from cel import stdlib

from tidewheel.local.apimachinery import formats, names
from tidewheel.local.apimachinery.quantities import MalformedQuantity, canonical, quantity

if TYPE_CHECKING:
    from collections.abc import Callable

_QUANTITY: Final = "$quantity"
_IP: Final = "$ip"
_CIDR: Final = "$cidr"
_URL: Final = "$url"
_FORMAT: Final = "$format"

# Functions and operators that the engine has by itself.
_NATIVE: Final = frozenset(
    [
        "size",
        "contains",
        "startsWith",
        "endsWith",
        "matches",
        "int",
        "uint",
        "double",
        "string",
        "bytes",
        "bool",
        "timestamp",
        "duration",
        "dyn",
        "type",
        "max",
        "min",
        "has",
        "getFullYear",
        "getMonth",
        "getDayOfYear",
        "getDayOfMonth",
        "getDate",
        "getDayOfWeek",
        "getHours",
        "getMinutes",
        "getSeconds",
        "getMilliseconds",
        "hasValue",
        "value",
        "orValue",
        "or",
        "of",
        "none",
        "all",
        "exists",
        "exists_one",
        "map",
        "filter",
        "@in",
        "@not_strictly_false",
    ]
)


def knows_function(name: str) -> bool:
    """Whether a function that a rule calls can be called; operators have names like `_+_`."""
    return name in _NATIVE or name in _KNOWN_NAMES or "_" in (name[:1], name[-1:])


def new_context() -> Any:
    """An evaluation context with every function registered."""
    context = cel.Context({})
    stdlib.add_stdlib_to_context(context)
    for name, function in _FUNCTIONS.items():
        context.add_function(name, function)
    return context


# --- strings and lists -----------------------------------------------------------------------------------------------


def _find(text: str, pattern: str) -> str:
    found = re.search(pattern, text)
    return found[0] if found else ""


def _find_all(text: str, pattern: str, most: int = -1) -> list[str]:
    found = [each[0] for each in re.finditer(pattern, text)]
    return found if most < 0 else found[:most]


def _index_of(values: Any, wanted: Any, start: int = 0) -> int:
    if isinstance(values, str):
        return values.find(wanted, start)
    return next((index for index, each in enumerate(values) if each == wanted), -1)


def _last_index_of(values: Any, wanted: Any) -> int:
    if isinstance(values, str):
        return values.rfind(wanted)
    return next((index for index in reversed(range(len(values))) if values[index] == wanted), -1)


def _is_sorted(values: list[Any]) -> bool:
    return all(one <= other for one, other in itertools.pairwise(values))


def _text(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _format_string(template: str, values: list[Any]) -> str:
    rest = iter(values)

    def fill(found: re.Match[str]) -> str:
        if found[0] == "%%":
            return "%"
        value = next(rest)
        precision, verb = found[1] or "", found[2]
        if verb == "s":
            return _text(value)
        return f"{value:{precision}{'d' if verb == 'd' else verb}}"

    return re.sub(r"%(?:%|(\.\d+)?([sdfexXob]))", fill, template)


# --- quantities ------------------------------------------------------------------------------------------------------


def _quantity(text: str) -> dict[str, str]:
    return {_QUANTITY: canonical(text)}


def _is_quantity(text: Any) -> bool:
    try:
        canonical(text)
    except MalformedQuantity:
        return False
    return True


def _number(value: Any) -> Decimal:
    return quantity(value[_QUANTITY]) if isinstance(value, dict) else Decimal(value)


def _as_integer(value: Any) -> int:
    number = _number(value)
    if number != number.to_integral_value():
        raise ValueError("cannot convert value to integer")
    return int(number)


def _sum_of(one: Any, other: Any, sign: int) -> dict[str, str]:
    return {_QUANTITY: canonical(format(_number(one) + sign * _number(other), "f"))}


def _compare(one: Any, other: Any) -> int:
    return (_number(one) > _number(other)) - (_number(one) < _number(other))


# --- addresses and URLs ----------------------------------------------------------------------------------------------


def _address(value: Any) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(value[_IP] if isinstance(value, dict) else value)


def _network(value: Any) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(value[_CIDR] if isinstance(value, dict) else value, strict=False)


def _ip(value: Any) -> dict[str, str]:
    if isinstance(value, dict) and _CIDR in value:
        return {_IP: value[_CIDR].partition("/")[0]}
    return {_IP: str(ipaddress.ip_address(value))}


def _cidr(value: str) -> dict[str, str]:
    ipaddress.ip_interface(value)
    if "/" not in value:
        raise ValueError(f"CIDR {value} has no prefix length")
    return {_CIDR: value}


def _succeeds(function: Callable[[Any], Any]) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        try:
            function(value)
        except (ValueError, TypeError):
            return False
        return True

    return check


def _contains_network(outer: Any, inner: Any) -> bool:
    one, other = _network(outer), _network(inner)
    return one.version == other.version and one.supernet_of(other)  # type: ignore[arg-type]


def _url(text: str) -> dict[str, str]:
    parts = urlsplit(text)
    if not parts.scheme and not text.startswith("/"):
        raise ValueError(f"URL parse error: {text}")
    return {_URL: text}


def _port(url: dict[str, str]) -> str:
    port = urlsplit(url[_URL]).port
    return "" if port is None else str(port)


# --- formats ---------------------------------------------------------------------------------------------------------

_FORMATS: Final[dict[str, Callable[[str], list[str]]]] = {
    "dns1123Label": names.label_complaints,
    "dns1123Subdomain": names.subdomain_complaints,
    "dns1035Label": names.label_1035_complaints,
    "qualifiedName": names.qualified_name_complaints,
    "labelValue": names.label_value_complaints,
    "dns1123LabelPrefix": lambda text: names.label_complaints(text.rstrip("-") or text),
    "dns1123SubdomainPrefix": lambda text: names.subdomain_complaints(text.rstrip("-.") or text),
    "dns1035LabelPrefix": lambda text: names.label_1035_complaints(text.rstrip("-") or text),
    "uri": lambda text: [] if formats.has_format(text, "uri") else ["invalid URI"],
    "uuid": lambda text: [] if formats.has_format(text, "uuid") else ["does not match the UUID format"],
    "byte": lambda text: [] if formats.has_format(text, "byte") else ["invalid base64"],
    "date": lambda text: [] if formats.has_format(text, "date") else ["invalid date"],
    "datetime": lambda text: [] if formats.has_format(text, "date-time") else ["invalid datetime"],
}


def _named_format(name: str) -> Any:
    return cel.OptionalValue.of({_FORMAT: name}) if name in _FORMATS else cel.OptionalValue.none()


def _validate(named: dict[str, str], text: str) -> Any:
    complaints = _FORMATS[named[_FORMAT]](text)
    return cel.OptionalValue.of(complaints) if complaints else cel.OptionalValue.none()


def _format_constant(name: str) -> Callable[[], dict[str, str]]:
    return lambda: {_FORMAT: name}


_FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "find": _find,
    "findAll": _find_all,
    "indexOf": _index_of,
    "lastIndexOf": _last_index_of,
    "isSorted": _is_sorted,
    "format": _format_string,
    "quantity": _quantity,
    "isQuantity": _is_quantity,
    "sign": lambda value: (_number(value) > 0) - (_number(value) < 0),
    "isInteger": lambda value: _number(value) == _number(value).to_integral_value(),
    "asInteger": _as_integer,
    "asApproximateFloat": lambda value: float(_number(value)),
    "add": lambda one, other: _sum_of(one, other, 1),
    "sub": lambda one, other: _sum_of(one, other, -1),
    "isLessThan": lambda one, other: _compare(one, other) < 0,
    "isGreaterThan": lambda one, other: _compare(one, other) > 0,
    "compareTo": _compare,
    "ip": _ip,
    "isIP": _succeeds(ipaddress.ip_address),
    "ip.isCanonical": lambda text: str(ipaddress.ip_address(text)) == text,
    "family": lambda value: _address(value).version,
    "isUnspecified": lambda value: _address(value).is_unspecified,
    "isLoopback": lambda value: _address(value).is_loopback,
    "isLinkLocalMulticast": lambda value: _address(value) in ipaddress.ip_network("224.0.0.0/24"),
    "isLinkLocalUnicast": lambda value: _address(value).is_link_local,
    "isGlobalUnicast": lambda value: (
        not (_address(value).is_multicast or _address(value).is_loopback or _address(value).is_unspecified)
    ),
    "cidr": _cidr,
    "isCIDR": _succeeds(_cidr),
    "containsIP": lambda network, address: _address(address) in _network(network),
    "containsCIDR": _contains_network,
    "masked": lambda network: {_CIDR: str(_network(network))},
    "prefixLength": lambda network: _network(network).prefixlen,
    "url": _url,
    "isURL": _succeeds(_url),
    "getScheme": lambda url: urlsplit(url[_URL]).scheme,
    "getHost": lambda url: urlsplit(url[_URL]).netloc.rpartition("@")[2],
    "getHostname": lambda url: urlsplit(url[_URL]).hostname or "",
    "getPort": _port,
    "getEscapedPath": lambda url: urlsplit(url[_URL]).path,
    "getQuery": lambda url: parse_qs(urlsplit(url[_URL]).query),
    "validate": _validate,
    "format.named": _named_format,
    **{f"format.{name}": _format_constant(name) for name in _FORMATS},
}

_KNOWN_NAMES: Final = frozenset(
    name.rpartition(".")[2]
    for name in (*_FUNCTIONS, *(name for library in stdlib.EXTENSIONS.values() for name in library))
)
