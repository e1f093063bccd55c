"""The device that a user agent names, for people who look through their sessions."""

from __future__ import annotations

import subprocess
import sys
from time import thread_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.sessions.devices import Device, described, described_each
from tests.service import ROOT

WEBKIT = "AppleWebKit/537.36 (KHTML, like Gecko)"
IOS = "AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Mobile/15E148 Safari/604.1"
KNOWN = {
    "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0": ("Firefox 128", "Linux", "desktop"),
    f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {WEBKIT} Chrome/126.0.0.0 Safari/537.36 Edg/126.0.0.0": (
        *("Edge 126", "Windows 10", "desktop"),
    ),
    # Browsers of macOS name the same old version for ever.
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Safari/605": (
        *("Safari 17", "Mac OS X", "desktop"),
    ),
    f"Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) {WEBKIT} Chrome/126.0.0.0 Safari/537.36": (
        *("Chrome 126", "Chrome OS", "desktop"),
    ),
    f"Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) {IOS}": ("Mobile Safari 17", "iOS 17", "phone"),
    f"Mozilla/5.0 (iPad; CPU OS 16_6 like Mac OS X) {IOS}": ("Mobile Safari 17", "iOS 16", "tablet"),
    f"Mozilla/5.0 (Linux; Android 10; K) {WEBKIT} Chrome/126.0.0.0 Mobile Safari/537.36": (
        *("Chrome Mobile 126", "Android 10", "phone"),
    ),
    f"Mozilla/5.0 (Linux; Android 13; SM-X906B) {WEBKIT} Chrome/126.0.0.0 Safari/537.36": (
        *("Chrome 126", "Android 13", "tablet"),
    ),
    "curl/8.5.0": ("curl 8", None, "program"),
    "okhttp/4.12.0": ("okhttp 4", None, "program"),
    "python-requests/2.32": ("Python Requests 2", None, "program"),
    "Googlebot/2.1 (+http://www.google.com/bot.html)": ("Googlebot 2", None, "bot"),
    "an app that nobody knows/1.0": (None, None, None),
    "": (None, None, None),
}

HOSTILE = [
    *("A" * 256, ";" * 256, " " * 256, "(" * 256, "1." * 128, "a/" * 128, "Android " * 32, "iPhone OS 1_" * 21),
    *(("x Build " * 40)[:256], ("Linux; U; Android; " + "- " * 118)[:256], ("bot " + "/1." * 84)[:256]),
    *(("zao" + "( " * 126)[:256], ("iPhone/1." * 29)[:256], ("; i-style " + "_" * 246)[:256], ("MOT( " * 52)[:256]),
    *("\x00" * 256, "\u202e" * 256, "Mozilla/5.0 (X11; Linux x86_64; rv:" + "9" * 200 + ") Firefox/" + "9" * 12),
]


@pytest.mark.parametrize("user_agent", KNOWN)
def test_browsers_and_programs_are_named_as_people_call_them(user_agent: str) -> None:
    assert described(user_agent) == Device(*KNOWN[user_agent])  # type: ignore[arg-type]  # the words of Kind


def test_a_session_without_a_user_agent_has_an_unknown_device() -> None:
    assert described(None) == Device()


@pytest.mark.parametrize("user_agent", HOSTILE)
def test_no_user_agent_of_256_characters_takes_long(user_agent: str) -> None:
    described("curl/8.5.0")  # loads the patterns
    described.__wrapped__(user_agent)  # compiles those that no other agent needed
    began = thread_time()
    described.__wrapped__(user_agent)
    assert thread_time() - began < 0.5  # of this thread's own time: some 10 ms on a slow core


@given(st.text(max_size=256))
def test_any_text_gives_a_device_whose_words_can_be_printed(user_agent: str) -> None:
    device = described.__wrapped__(user_agent)
    for words in (device.browser, device.system):
        assert words is None or (words.isprintable() and 0 < len(words) <= 64)


async def test_the_devices_of_a_page_are_worked_out_together() -> None:
    agents = {None, "", *KNOWN}
    assert await described_each(agents) == {agent: described(agent) for agent in agents}


def test_the_library_is_loaded_with_the_first_list_and_not_with_the_service() -> None:
    code = (
        "import sys, app.main; assert 'ua_parser' not in sys.modules;"
        "from app.sessions.devices import described; described('x'); assert 'ua_parser' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
