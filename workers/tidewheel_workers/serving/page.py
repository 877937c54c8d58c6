"""The page at the gateway's `/`: three files and an icon, and the headers that keep everything else out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.resources import files

#: Where the page asks for its figures.
FIGURES = "/figures"

#: Only what this gateway serves is loaded or asked, and no other site may frame the page.
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PageFile:
    """One file of the page, as it is answered."""

    content_type: str
    content: bytes = field(repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """The headers beside its type and length."""
        return dict(_HEADERS)


def page_files() -> dict[str, PageFile]:
    """All files by their path."""
    folder = files("tidewheel_workers.serving") / "page"
    named = {
        "/": ("index.html", "text/html; charset=utf-8"),
        "/page.css": ("page.css", "text/css; charset=utf-8"),
        "/page.js": ("page.js", "text/javascript; charset=utf-8"),
        "/favicon.svg": ("favicon.svg", "image/svg+xml"),
    }
    return {
        path: PageFile(content_type=content_type, content=(folder / name).read_bytes())
        for path, (name, content_type) in named.items()
    }
