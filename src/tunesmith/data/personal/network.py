"""Addresses of machines: public IPv4 and IPv6 addresses, MAC addresses."""

import ipaddress
import re

from tunesmith.data.personal.pattern import Pattern, Span, before

_VERSION = re.compile(
    r"(?:\bv|version|release|build|firmware|revision|update|upgrade|patch|section|chapter|table|figure|§|clause|"
    r"[<>=~^]=?|==|-)[ :.]{0,2}$",
    re.IGNORECASE,
)
_NETWORK = re.compile(
    r"(?:\bips?\b|address|host|server|client|ping|from|gateway|dns|remote|://|@)[^\d\n]{0,20}$", re.IGNORECASE
)
_FIELD = re.compile(r"(?:ip|addr|address|host)(?:v4)?[\"']?\s?[:=]\s?[\"']?$", re.IGNORECASE)
# Resolvers that everybody names: services, nobody's own address.
_RESOLVERS = {"8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9", "208.67.222.222", "208.67.220.220"}


def _ipv4(match: re.Match[str]) -> Span | None:
    text = match[0]
    octets = [int(o) for o in text.split(".")]
    field = before(match, _FIELD, 16)
    if max(octets) > 255 or text in _RESOLVERS or (before(match, _VERSION, 16) and not field):
        return None
    if octets[3] == 0 and match.string[match.end() : match.end() + 1] == "/":
        return None  # a network, which is nobody's own
    if max(octets) < 32 and not (field or before(match, _NETWORK, 30)):  # 1.2.3.4 is a version or a section's number
        return None
    return match.span() if ipaddress.IPv4Address(".".join(map(str, octets))).is_global else None


def _ipv6(match: re.Match[str]) -> Span | None:
    try:
        address = ipaddress.IPv6Address(match[0])
    except ValueError:
        return None
    return match.span() if address.is_global else None


def _mac(match: re.Match[str]) -> Span | None:
    text = match[0].replace("-", ":").lower()
    fictitious = text.startswith(("00:00:5e:00:53:", "01:00:5e:", "33:33:")) or len(set(text.split(":"))) == 1
    return None if fictitious or text == "01:23:45:67:89:ab" else match.span()


PATTERNS = (
    Pattern("mac", re.compile(r"[0-9A-Fa-f](?<![\w:-].)[0-9A-Fa-f](?:(:)|-)[0-9A-Fa-f]{2}(?:(?(1):|-)[0-9A-Fa-f]{2})"
                              r"{4}(?![\w:-])"), _mac, "pairs"),
    Pattern("ipv6", re.compile(r"[23](?<![\w:.].)[0-9a-fA-F]{3}:(?:[0-9a-fA-F]{0,4}:){1,6}[0-9a-fA-F]{0,4}(?![\w:])"),
    _ipv6, "colon"),
    Pattern("ipv4", re.compile(r"\d(?<![\w.].)\d{0,2}(?:\.(?:0|[1-9]\d{0,2})){3}(?![\w]|\.\d|-\d)"), _ipv4, "dotted"),
)  # fmt: skip
