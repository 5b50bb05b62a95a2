"""`make site`: no warning, links within it lead somewhere, and pages can be found and read."""

import os
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from chromium import look

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.slow,
    # selenium's own, of its use of the standard library
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ASKED = {  # a page of the navigation, and what a search for words that only it has must find
    "docs/compare.html": "Par0035",
    "docs/folding.html": "Bernstein",
    "docs/site/api/ops.html": "registration_objective_value_and_gradient",
}


class Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        self.links += [found[name] for name in ("href", "src") if found.get(name)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site") / "html"
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs/site", ".", out],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return out


def broken_links(site: Path) -> list[str]:
    pages = {path.resolve(): Page(path) for path in site.rglob("*.html")}
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            lost = anchor and target in pages and anchor not in pages[target].anchors
            if lost or not target.is_relative_to(site.resolve()) or not target.exists():
                broken.append(f"{path.relative_to(site.resolve())} -> {link}")
    return broken


def test_links_and_anchors_lead_somewhere(site):
    assert len(list(site.rglob("*.html"))) > 30
    assert broken_links(site) == []


def test_a_property_is_described_in_one_sentence(site):
    """Not up to the first colon, with the rest as its type."""
    pages = [path.read_text(encoding="utf-8") for path in (site / "docs/site/api").glob("*.html")]
    assert any("Whether the file has no third axis: PNG" in page for page in pages)
    assert not any("Type<span" in page for page in pages)


def test_the_notebooks_are_pages_with_what_came_of_them(site):
    page = (site / "docs/notebooks/two_volumes.html").read_text(encoding="utf-8")
    assert "no warnings" in page and "data:image/png" in page


def test_a_broken_link_is_found(tmp_path):
    text = '<a href="two.html#here">a</a><a href="two.html#there">b</a><img src="none.png">'
    (tmp_path / "one.html").write_text(text)
    (tmp_path / "two.html").write_text('<p id="here">')
    assert broken_links(tmp_path) == ["one.html -> two.html#there", "one.html -> none.png"]


@pytest.mark.parametrize("view", ["400", "1400"])
def test_no_page_is_wider_than_the_window(browser, site, view):
    wide = []
    for page in sorted(site.rglob("*.html")):
        look(browser, page, view)
        width = browser.execute_script("return document.documentElement.scrollWidth")
        wide += [f"{page.name}: {width}"] if width > int(view) else []
    assert wide == []


def until(condition):
    """What it gives, once that is something."""
    end = time.monotonic() + 20
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def element(browser, selector):
    """Once the page that is on its way has it."""
    from selenium.webdriver.common.by import By

    return until(lambda: browser.find_elements(By.CSS_SELECTOR, selector))[0]


@pytest.mark.parametrize("view", ["400", "1400"])
@pytest.mark.parametrize("page", ASKED)
def test_the_navigation_leads_to_a_page(browser, site, view, page):
    """From the first page; on a small screen behind its button."""
    look(browser, site / "index.html", view)
    until(lambda: browser.current_url.endswith("README.html"))
    if view == "400":
        button = element(browser, ".nav-overlay-icon")
        assert button.is_displayed()
        button.click()
    name = page.removeprefix("docs/").partition("/api/")[0]
    wanted = "docs/site/api/index.html" if name == "site" else page
    link = element(browser, f'.sidebar-tree a[href="{wanted}"]')
    until(link.is_displayed)
    browser.execute_script("arguments[0].scrollIntoView({behavior: 'instant'})", link)
    until(lambda: 0 <= link.rect["x"] < int(view))
    link.click()
    until(lambda: browser.current_url.endswith(wanted))


@pytest.mark.parametrize("view", ["400", "1400"])
@pytest.mark.parametrize("page", ASKED)
def test_the_search_finds_a_page(browser, site, view, page):
    """Without a server and without a network: the pages are files."""
    from selenium.webdriver import Keys

    look(browser, site / "README.html", view)
    if view == "400":
        element(browser, ".nav-overlay-icon").click()
    field = element(browser, ".sidebar-search")
    until(field.is_displayed)
    field.send_keys(ASKED[page] + Keys.ENTER)
    found = f'#search-results a[href*="{page}"]'
    assert element(browser, found)
    width = browser.execute_script("return document.documentElement.scrollWidth")
    assert width <= int(view)
