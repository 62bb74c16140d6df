"""The documentation site: it builds without a warning, its links lead somewhere, and nothing on it comes from elsewhere."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from helpers import ROOT
from helpers.runs import call, succeed

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """What a page refers to: ``links`` that are followed, ``parts`` that the browser fetches; and its text outside of code."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.parts: list[str] = []
        self.text: list[str] = []
        self.code = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.code += tag in ("pre", "code", "script", "style")
        self.links += [given["href"]] if tag == "a" and given.get("href") else []
        self.parts += [given[key] for key in ("src", "href") if tag in ("script", "img", "link", "iframe") and given.get(key)]

    def handle_endtag(self, tag: str) -> None:
        self.code -= tag in ("pre", "code", "script", "style")

    def handle_data(self, data: str) -> None:
        self.text += [] if self.code else [data]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    said = succeed(call("mkdocs", "build", "--strict", "--quiet", "--site-dir", folder, cwd=ROOT, NO_MKDOCS_2_WARNING="1"))
    assert said == ""
    return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    found = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(found) > 25
    return found


def test_links_lead_to_files_of_the_site(pages):
    """Anchors too, those of the reference of Python included, which mkdocs checks only where Markdown has them."""
    anchors = {path: set(re.findall(r'\bid="([^"]+)"', path.read_text(encoding="utf-8"))) for path in pages}
    for path, page in pages.items():
        for link in page.links + page.parts:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_file() or (target / "index.html").is_file(), (path, link)
            assert not parts.fragment or target not in anchors or unquote(parts.fragment) in anchors[target], (path, link)


def test_nothing_is_fetched_from_elsewhere(site, pages):
    assert [part for page in pages.values() for part in page.parts if urlsplit(part).netloc] == []
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", style.read_text(encoding="utf-8")), style


def test_pages_read_as_in_the_repository(pages):
    """No list, table or reference that one reader of Markdown knows and the other prints."""
    for path, page in pages.items():
        for text in page.text:
            assert not re.search(r"\n *([-*]|\d\.) \w|\|--|```|^::: |\]\(|>>>", text, re.MULTILINE), (path, text)


def test_commands_are_those_of_the_command_line(site):
    text = (site / "docs" / "commands.html").read_text(encoding="utf-8")
    for name in ("tenas search", "tenas benchmark query", "tenas study score", "tenas workflow"):
        assert f"<code>{name}</code>" in text
