"""The viewer in a real browser: what a person sees, presses and is kept from. Needs Chromium and playwright."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from restmcts import loop
from restmcts.types import Tree
from restmcts.view.page import write_page
from restmcts.view.server import open_server
from restmcts.view.viewer import Viewer
from tests.adder import AdderTools
from tests.grown import FORMULAS, HOSTILE, grown, write_trees
from tests.test_loop import config

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; on Debian: apt-get install chromium"),
]

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
def browser(run: Path) -> Iterator[Any]:
    """After the run, which has an event loop of its own; the browser's then goes on to the end of the module."""
    with api.sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield found
        found.close()


Open = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Open an address; at the end, the page must have made no error, and asked nobody but its own server."""
    contexts, wrong = [], []

    def open_it(url: str, **options: Any) -> Any:
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        contexts.append(context)
        view = context.new_page()
        view.set_default_timeout(10_000)
        origin = "/".join(url.split("/")[:3])

        def asked(request: Any) -> None:
            if not request.url.startswith((origin, "data:")):
                wrong.append(f"asked {request.url}")

        view.on("request", asked)
        view.on("pageerror", lambda error: wrong.append(str(error)))
        view.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        view.goto(url)
        view.wait_for_selector("main > *")
        return view

    yield open_it
    for context in contexts:
        context.close()
    assert not wrong


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], str]]:
    """Serve a folder for as long as the tests last; its address."""
    open_ones = []

    def serve(folder: Path) -> str:
        viewer = Viewer(folder).__enter__()
        viewer.refresh()
        server = open_server(viewer, port=0)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        open_ones.append((viewer, server))
        return server.url

    yield serve
    for viewer, server in open_ones:
        server.shutdown()
        server.server_close()
        viewer.__exit__()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("looked-at")
    loop.run(config(folder, rounds=1), tools=AdderTools())
    return folder / "run"


@pytest.fixture(scope="module")
def run_url(run: Path, served: Callable[[Path], str]) -> str:
    return served(run)


@pytest.fixture(scope="module")
def trees() -> list[Tree]:
    hostile = grown("hostile", " ".join(HOSTILE), 40, steps=HOSTILE, answer="<img src=x onerror='window.hit=9'>")
    hostile.failures = [HOSTILE[1]]
    math = grown(
        "math", r"Let $x^2 = 4$. Find \[\sum_{k=1}^{9} \frac{k}{x}.\]", 40, steps=FORMULAS, answer=r"\frac{45}{2}"
    )
    return [hostile, math, grown("big", "Five thousand nodes", 5000, seed=1)]


@pytest.fixture(scope="module")
def trees_url(trees: list[Tree], tmp_path_factory: pytest.TempPathFactory, served: Callable[[Path], str]) -> str:
    folder = tmp_path_factory.mktemp("grown")
    write_trees(folder / "search", trees)
    return served(folder)


def first_tree(view: Any) -> None:
    """From the list, open the tree of its first question."""
    view.locator(".questions tbody a").first.click()
    view.wait_for_selector(".details h2")


def questions(view: Any) -> list[str]:
    return list(view.locator(".questions .c-question").all_inner_texts())[1:]  # without the heading


# ---------------------------------------------------------------- what is seen


def test_the_overview_shows_the_run(open_page: Open, run_url: str):
    view = open_page(run_url)
    said = view.inner_text("main")
    wanted = (
        "Accuracy, search|Held-out accuracy|Questions solved while searching|Value model|Where the time went|Tokens"
    )
    for words in f"{wanted}|Cache hits|Round 1, training search|All numbers".split("|"):
        assert words in said
    assert view.locator("svg.chart").count() >= 5
    assert view.title() == "run · restmcts"


def test_questions_filter_and_sort(open_page: Open, run_url: str):
    view = open_page(run_url + "#/questions?set=round-1/search")
    everything = questions(view)
    assert len(everything) == 12
    counts = {}
    for show in ("solved", "unsolved"):
        view.locator(".controls select").nth(1).select_option(show)
        counts[show] = len(questions(view))
        marks = view.locator(".questions .c-answer .verdict").all_inner_texts()
        assert set(marks) <= {"✓" if show == "solved" else "✗"}
    assert counts["solved"] + counts["unsolved"] == 12
    assert counts["solved"] > 0
    view.locator(".controls select").nth(1).select_option("all")
    view.get_by_role("button", name="Nodes").click()
    nodes = [int(x) for x in view.locator(".questions td.c-nodes").all_inner_texts()]
    assert nodes == sorted(nodes, reverse=True)
    view.get_by_role("button", name="Nodes").click()
    nodes = [int(x) for x in view.locator(".questions td.c-nodes").all_inner_texts()]
    assert nodes == sorted(nodes)
    view.get_by_label("Sort by", exact=True).select_option("-gap")
    gaps = [float(x) for x in view.locator(".questions td.c-gap").all_inner_texts() if x != "–"]
    assert gaps == sorted(gaps, reverse=True)
    view.keyboard.press("/")
    view.keyboard.type("no. 7)")
    assert [name for name in questions(view) if "(no. 7)" in name] == questions(view) != []
    assert "q=no" in view.url  # what is shown stands in the address


def test_first_solved_in_a_phase(open_page: Open, run_url: str):
    view = open_page(run_url + "#/questions?set=round-1/evaluate/search")
    found = {}
    for phase in ("-1", "0", "1", "never"):
        view.get_by_label("First solved", exact=True).select_option(phase)
        found[phase] = questions(view)
    assert sum(map(len, found.values())) == 10
    strips = view.evaluate("""() => {
        const sets = ["base", "round-0", "round-1"].map((phase) => run.sets.get(`${phase}/evaluate/search`));
        return sets[2].rows.map((row) => [row.question, sets.map((set) => set.byKey.get(row.key).right)]);
    }""")
    for question, right in strips:
        phase = ["-1", "0", "1"][right.index(True)] if any(right) else "never"
        assert question in found[phase]


def test_a_node_tells_all_that_is_known(open_page: Open, run_url: str, run: Path):
    view = open_page(run_url + "#/questions?set=round-1/search&show=solved")
    first_tree(view)
    assert "the answer given" in view.inner_text(".details")
    pairs = view.evaluate("""() => [...document.querySelectorAll(".details .values > div")].map((pair) =>
        [pair.querySelector("dt").firstChild.textContent, pair.querySelector("dd").innerText])""")
    shown = dict(pairs)
    assert {"V", "value", "visits", "v", "m", "r", "w", "tokens", "iteration"} <= shown.keys()
    assert (shown["v"], shown["m"], shown["r"]) == ("1.00", "0", "0")  # a right leaf
    assert "inferred here" not in view.inner_text(".details")
    view.click(".details .prompt summary")
    assert "system" in view.inner_text(".details .prompt")
    assert "steps so far" in view.inner_text(".details .prompt").lower()


def test_formulas_are_rendered_and_prices_are_not(open_page: Open, trees_url: str):
    view = open_page(trees_url + "#/questions?q=Let")
    first_tree(view)
    assert view.locator("h1 math").count() == 2
    assert view.locator("h1 math mfrac").count() == 1
    assert view.locator(".gold math mfrac").count() == 1
    rendered = view.evaluate(
        """(steps) => steps.map((step) => {
            const p = h("p", {}, text.prose(step));
            return [p.querySelectorAll("math").length, p.textContent];
        })""",
        FORMULAS,
    )
    assert [count for count, _ in rendered] == [2, 2, 0, 2, 0]
    assert rendered[2][1] == FORMULAS[2]
    assert rendered[4][1] == FORMULAS[4]


# ---------------------------------------------------------------- the tree


PIXELS = """(name) => {
    const c = document.querySelector("canvas");
    const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
    const hex = name && getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    const want = name && [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
    const is = (i) => (want ? d[i + 3] > 250 && want.every((x, k) => Math.abs(d[i + k] - x) < 3) : d[i + 3] > 0);
    let n = 0;
    for (let i = 0; i < d.length; i += 4) n += is(i);
    return n;
}"""


def pixels(view: Any, variable: str | None = None) -> int:
    """How many pixels of the tree have a colour of the style, or any."""
    settle(view)
    return int(view.evaluate(PIXELS, variable))


def settle(view: Any) -> None:
    view.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def walk(view: Any) -> set[str]:
    """By keyboard from the answer given back to the question, and up and down beside the way; what was said of each."""
    view.focus("canvas")
    seen: set[str] = set()
    view.keyboard.press("End")
    depth = int(view.inner_text(".details h2").split()[-1])
    for back in range(depth):
        view.keyboard.press("End")
        for key in back * ["ArrowLeft"] + 5 * ["ArrowDown"] + 10 * ["ArrowUp"]:
            view.keyboard.press(key)
            seen.add(view.inner_text(".details"))
    return seen


def test_the_tree_is_drawn_with_its_marks(open_page: Open, run_url: str):
    view = open_page(run_url + "#/questions?set=round-1/search&show=solved")
    first_tree(view)
    settle(view)
    assert pixels(view, "--chosen") > 300  # the chosen path
    assert pixels(view, "--right") > 20
    assert pixels(view, "--wrong") > 20


def test_the_keyboard_goes_through_the_tree(open_page: Open, run_url: str):
    view = open_page(run_url + "#/questions?set=round-1/search&show=solved")
    first_tree(view)
    view.focus("canvas")

    def press(key: str) -> str:
        view.keyboard.press(key)
        return str(view.inner_text(".details h2"))

    assert press("Home") == "The question"
    assert press("ArrowRight") == "Step 1"
    assert press("ArrowRight") == "Step 2"
    assert press("ArrowLeft") == "Step 1"
    step = view.inner_text(".details .step")
    press("ArrowDown")
    press("ArrowUp")
    assert view.inner_text(".details .step") == step
    press("End")
    assert "the answer given" in view.inner_text(".details")
    view.keyboard.press("[")
    assert view.inner_text("output").startswith("iteration ")
    view.keyboard.press("]")
    assert view.inner_text("output").endswith("iterations")


def test_without_a_mouse_from_the_first_page_to_a_node(open_page: Open, run_url: str):
    view = open_page(run_url)
    for _ in range(4):
        view.keyboard.press("Tab")
        if view.evaluate("document.activeElement.textContent") == "Questions":
            break
    view.keyboard.press("Enter")
    view.wait_for_selector(".questions tbody a")
    view.locator(".questions tbody a").first.focus()
    view.keyboard.press("ArrowDown")
    assert view.evaluate("document.activeElement === document.querySelectorAll('.questions tbody a')[1]")
    view.keyboard.press("Enter")
    view.wait_for_selector(".details h2")
    view.keyboard.press("Home")  # the tree hears keys that nothing else wants
    assert view.inner_text(".details h2") == "The question"


def test_a_search_is_played(open_page: Open, run_url: str):
    view = open_page(run_url + "#/questions?set=base/evaluate/search&sort=-nodes")
    first_tree(view)
    slider = view.locator(".player input")
    last = int(slider.get_attribute("max"))
    assert last > 1
    slider.fill("1")
    assert view.inner_text("output") == f"iteration 1 of {last}"
    few = pixels(view)
    assert pixels(view, "--now") > 0  # what this iteration made
    view.click(".play")
    view.wait_for_function("() => document.querySelector('output').textContent.endsWith('iterations')")
    assert pixels(view) > few
    assert pixels(view, "--now") == 0


def test_two_rounds_side_by_side(open_page: Open, run_url: str):
    view = open_page(run_url + "#/questions?set=base/evaluate/search")
    first_tree(view)
    view.get_by_label("Compare with", exact=True).select_option("round-1/evaluate/search")
    view.wait_for_selector(".pane:nth-child(2) canvas")
    assert view.locator(".pane h2").all_inner_texts() == ["Base model, search", "Round 1, search"]
    box = view.locator(".pane canvas").nth(1).bounding_box()
    view.wait_for_timeout(300)
    view.locator(".pane canvas").nth(1).focus()
    view.keyboard.press("End")
    assert "round 1, search" in view.inner_text(".details h2")
    assert box["width"] > 250
    view.reload()  # all of it is in the address
    view.wait_for_selector(".pane:nth-child(2) canvas")


def test_a_click_selects_and_folding_hides(open_page: Open, trees_url: str):
    view = open_page(trees_url + "#/questions?q=Let")
    first_tree(view)
    view.focus("canvas")
    view.keyboard.press("Home")
    view.keyboard.press("0")
    before = pixels(view)
    view.keyboard.press("f")
    assert pixels(view) < before / 4
    view.keyboard.press("f")
    assert pixels(view) == before
    box = view.locator("canvas").bounding_box()
    for x in range(60, int(box["width"]) - 60, 12):  # somewhere along its middle there is a node
        view.mouse.click(box["x"] + x, box["y"] + box["height"] / 2)
        if view.inner_text(".details h2") != "The question":
            break
    assert view.inner_text(".details h2").startswith("Step")


def test_unfinished_branches_are_apart_and_can_be_left_out(open_page: Open, trees_url: str):
    view = open_page(trees_url + "#/questions?q=Let")
    first_tree(view)
    assert any("\nunfinished\n" in said for said in walk(view))
    view.get_by_label("unfinished branches").uncheck()
    said = walk(view)
    assert len(said) > 3
    assert not any("\nunfinished\n" in words for words in said)
    view.reload()
    view.wait_for_selector(".details h2")
    assert not view.get_by_label("unfinished branches").is_checked()


def test_five_thousand_nodes_stay_smooth(open_page: Open, trees_url: str):
    view = open_page(trees_url + "#/questions?q=thousand")
    first_tree(view)
    settle(view)
    milliseconds = view.evaluate(
        """async () => {
        const canvas = document.querySelector("canvas"), took = [];
        for (let i = 0; i < 30; i++) {
            const began = performance.now();
            const turn = { deltaY: i < 15 ? -80 : 80, clientX: 500, clientY: 500, cancelable: true };
            canvas.dispatchEvent(new WheelEvent("wheel", turn));
            await new Promise(requestAnimationFrame);
            took.push(performance.now() - began);
        }
        return took.sort((a, b) => a - b)[15];
    }"""
    )
    assert milliseconds < 200  # a bound for a busy machine without a GPU; alone it is one frame


# ---------------------------------------------------------------- what is kept out


def test_hostile_text_stays_text(open_page: Open, trees_url: str):
    view = open_page(trees_url + "#/questions?q=hostile")
    assert "<script>window.hit = 1</script>" in view.inner_text(".questions td.c-question")
    first_tree(view)
    assert len(walk(view)) > 10
    view.mouse.move(600, 500)
    made = ", ".join(
        f"main {tag}" for tag in ("script", "img", "svg", "b", "iframe", "a[href^=javascript]", "[onerror]")
    )
    assert view.locator(made).count() == 0
    view.wait_for_timeout(100)
    assert view.evaluate("window.hit") is None


def test_every_hostile_text_in_every_way_of_showing_it(open_page: Open, trees_url: str):
    view = open_page(trees_url)
    made = "script, img, svg, a, b, iframe, [style], [onload], [onerror]"
    found = view.evaluate(
        """([texts, made]) => texts.map((t) => {
        const place = document.querySelector("main");
        place.replaceChildren(h("p", {}, text.prose(t)), h("p", {}, text.answer(t)), h("p", {}, text.plain(t)));
        return [place.textContent.length > 0, place.querySelectorAll(made).length];
    })""",
        [HOSTILE, made],
    )
    assert found == [[True, 0]] * len(HOSTILE)
    view.wait_for_timeout(100)
    assert view.evaluate("window.hit") is None


def test_the_policy_stops_what_would_get_through(browser: Any, trees_url: str):
    """Were a text to become markup after all, the browser would not run it."""
    view = browser.new_page()
    view.goto(trees_url)
    view.wait_for_selector("main > *")
    view.evaluate("""() => {
        const place = document.createElement("div");
        place.innerHTML = "<img src=x onerror='window.hit = 1'><svg onload='window.hit = 2'></svg>";
        const script = document.createElement("script");
        script.textContent = "window.hit = 3";
        document.body.append(place, script);
    }""")
    view.wait_for_timeout(200)
    assert view.evaluate("window.hit") is None
    view.close()


# ---------------------------------------------------------------- anywhere


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_has_room_for_every_page(open_page: Open, run_url: str, theme: str):
    view = open_page(run_url, color_scheme=theme, **PHONE)

    def check() -> None:
        assert view.evaluate("document.documentElement.scrollWidth") <= 390

    check()
    view.goto(run_url + "#/questions?set=base/evaluate/search")
    view.wait_for_selector(".questions tbody a")
    check()
    first_tree(view)
    check()
    view.get_by_label("Compare with", exact=True).select_option("round-1/evaluate/search")
    view.wait_for_selector(".pane:nth-child(2) canvas")
    check()


def contrast(view: Any, a: str, b: str) -> float:
    """WCAG's contrast of two colours of the style."""
    return float(
        view.evaluate(
            """([a, b]) => {
        const style = getComputedStyle(document.documentElement);
        const linear = (x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
        const light = (name) => {
            const hex = style.getPropertyValue(name).trim();
            const [r, g, b] = [1, 3, 5].map((i) => linear(parseInt(hex.slice(i, i + 2), 16) / 255));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const [x, y] = [light(a), light(b)];
        return (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05);
    }""",
            [a, b],
        )
    )


def test_light_and_dark_can_be_read(open_page: Open, run_url: str):
    view = open_page(run_url, color_scheme="dark")
    for theme in ("dark", "light"):
        assert contrast(view, "--ink", "--paper") > 10, theme
        for colour in ("--soft", "--link", "--right", "--wrong"):
            assert contrast(view, colour, "--paper") > 4.5, (theme, colour)
        assert contrast(view, "--chosen", "--raised") > 2.5, theme
        before = view.evaluate("getComputedStyle(document.body).backgroundColor")
        view.click("#theme")
        assert view.evaluate("getComputedStyle(document.body).backgroundColor") != before


def test_a_run_that_goes_on_is_followed(open_page: Open, tmp_path: Path, served: Callable[[Path], str]):
    write_trees(tmp_path / "search", [grown("q0", "The first question", 12)])
    view = open_page(served(tmp_path) + "#/questions")
    assert questions(view) == ["The first question"]
    with (tmp_path / "search" / "trees.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(grown("q1", "The second question", 12).to_record()) + "\n")
    view.wait_for_function("() => document.querySelectorAll('.questions tbody tr').length === 2")
    assert questions(view)[1] == "The second question"


def test_the_one_file_works_from_the_disk(open_page: Open, run: Path, tmp_path: Path):
    write_page([run], tmp_path / "report.html")
    view = open_page((tmp_path / "report.html").as_uri())
    assert view.locator("svg.chart").count() >= 5
    view.get_by_role("link", name="Questions").click()
    view.wait_for_selector(".questions tbody a")
    assert len(questions(view)) == 10
    first_tree(view)
    settle(view)
    assert pixels(view, "--chosen") > 300
    view.get_by_label("Compare with", exact=True).select_option("base/evaluate/greedy")
    view.wait_for_selector(".pane:nth-child(2) canvas")


def test_without_scripts_the_one_file_has_its_tables(browser: Any, run: Path, tmp_path: Path):
    write_page([run], tmp_path / "report.html")
    context = browser.new_context(java_script_enabled=False)
    view = context.new_page()
    view.goto((tmp_path / "report.html").as_uri())
    assert "| base model |" in view.inner_text("noscript")
    context.close()
