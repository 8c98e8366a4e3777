"""The pages in a real browser. Where there is none, pytest's first lines say that this is left out."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from .chromium import Browser, Page
from .command import Serving
from .server_process import free_port


@pytest.fixture(scope="module")
def demo() -> Iterator[Serving]:
    with Serving("demo") as demo:
        yield demo


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "app.log"
    path.write_text("first\n")
    return path


def opened(browser: Browser, serving: Serving, width: int = 1280) -> Page:
    page = browser.open(serving.url, width=width)
    page.wait_for("document.querySelector('#state').dataset.state === 'open'")
    return page


def append(log: Path, text: str) -> None:
    with log.open("a") as file:
        file.write(text)


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
def test_no_window_is_too_narrow(browser: Browser, demo: Serving, log: Path, width: int) -> None:
    with Serving("tail", str(log)) as tail:
        for serving in (demo, tail):
            page = opened(browser, serving, width=width)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_lines_are_shown_coloured_and_filtered(browser: Browser, log: Path) -> None:
    with Serving("tail", str(log)) as tail:
        page = opened(browser, tail)
        append(log, "12:00 \x1b[31mERROR\x1b[0m <i>no</i>\n12:01 WARNING low\n12:02 INFO fine\n")
        page.wait_for("document.querySelectorAll('.line').length === 4")
        shown = "[...document.querySelectorAll('.line:not(.filtered)')]"
        assert page.evaluate(f"{shown}.map((each) => each.className)") == [
            "line ",
            "line error",
            "line warning",
            "line ",
        ]
        assert page.text(".line.error .text") == "12:00 ERROR <i>no</i>"
        page.type("#filter", "LOW")
        assert page.evaluate(f"{shown}.map((each) => each.textContent)") == ["312:01 WARNING low"]
        assert page.text(".line mark") == "low"
        page.evaluate("document.querySelector('#filter').value = ''")
        page.type("#filter", "/12:0[02]/")
        assert page.evaluate(f"{shown}.length") == 2
        page.evaluate("document.querySelector('#filter').value = ''")
        page.type("#filter", "/(/")
        assert page.evaluate("document.querySelector('#filter').className") == "bad"
        page.evaluate("document.querySelector('#filter').value = ''")
        page.type("#filter", " ")
        page.click("#sources button")
        assert page.evaluate(f"{shown}.length") == 0
        assert page.complaints == []


def test_a_paused_page_keeps_what_comes(browser: Browser, log: Path) -> None:
    with Serving("tail", str(log)) as tail:
        page = opened(browser, tail)
        page.wait_for("document.querySelectorAll('.line').length === 1")
        page.click("#pause")
        append(log, "second\nthird\n")
        page.wait_for("document.querySelector('#newer').textContent === '2 newer'")
        assert page.evaluate("document.querySelectorAll('.line').length") == 1
        page.click("#newer")
        page.wait_for("document.querySelectorAll('.line').length === 3")
        assert page.text("#pause") == "Pause"


def test_the_end_is_followed_until_the_reader_scrolls_back(browser: Browser, log: Path) -> None:
    at_end = "((m) => m.scrollHeight - m.scrollTop - m.clientHeight < 24)(document.querySelector('main'))"
    last = "[...document.querySelectorAll('.line .text')].at(-1)?.textContent"
    with Serving("tail", str(log)) as tail:
        page = opened(browser, tail, width=500)
        append(log, "".join(f"line {number} {'is long ' * (number % 40)}\n" for number in range(7000)))
        page.wait_for(f"{last}?.startsWith('line 6999 ') && {at_end}")
        assert page.evaluate("document.querySelectorAll('.line').length") == 5000
        page.scroll("main", -2000)
        page.wait_for("document.querySelector('main').className === 'looking-back'")
        append(log, "newer\n")
        page.wait_for(f"{last} === 'newer'")
        assert page.text("#newer") == "1 newer"
        assert page.evaluate(at_end) is False
        page.click("#newer")
        page.wait_for(f"{at_end} && document.querySelector('#newer').hidden")


def test_missed_lines_are_counted(browser: Browser, log: Path) -> None:
    count = 300_000
    with Serving("tail", str(log)) as tail:
        page = opened(browser, tail)
        page.wait_for("document.querySelectorAll('.line').length === 1")
        append(log, "".join(f"line {number} {'of a storm ' * 9}\n" for number in range(count)))
        # A page that takes nothing for a while is cut off as too slow, and comes back.
        page.evaluate("{ const end = Date.now() + 7000; while (Date.now() < end); }")
        last = "[...document.querySelectorAll('.line .text')].at(-1)?.textContent"
        page.wait_for(f"{last}?.startsWith('line {count - 1} ')")
        missed = page.evaluate("document.querySelector('#counts').textContent")
        assert isinstance(missed, str)
        assert "missed" in missed
        # Every line was either taken or counted as missed.
        lines = page.text("#sources .count").replace(",", "")
        assert int(lines) + int(missed.split(", ")[-1].split()[0].replace(",", "")) == count + 1
