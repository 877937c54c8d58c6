"""The gateway's page as people meet it: in a real Chromium, with real keys and clicks, before real servers."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import pytest
from tests.chromium import Chromium
from tests.local.serving.processes import Service, eventually

pytestmark = pytest.mark.slow

#: The figures are those of all processes, whichever answers.
PROCESSES = 2
KEY = "sk-for-the-page"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """Answers are at least 30 characters long and come one every 20 ms."""
    directory = tmp_path_factory.mktemp("service")
    (directory / "keys").write_text(f"{KEY} name=page rpm=100\n")
    with Service(
        directory=directory,
        source="stand-in:tokens=30,step_ms=20",
        gateway_environment={
            "TIDEWHEEL_API_KEYS_FILE": str(directory / "keys"),
            "TIDEWHEEL_GATEWAY_PROCESSES": str(PROCESSES),
        },
    ) as running:
        eventually(lambda: running.gateway.log.count("1 API keys") == PROCESSES)
        yield running


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Chromium(tmp_path_factory.mktemp("chromium") / "profile") as running:
        yield running


@pytest.fixture
async def page(service, browser):
    """A tab at the page."""
    async with browser.tab() as one:
        await one.open(f"{service.gateway.url}/")
        await one.until("state.textContent === 'key needed'")
        yield one


@pytest.fixture
async def chatting(page):
    """The page, with the key given."""
    await page.write("#key", KEY)
    await page.press("Tab")
    await page.until("state.textContent === 'serving'")
    page.complaints.clear()
    return page


async def ask(page, text: str) -> str:
    """Ask and wait for the end; gives what is told below the answer."""
    turns = await page.run("document.querySelectorAll('.turn.assistant').length")
    await page.write("#prompt", text)
    await page.press("Enter")
    return await page.until(
        f"document.querySelectorAll('.turn.assistant')[{turns}]?.querySelector('.told')?.innerText"
    )


async def answer(page) -> str:
    return await page.run("[...document.querySelectorAll('.turn.assistant .text')].at(-1).textContent")


async def test_a_question_is_answered_and_the_figures_follow(chatting):
    assert await chatting.text("#model") == "stand-in-model"
    told = await ask(chatting, "What a tide, what a wheel! ")
    assert (await answer(chatting)).startswith("What a tide, what a wheel!What")
    assert "first token after" in told
    assert "30 tokens" in told

    def value(name: str) -> str:
        return f"document.querySelector('[data-name=\"{name}\"] .value').textContent"

    await chatting.until(f"{value('TTFT')}.endsWith('ms') && {value('TPOT')}.endsWith('ms')")
    assert await chatting.run(value("P/D ratio")) == "1:1"
    assert await chatting.run(value("Groups")) == "1"
    assert float(await chatting.run(value("Tokens/s"))) > 0
    await chatting.until(
        "document.querySelector('[data-name=\"Tokens/s\"] .line').getAttribute('d').length > 5"
    )
    assert chatting.complaints == []


async def test_the_stop_button_ends_the_answer_everywhere(service, chatting):
    await chatting.write("#prompt", "x" * 1500)
    await chatting.click("#send")
    await chatting.until("document.querySelector('.turn.running .text')?.textContent.length > 3")
    await chatting.click("#stop")
    assert await chatting.until("document.querySelector('.told')?.innerText") == "stopped"
    assert len(await answer(chatting)) < 1500
    await asyncio.to_thread(eventually, lambda: service.slots_used() == 0)


async def test_the_whole_conversation_is_sent_and_a_new_chat_forgets_it(chatting):
    sent = """
        window.bodies = [];
        const ask = window.fetch;
        window.fetch = (url, options) => {
            if (options.body) window.bodies.push(JSON.parse(options.body).messages.map((one) => one.role));
            return ask(url, options);
        };
    """
    await chatting.run(f"(() => {{ {sent} }})()")
    await ask(chatting, "first")
    await ask(chatting, "second")
    await chatting.click("#clear")
    assert await chatting.run("document.querySelectorAll('.turn').length") == 0
    await ask(chatting, "third")
    assert await chatting.run("window.bodies") == [["user"], ["user", "assistant", "user"], ["user"]]


async def test_errors_are_told_in_the_words_of_the_api(chatting):
    await chatting.write("#max-tokens", "0")
    assert "max_completion_tokens: Input should be greater than or equal to 1" in await ask(chatting, "hi")
    await chatting.write("#key", "sk-wrong")
    assert await ask(chatting, "hi") == "the API key is not accepted here"


async def test_what_the_model_writes_is_text_and_nothing_else(chatting):
    attack = "<img src=x onerror='document.title = 1'><b>bold</b><script>document.title = 2</script>"
    chunk = json.dumps({"choices": [{"delta": {"content": attack}, "finish_reason": "stop"}]})
    # in one piece, which the stand-in, that writes a character at a time, would not give
    await chatting.run(
        f"""(() => {{
            const ask = window.fetch;
            const told = new TextEncoder().encode({json.dumps(f"data: {chunk}" + chr(10) * 2 + "data: [DONE]" + chr(10) * 2)});
            window.fetch = (url, options) => options.body ? Promise.resolve(new Response(told)) : ask(url, options);
        }})()"""
    )
    await ask(chatting, attack)
    assert await answer(chatting) == attack
    assert await chatting.run("document.querySelectorAll('#log img, #log b, #log script').length") == 0
    assert await chatting.run("document.title") == "Tidewheel"


async def test_nothing_is_stored_and_nobody_else_is_asked(service, chatting):
    await ask(chatting, "hello")
    stored = "[localStorage.length, sessionStorage.length, document.cookie, location.href]"
    assert await chatting.run(stored) == [0, 0, "", f"{service.gateway.url}/"]
    assert {urlsplit(url).netloc for url in chatting.requests} == {urlsplit(service.gateway.url).netloc}
    await chatting.open(f"{service.gateway.url}/")
    assert await chatting.run("key.value") == ""


async def test_an_inline_script_would_not_run(page):
    await page.run(
        """document.body.append(Object.assign(document.createElement("script"), {textContent: "document.title = 'run'"}))"""
    )
    assert await page.run("document.title") == "Tidewheel"
    assert any("Content Security Policy" in complaint for complaint in page.complaints)


async def test_every_control_has_a_name_for_those_who_cannot_see_it(page):
    await page.call("Accessibility.enable")
    nodes = (await page.call("Accessibility.getFullAXTree"))["nodes"]
    controls = {
        (node["role"]["value"], node["name"]["value"])
        for node in nodes
        if not node["ignored"]
        and node["role"]["value"] in {"textbox", "spinbutton", "button", "log", "status"}
    }
    assert controls >= {
        ("textbox", "Message"),
        ("textbox", "API key"),
        ("spinbutton", "Temperature"),
        ("spinbutton", "Max tokens"),
        ("button", "Send"),
        ("button", "New chat"),
        ("log", "Conversation"),
    }
    assert all(name for role, name in controls if role != "status")


#: The contrast of the text of an element to what is painted behind it, as WCAG computes it.
CONTRAST = """(selector) => {
    const light = (colour) => {
        const part = (value) => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
        const [r, g, b] = colour.match(/[0-9.]+/g).map(Number);
        return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
    };
    let behind = document.querySelector(selector);
    const text = light(getComputedStyle(behind).color);
    while (/, 0\\)$|transparent/.test(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
    const [high, low] = [text, light(getComputedStyle(behind).backgroundColor)].sort((a, b) => b - a);
    return (high + 0.05) / (low + 0.05);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_can_be_read_by_day_and_by_night(chatting, scheme):
    await chatting.call(
        "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
    )
    await ask(chatting, "hello")
    is_dark = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every((one) => one < 60)"
    assert await chatting.run(is_dark) == (scheme == "dark")
    for selector in (
        ".user .text",
        ".assistant .text",
        ".told",
        ".figure dt",
        ".value",
        "#send",
        "#state",
        ".note",
    ):
        assert await chatting.run(f"({CONTRAST})({json.dumps(selector)})") >= 4.5, selector


async def test_it_fits_windows_of_any_width(chatting):
    await ask(chatting, "a_very_long_word" * 6)
    for width in (360, 820, 1600):
        await chatting.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False
        )
        await chatting.until(f"innerWidth === {width}")
        assert await chatting.run("document.documentElement.scrollWidth") <= width


def test_a_gateway_may_have_no_page(tmp_path):
    with_out = Service(directory=tmp_path, gateway_environment={"TIDEWHEEL_PAGE": "Disabled"})
    try:
        with_out.gateway.start()
        eventually(lambda: with_out.gateway.health("live"))
        for path in ("/", "/page.js", "/figures"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{with_out.gateway.url}{path}", timeout=10)
            assert refused.value.code == 404
    finally:
        with_out.__exit__()
