"""The page at /, driven in a browser against a real server with two models and a key."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
# What a browser could take for markup.
ODD = "<img src=x onerror=document.title='ran'>"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is here")


def start(*flags: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "scripts/serve.py", *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A file of keys, and one of them."""
    path = tmp_path_factory.mktemp("keys") / "keys.jsonl"
    with start(f"--keys={path}", "--new_key=page") as process:
        text, _ = process.communicate(timeout=60)
    return path, text.strip()


@pytest.fixture(scope="module")
def api(
    key: tuple[Path, str],
    exported: Callable[[str, int], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[httpx.Client]:
    """A client of the server."""
    folder = tmp_path_factory.mktemp("server")
    told = f'primary = "{exported("sasrec", 0)}"\ncandidate = "{exported("sasrec", 1)}"\n'
    (folder / "deployment.toml").write_text(told)
    flags = {
        "deployment": folder / "deployment.toml",
        "state": f"sqlite:{folder / 'events.db'}",
        "keys": key[0],
        "compile_cache": folder / "compiled",
        "port": 0,
        "max_batch": 1,
    }
    with start(*(f"--{name}={value}" for name, value in flags.items())) as process:
        try:
            assert process.stdout is not None
            ready = next(line for line in process.stdout if line.startswith("ready"))
            with httpx.Client(base_url=ready.split()[-1], headers={"X-API-Key": key[1]}) as client:
                known = [(user, item) for user in ("ann", ODD) for item in ("i1", "i2")]
                events = [{"user": user, "item": item} for user, item in known]
                client.post("/v1/events", json={"events": events}).raise_for_status()
                yield client
        finally:
            process.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, api: httpx.Client, key: tuple[Path, str]) -> Iterator[Any]:
    """Opens the page, with the key in it or not; nothing may go wrong unseen or reach elsewhere."""
    contexts: list[BrowserContext] = []
    wrong: list[str] = []

    def refused(text: str) -> bool:  # what the browser says of an answer of 401 or 404
        return "401" in text or "404" in text

    def ours(url: str) -> bool:
        return url.startswith((str(api.base_url), "data:"))

    def open_(*, with_key: bool = True, **options: Any) -> Page:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: None if refused(said.text) else wrong.append(said.text))
        page.on("request", lambda sent: None if ours(sent.url) else wrong.append(sent.url))
        if with_key:
            page.add_init_script(f"sessionStorage.setItem('key', '{key[1]}')")
        page.goto(str(api.base_url))
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not wrong


def recommended(api: httpx.Client, variant: str, **asked: Any) -> list[dict[str, Any]]:
    body = {"k": 10, "explain": True, "variant": variant, **asked}
    return api.post("/v1/recommend", json=body).raise_for_status().json()["items"]


def shown(page: Page, column: int) -> list[tuple[str, ...]]:
    """Id, score and reasons of each item in a list."""
    rows = page.locator("#results > div").nth(column).locator("li")
    expect(rows).to_have_count(10)
    return [
        tuple(rows.nth(n).locator(part).inner_text() for part in (".id", ".score", ".reasons"))
        for n in range(10)
    ]


def wanted(items: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (one["id"], f"{one['score']:.3f}", " · ".join(r["text"] for r in one["reasons"]))
        for one in items
    ]


def add(page: Page, text: str) -> None:
    """Adds the first item that a search finds, by keyboard."""
    page.get_by_role("combobox", name="Add an item").focus()
    page.keyboard.type(text)
    expect(page.get_by_role("option").first).to_contain_text(text)
    page.keyboard.press("Enter")


def test_a_key_is_asked_for_and_kept_in_the_tab_alone(
    open_page: Any, key: tuple[Path, str]
) -> None:
    page = open_page(with_key=False)
    expect(page.get_by_role("alert")).to_contain_text("send a key")
    expect(page.get_by_label("API key")).to_be_focused()
    page.keyboard.type(key[1])
    page.keyboard.press("Enter")
    expect(page.locator("#models")).to_contain_text("candidate: sasrec")
    expect(page.get_by_role("alert")).to_be_hidden()
    page.reload()
    expect(page.locator("#models")).to_contain_text("primary: sasrec")
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]


def test_two_models_answer_side_by_side_by_keyboard_alone(
    open_page: Any, api: httpx.Client
) -> None:
    page = open_page()
    expect(page.locator("#models")).to_contain_text("candidate")
    for title in ("Film 3", "Film 41"):
        add(page, title)
        expect(page.locator("#history")).to_contain_text(title)
    expect(page.get_by_role("status").first).to_contain_text("10 items in")
    expect(page.locator("#results > div")).to_have_count(2)
    expect(page.locator("#history li")).to_have_count(2)
    history = page.locator("#history .id").all_inner_texts()
    page.wait_for_timeout(200)  # the newest answer
    for column, variant in enumerate(("primary", "candidate")):
        items = recommended(api, variant, history=history)
        assert shown(page, column) == wanted(items)
    both = {one["id"] for one in recommended(api, "primary", history=history)}
    both &= {one["id"] for one in recommended(api, "candidate", history=history)}
    expect(page.get_by_role("status").first).to_contain_text(f"{len(both)} in both lists")
    page.get_by_role("button", name="Remove Film 3").press("Enter")
    expect(page.locator("#history li")).to_have_count(1)


def test_a_user_is_found_and_gets_what_the_stored_history_gives(
    open_page: Any, api: httpx.Client
) -> None:
    page = open_page()
    page.get_by_label("a user").check()
    page.get_by_role("combobox", name="User").fill("an")
    page.get_by_role("option", name="ann").click()
    expect(page.locator("#results > div").first).to_be_visible()
    assert shown(page, 0) == wanted(recommended(api, "primary", user="ann"))


def test_ids_are_text_whatever_is_in_them(open_page: Any) -> None:
    page = open_page()
    page.get_by_label("a user").check()
    page.get_by_role("combobox", name="User").fill("<")
    option = page.get_by_role("option")
    expect(option).to_have_text(ODD)
    assert page.locator("#user-found img").count() == 0
    option.click()
    expect(page.locator("#results li").first).to_be_visible()
    assert page.title() == "jaxrec"


def test_what_the_server_refuses_is_said(open_page: Any) -> None:
    page = open_page()
    page.get_by_label("a user").check()
    page.get_by_role("combobox", name="User").fill("nobody")
    page.get_by_role("button", name="Recommend").click()
    expect(page.get_by_role("alert")).to_contain_text("nothing is known of the user")
    page.get_by_label("popular items").check()
    page.get_by_role("button", name="Recommend").click()
    expect(page.get_by_role("status").first).to_contain_text("popular ones")
    expect(page.get_by_role("alert")).to_be_hidden()


def test_neighbours_of_an_item_open_and_lead_on_and_back(open_page: Any, api: httpx.Client) -> None:
    page = open_page()
    add(page, "Film 7")
    button = page.locator("#results li button").first
    button.press("Enter")
    dialog = page.get_by_role("dialog")
    item = recommended(api, "primary", history=["i7"])[0]["id"]
    for _ in range(2):
        near = api.post("/v1/similar", json={"item": item, "k": 10}).json()["items"]
        expect(dialog.locator(".id")).to_have_text([one["id"] for one in near])
        item = near[2]["id"]
        dialog.locator("li button").nth(2).press("Enter")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(button).to_be_focused()


def test_live_metrics_follow_what_happens(open_page: Any, api: httpx.Client) -> None:
    page = open_page()
    expect(page.locator("#live-rate")).to_have_text("0.0", timeout=20_000)
    for _ in range(40):
        recommended(api, "primary", history=["i1"])
    expect(page.locator("#live-p50")).to_contain_text("ms")
    expect(page.locator("#live-batch")).to_have_text("1.0")
    assert float(page.locator("#live-rate").inner_text()) > 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_without_scrolling_sideways(open_page: Any, scheme: str) -> None:
    page = open_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    add(page, "Film 12")
    expect(page.locator("#results > div")).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    bright = sum(int(part) for part in paper.strip("rgb()").split(",")) > 3 * 128
    assert bright == (scheme == "light")


def test_every_control_has_a_name_and_shows_when_it_has_the_focus(open_page: Any) -> None:
    page = open_page()
    add(page, "Film 5")
    expect(page.locator("#results > div")).to_have_count(2)
    focused = page.locator(":focus")
    page.get_by_role("link", name="Skip").focus()
    seen: list[str] = []
    while focused.count() and focused.evaluate("(e) => e.tagName") != "BODY":
        assert focused.evaluate("(e) => getComputedStyle(e).outlineStyle") != "none"
        name = focused.evaluate(
            "(e) => e.getAttribute('aria-label') || e.labels?.[0]?.textContent || e.textContent"
        )
        seen.append(name.strip())
        assert seen[-1]
        assert len(seen) < 60, "the focus does not get through the page"
        page.keyboard.press("Tab")
    assert seen.index("Add an item, by title or id") < seen.index("Recommend")
    assert sum(name.startswith("Neighbours of") for name in seen) == 20
