"""A long run on the page: how it is stopped, and what is left of its files."""

from __future__ import annotations

import re
import time

import pytest

pytest.importorskip("gradio")


@pytest.mark.browser
def test_stopped_is_the_last_word(browser):
    """Also on a page that is busy and gets to earlier updates late."""
    import gradio as gr
    from playwright.sync_api import expect

    from modelassay.ui.running import stops, under_way

    def count():
        for step in range(100_000):
            time.sleep(0.02)
            yield under_way(f"Step {step}")

    with gr.Blocks() as layers:
        status = gr.Markdown("Idle")
        start, stop = gr.Button("Start"), gr.Button("Halt")
        stops(stop, [start.click(count, None, status)], status)
    _, address, _ = layers.launch(prevent_thread_lock=True, quiet=True)
    try:
        page = browser.new_page()
        page.goto(address)
        for busy in (0, 1000):
            page.get_by_role("button", name="Start", exact=True).click()
            expect(page.get_by_text(re.compile(r"Step \d\d"))).to_be_visible(timeout=60_000)
            page.evaluate(
                """ms => {
                  for (const end = Date.now() + ms; Date.now() < end;);
                  const buttons = [...document.querySelectorAll("button")];
                  buttons.find(button => button.innerText == "Halt").click();
                }""",
                busy,
            )
            expect(page.get_by_text("Stopped.")).to_be_visible(timeout=60_000)
            page.wait_for_timeout(1000)
            expect(page.get_by_text("Stopped.")).to_be_visible()
    finally:
        layers.close()


@pytest.mark.parametrize("leaves", [False, True])
def test_files_of_a_run_are_gone_with_it(leaves):
    """Gradio copies what it offers; what it was copied from would fill the disk."""
    import gradio as gr

    from modelassay.ui.running import on_page
    from modelassay.ui.service import Step

    status, folders = gr.Markdown(render=False), []

    def show(result, folder):
        (folder / "report.json").write_text(result)
        folders.append(folder)
        return {status: "Done."}

    results = iter([Step("reading", 1, 2), "{}"])
    updates = on_page(results, status, {}, "Not done.", show)
    assert [next(updates)[status][:7] for _ in range(2)] == ["… Waiti", "… Readi"]
    assert next(updates) == {status: "Done."}
    assert (folders[0] / "report.json").exists()
    updates.close() if leaves else list(updates)
    assert not folders[0].exists()
