"""The demo's page in a real browser. Where there is none, pytest's first lines say that this is left out."""

import signal
from collections.abc import Iterator

import pytest

from .chromium import Browser, Page
from .command import Serving
from .server_process import free_port


@pytest.fixture(scope="module")
def demo() -> Iterator[Serving]:
    with Serving("demo") as demo:
        yield demo


def opened(browser: Browser, serving: Serving, width: int = 1280) -> Page:
    page = browser.open(serving.url, width=width)
    page.wait_for("document.querySelector('#state').dataset.state === 'open'")
    return page


def test_the_charts_move(browser: Browser, demo: Serving) -> None:
    page = opened(browser, demo)
    for chart in ("cpu", "memory", "received", "sent"):
        page.wait_for(f"document.querySelector('.line.{chart}').getAttribute('d')?.includes('L')")
    page.evaluate("window.before = document.querySelector('.line.cpu').getAttribute('d')")
    page.wait_for("document.querySelector('.line.cpu').getAttribute('d') !== window.before")
    page.evaluate("window.before = document.querySelector('#cpu-plot g').getAttribute('transform')")
    page.wait_for("document.querySelector('#cpu-plot g').getAttribute('transform') !== window.before")
    page.wait_for("Number(document.querySelector('#received').textContent) > 3")
    page.wait_for("/^\\d+$/.test(document.querySelector('#visitors').textContent)")
    assert page.evaluate("document.querySelectorAll('#cores .core').length") == page.evaluate(
        "fetch('/history').then((answer) => answer.json()).then((all) => all.figures[0].cores.length)"
    )
    assert page.complaints == []


def test_a_page_is_full_at_once(browser: Browser, demo: Serving) -> None:
    page = opened(browser, demo)
    page.wait_for("parseInt(document.querySelector('#last-id').textContent) > 8")
    page.go(f"{demo.url}/?again")
    # More points than events have come: without the history there would be fewer.
    points = "document.querySelector('.line.cpu')?.getAttribute('d')?.split('L').length"
    page.wait_for(f"{points} > 1 + Number(document.querySelector('#received').textContent)")


def test_what_a_second_visitor_writes_appears(browser: Browser, demo: Serving) -> None:
    page, second = opened(browser, demo), opened(browser, demo)
    second.type("#board input", "<b>hello</b> from the second page")
    second.click("#board form button")
    page.wait_for("document.querySelector('#board li')")
    assert page.text("#board li p") == "<b>hello</b> from the second page"
    second.wait_for("document.querySelector('#board li.own')")
    assert page.evaluate("document.querySelectorAll('#board li.own').length") == 0
    assert page.text("#board li .who") == second.text("#board li .who")
    # Whoever comes later sees it too.
    third = opened(browser, demo)
    third.wait_for("document.querySelector('#board li p')")
    assert [each.complaints for each in (page, second, third)] == [[], [], []]


def test_a_refused_note_says_why(browser: Browser, demo: Serving) -> None:
    page = opened(browser, demo)
    page.evaluate("document.querySelector('#board input').removeAttribute('maxlength')")
    page.type("#board input", "x" * 281)
    page.click("#board form button")
    page.wait_for("document.querySelector('.problem').textContent")
    assert page.text(".problem") == "text: at most 280 characters, these are 281"


def test_a_cut_stream_comes_back_by_itself(browser: Browser, demo: Serving) -> None:
    page = opened(browser, demo)
    page.click("#cut")
    page.wait_for("document.querySelector('#state').dataset.state === 'waiting'")
    assert page.text("#state").startswith("Reconnecting")
    page.wait_for("document.querySelector('#state').dataset.state === 'open'")
    page.wait_for("document.querySelector('#reconnects').textContent === '1'")
    page.wait_for("document.querySelectorAll('#log li').length === 3")
    said = page.evaluate("[...document.querySelectorAll('#log li code')].map((each) => each.textContent)")
    # It resumes, so there is no gap to tell of.
    assert said == ["livepush.open", "livepush.close", "livepush.open"]
    assert page.text("#log li:nth-child(2) span") == "the server ends it: revoked"
    assert page.evaluate("document.querySelector('#cut').disabled") is False
    # The history has filled what was missed: the line is one.
    page.wait_for("document.querySelector('.line.cpu').getAttribute('d').split('M').length === 2")
    assert page.complaints == []


def test_a_page_outlives_its_server(browser: Browser) -> None:
    port = str(free_port())
    with Serving("demo", "--port", port) as first:
        page = opened(browser, first)
        page.wait_for("parseInt(document.querySelector('#last-id').textContent) > 1")
        assert first.end(signal.SIGKILL) == -signal.SIGKILL
        page.wait_for("document.querySelector('#state').dataset.state === 'waiting'")
    with Serving("demo", "--port", port):
        page.wait_for("document.querySelector('#state').dataset.state === 'open'")
        # It counts from the beginning again, and the charts go on.
        page.evaluate("window.before = document.querySelector('.line.cpu').getAttribute('d')")
        page.wait_for("document.querySelector('.line.cpu').getAttribute('d') !== window.before")
        page.wait_for("parseInt(document.querySelector('#last-id').textContent) > 1")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_follow_the_system_until_chosen(browser: Browser, demo: Serving, scheme: str) -> None:
    def background() -> object:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    colours = {"light": "rgb(246, 244, 238)", "dark": "rgb(19, 20, 18)"}
    other = "dark" if scheme == "light" else "light"
    page = browser.open(demo.url, scheme=scheme)
    page.evaluate("localStorage.clear()")
    page.go(f"{demo.url}/?again")
    assert background() == colours[scheme]
    page.click("#theme")
    assert background() == colours[other]
    page.go(f"{demo.url}/?and-again")
    assert background() == colours[other]
    page.evaluate("localStorage.clear()")


@pytest.mark.parametrize("width", [320, 390, 800, 1600])
def test_no_window_is_too_narrow(browser: Browser, demo: Serving, width: int) -> None:
    page = opened(browser, demo, width=width)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
