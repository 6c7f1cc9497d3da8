"""The page in a real Chromium: upload, slider, clicks, errors, looks. `make test-web` runs it.

Screenshots are left in the folder that MMCONVNEXTV2_SCREENSHOTS names, work_dirs/screenshots by
default. To look at trained runs instead of the tests' own: MMCONVNEXTV2_RUNS=work_dirs/demo, with
`-k fits`.
"""

from __future__ import annotations

import io
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmconvnextv2.visualization.reconstruction import REMOVED_GREY

pytestmark = pytest.mark.web

SCREENSHOTS = Path(os.environ.get("MMCONVNEXTV2_SCREENSHOTS", "work_dirs/screenshots"))
SIZES = dict(wide=(1280, 900), phone=(390, 844))
NAMES = ("Reconstruction", "Detection", "Segmentation")
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def called_hosts() -> Iterator[list[str]]:
    """Hosts whose addresses this process, and so the server, has asked for."""
    hosts: list[str] = []
    resolve = socket.getaddrinfo

    def note(host: Any, *args: Any, **kwargs: Any) -> Any:
        hosts.append(str(host))
        return resolve(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", note)
        yield hosts


@pytest.fixture(scope="module")
def address(runs: Path, called_hosts: list[str]) -> Iterator[str]:
    """The page with a run of each task."""
    from mmconvnextv2.web.app import build, launch

    app = build(os.environ.get("MMCONVNEXTV2_RUNS", runs))
    yield launch(app, "127.0.0.1", free_port())
    app.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    assert chromium is not None, "needs Debian's package chromium"
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens the page; afterwards checks that it asked nobody but the server, and had no errors."""
    contexts, asked, errors = [], [], []

    def open_one(size: str = "wide", scheme: str = "light", address: str = address) -> Any:
        width, height = SIZES[size]
        context = browser.new_context(
            viewport=dict(width=width, height=height),
            color_scheme=scheme,
            has_touch=size == "phone",
        )
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.get_by_role("tab", name="Reconstruction").wait_for()
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert asked and not [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert errors == []


def shot(page: Any, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.wait_for_function("[...document.images].every(image => image.complete)")
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


def expect_status(page: Any, text: str) -> None:
    page.locator(".status:visible", has_text=text).wait_for()


def fetch(page: Any, name: str) -> np.ndarray:
    """The picture that an element shows, as the server sent it."""
    source = page.locator(f"#{name} img").get_attribute("src")
    return np.asarray(Image.open(io.BytesIO(page.request.get(source).body())).convert("RGB"))


def upload(page: Any, path: Path, result: str | None = None) -> None:
    """Upload in the open tab, and wait until an element shows another picture."""
    image = f"#{result} img"
    before = None if result is None else page.locator(image).get_attribute("src")
    page.locator(".tabitem:visible input[type=file]").set_input_files(path)
    if result is not None:
        changed = "([image, before]) => document.querySelector(image)?.src !== before"
        page.wait_for_function(changed, arg=[image, before])
        page.locator(image).wait_for()


def removed_cells(masked: np.ndarray, rows: int = 5) -> np.ndarray:
    """Which cells of the shown picture are grey, by their centres."""
    side = len(masked) // rows
    return (masked[side // 2 :: side, side // 2 :: side] == REMOVED_GREY).all(axis=-1)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture that none of the runs has: a ramp without any grey of a removed cell."""
    ramp = np.zeros((160, 160, 3), np.uint8)
    ramp[..., 0] = np.arange(160)
    path = tmp_path_factory.mktemp("upload") / "ramp.png"
    Image.fromarray(ramp).save(path)
    return path


def test_reconstruction(open_page: Callable[..., Any], photo: Path) -> None:
    page = open_page()
    upload(page, photo, "original")
    expect_status(page, "15 of 25 cells removed (60%)")
    pixels = np.asarray(Image.open(photo))
    np.testing.assert_array_equal(fetch(page, "original"), np.kron(pixels, np.ones((3, 3, 1))))
    mask = removed_cells(fetch(page, "masked"))
    assert mask.sum() == 15

    frame = page.locator("#masked img").bounding_box()
    cell = frame["width"] / 5
    row, column = np.argwhere(~mask)[0]
    page.mouse.click(frame["x"] + (column + 0.5) * cell, frame["y"] + (row + 0.5) * cell)
    expect_status(page, "16 of 25 cells removed (64%)")
    clicked = removed_cells(fetch(page, "masked"))
    assert np.argwhere(clicked != mask).tolist() == [[row, column]]
    composite, original = fetch(page, "composite"), fetch(page, "original")
    shown = np.kron(~clicked, np.ones((96, 96), bool))
    np.testing.assert_array_equal(composite[shown], original[shown])
    assert (composite[~shown] != original[~shown]).any()
    shot(page, "reconstruction-clicked")

    page.get_by_role("button", name="New random mask").click()
    expect_status(page, "15 of 25 cells removed (60%)")
    assert (removed_cells(fetch(page, "masked")) != mask).any()

    slider = page.get_by_role("slider", name="Mask ratio").first
    slider.fill("95")
    expect_status(page, "24 of 25 cells removed (96%)")
    mask = removed_cells(fetch(page, "masked"))
    row, column = np.argwhere(~mask)[0]
    page.mouse.click(frame["x"] + (column + 0.5) * cell, frame["y"] + (row + 0.5) * cell)
    page.get_by_text("one cell has to stay visible").wait_for()


def test_detection(open_page: Callable[..., Any], photo: Path) -> None:
    page = open_page()
    page.get_by_role("tab", name="Detection").click()
    upload(page, photo, "detection-result")
    slider = page.locator("#detection-score input[type=range]")
    slider.fill("0.05")
    page.locator("#detection-details li").first.wait_for()
    found = page.locator("#detection-details .figure").all_inner_texts()
    assert found == sorted(found, reverse=True) and all(float(score) >= 0.05 for score in found)
    many = fetch(page, "detection-result")
    shot(page, "detection-low-score")
    slider.fill("0.95")
    page.get_by_text("Nothing with such a score").wait_for()
    none = fetch(page, "detection-result")
    assert none.shape == many.shape and (none != many).any()
    assert (none[..., 1:] == 0).all(), "the upload without a box"


def test_segmentation(open_page: Callable[..., Any], photo: Path) -> None:
    page = open_page()
    page.get_by_role("tab", name="Segmentation").click()
    upload(page, photo, "segmentation-result")
    shares = page.locator("#segmentation-details .figure").all_inner_texts()
    assert sum(float(share.rstrip("%")) for share in shares) == pytest.approx(100, abs=1)
    picture = fetch(page, "segmentation-result")
    scale = picture.shape[0] / 160
    assert scale == int(scale) and picture.shape[1] == picture.shape[0]


def test_what_cannot_be_used_is_said_in_the_page(
    open_page: Callable[..., Any], tmp_path: Path
) -> None:
    page = open_page()
    (tmp_path / "notes.jpg").write_text("no picture")
    upload(page, tmp_path / "notes.jpg")
    page.get_by_text("notes.jpg is no picture of a known kind").wait_for()
    assert page.locator("#prediction img").count() == 0, "nothing of the picture before"
    shot(page, "error-no-picture")
    page.get_by_role("button", name="Remove Image").first.click()
    expect_status(page, "Upload a picture")
    with (tmp_path / "long.jpg").open("wb") as file:
        file.truncate(21 * 2**20)
    upload(page, tmp_path / "long.jpg")
    page.get_by_text("exceed the maximum allowed size of 20").wait_for()


def test_missing_runs_name_their_command(browser: Any, tmp_path: Path) -> None:
    from mmconvnextv2.web.app import build, launch

    app = build(tmp_path)
    port = free_port()
    page = browser.new_page()
    try:
        page.goto(launch(app, "127.0.0.1", port))
        for name, command in zip(
            NAMES, ("pretrain --data", "--task detection", "--task segmentation"), strict=True
        ):
            page.get_by_role("tab", name=name).click()
            page.locator(".missing.prose:visible", has_text=command).wait_for()
        shot(page, "missing")
        with pytest.raises(ValueError, match=f"port {port}"):
            launch(build(tmp_path), "127.0.0.1", port)
    finally:
        page.close()
        app.close()


@pytest.mark.parametrize("size", SIZES)
def test_it_fits_the_screen_in_both_schemes(open_page: Callable[..., Any], size: str) -> None:
    for scheme in ("light", "dark"):
        page = open_page(size, scheme)
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = np.mean([int(part) for part in background.strip("rgba()").split(",")[:3]])
        assert (brightness > 128) == (scheme == "light")
        for name in NAMES:
            page.get_by_role("tab", name=name).click()
            page.locator(".picture:visible img").first.wait_for()
            assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
            shot(page, f"{size}-{scheme}-{name.lower()}")


def test_the_server_asks_nobody(address: str, called_hosts: list[str]) -> None:
    assert not [host for host in called_hosts if host not in LOOPBACK]
    port = int(address.rstrip("/").rpartition(":")[2])
    with socket.socket() as probe:
        probe.settimeout(5)
        # Another address of this machine: a page on all addresses would answer there.
        assert probe.connect_ex(("127.0.0.2", port)) != 0
