"""The page's files are there, and its headers let nothing else in."""

from __future__ import annotations

import re
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

from tidewheel_workers.serving.page import page_files

FILES = page_files()


def test_every_file_that_the_page_asks_for_is_served():
    asked = set(re.findall(r'(?:href|src)="([^"]+)"', FILES["/"].content.decode()))
    assert asked == FILES.keys() - {"/"}


@pytest.mark.parametrize("path", FILES)
def test_nothing_is_kept_and_nothing_from_elsewhere_is_loaded(path):
    headers = FILES[path].headers
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    policy = dict(rule.strip().partition(" ")[::2] for rule in headers["Content-Security-Policy"].split(";"))
    assert policy.pop("default-src") == "'none'"
    assert set(policy.values()) == {"'self'", "'none'"}
    assert b"http:" not in FILES[path].content.replace(b"http://www.w3.org/", b"")
    assert b"https:" not in FILES[path].content


def test_there_is_no_script_and_no_style_inside_the_page():
    html = FILES["/"].content.decode()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=|javascript:", html)


def test_the_files_travel_in_the_wheel():
    pyproject = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    patterns = pyproject["tool"]["setuptools"]["package-data"]["tidewheel_workers"]
    package = Path(str(files("tidewheel_workers")))
    shipped = {path for pattern in patterns for path in package.glob(pattern)}
    assert set((package / "serving" / "page").iterdir()) <= shipped
