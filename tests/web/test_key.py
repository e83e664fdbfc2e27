"""The page of a server that needs a key, and what the page's files give away without one."""

from pathlib import Path

import httpx2
import pytest

from tests.support.browsing import browsing, needs_browser
from tests.support.serving import scripted, serving

SHELL = ("/", "/page/app.js", "/page/style.css", "/page/icon.svg")
FED = ("/api/run", "/api/trajectories", "/api/students", "/api/evaluations", "/api/job")


def test_the_files_of_the_page_need_no_key_and_all_that_they_show_does(tmp_path: Path) -> None:
    with serving(tmp_path, api_key="secret") as url:
        for path in SHELL:
            assert httpx2.get(url + path).status_code == 200
        for path in (*FED, "/v1/models", "/page", "/page/../v1/models", "/page/%2e%2e/v1/models"):
            got = httpx2.get(url + path, follow_redirects=False)
            assert got.status_code in (307, 401, 404), path
            assert "student" not in got.text and "amplified" not in got.text


def test_the_page_is_for_this_host_and_this_origin_only(tmp_path: Path) -> None:
    with serving(tmp_path) as url:
        for path in (*SHELL, *FED):
            assert httpx2.get(url + path).status_code == 200
            assert httpx2.get(url + path, headers={"host": "evil.example"}).status_code == 403
            got = httpx2.get(url + path, headers={"origin": "http://evil.example"})
            assert got.status_code == 403
        for path in ("/api/students/rollback", "/api/students/s/promote", "/api/job"):
            got = httpx2.post(url + path, headers={"origin": "http://evil.example"})
            assert got.status_code == 403


def test_the_policy_of_the_page_admits_no_other_origin_and_no_script_in_it(tmp_path: Path) -> None:
    with serving(tmp_path) as url:
        got = httpx2.get(url)
        policy = got.headers["content-security-policy"]
        assert "default-src 'self'" in policy and "unsafe" not in policy and "http" not in policy
        assert "<script>" not in got.text and "style=" not in got.text and "//" not in got.text


def test_no_file_of_the_page_turns_text_into_markup(tmp_path: Path) -> None:
    from reflux.server.app import STATIC

    for path in STATIC.glob("*.js"):
        code = path.read_text()
        for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert way not in code, (path.name, way)


@pytest.mark.browser
@needs_browser[1]
def test_a_person_enters_the_key_once_and_a_wrong_one_is_asked_again(tmp_path: Path) -> None:
    with (
        scripted() as script,
        serving(tmp_path, script, api_key="secret") as url,
        browsing() as seen,
    ):
        seen.page.goto(url)
        box = seen.page.get_by_label("API key")
        box.fill("no")
        box.press("Enter")
        seen.page.get_by_text("Wrong key. Try again.").wait_for()
        seen.page.get_by_label("API key").fill("secret")
        seen.page.get_by_role("button", name="Open").click()
        seen.page.get_by_label("Model").locator("option").first.wait_for(state="attached")
        seen.page.get_by_label("Question", exact=True).fill("hello and hello")
        seen.page.get_by_role("button", name="Ask", exact=True).click()
        seen.page.locator(".bubble:not(.mine)").filter(has_text="HELLO+HELLO").wait_for()
        seen.page.reload()
        seen.page.get_by_label("Model").locator("option").first.wait_for(state="attached")
        assert seen.page.get_by_label("API key").count() == 0
        assert seen.hosts == {url.removeprefix("http://")}
