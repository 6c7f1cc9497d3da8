"""The page: one tab a task, and what each click does."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmconvnextv2.apis.machine import choose_device
from mmconvnextv2.apis.predict import Predictor
from mmconvnextv2.web import words
from mmconvnextv2.web.cells import cell_at, describe, draw_cells, draw_mask, enlarge, fit, toggle
from mmconvnextv2.web.reconstructor import Reconstructor
from mmconvnextv2.web.runs import TASKS, Run, find_runs, held_out_images, training_images
from mmconvnextv2.web.style import HEAD, theme
from mmconvnextv2.web.uploads import MAX_MEGABYTES, read_upload, shrink

_INVITATION = "Upload a picture, or pick an example."
_SHOWN_SIDE = 480  # pixels, about; small pictures are enlarged
_KEPT_SECONDS = 3600  # of uploads and of what a visitor sees
# One model call at a time: each may use all cores, and OpenMMLab's scope is global.
_ONE_AT_A_TIME = dict(concurrency_limit=1, concurrency_id="models", api_visibility="private")
_QUIETLY = dict(show_progress="hidden", **_ONE_AT_A_TIME)


def build(runs: str | os.PathLike[str]) -> gr.Blocks:
    """Build the page of `mmconvnextv2.web.build_app`."""
    folder = Path(runs)
    found, problems = find_runs(folder)
    models: dict[str, Any] = {}
    for task, run in found.items():
        try:
            models[task] = _load(run)
        except (FileNotFoundError, ValueError) as error:
            problems.append(f"{run.checkpoint}: {error}")
    pretrained = found["pretraining"].checkpoint if "pretraining" in found else None
    tabs: dict[str, tuple[str, Callable[..., None]]] = dict(
        pretraining=("Reconstruction", _reconstruction_tab),
        detection=("Detection", _detection_tab),
        segmentation=("Segmentation", _segmentation_tab),
    )
    with gr.Blocks(
        title="ConvNeXt V2",
        analytics_enabled=False,
        delete_cache=(_KEPT_SECONDS, _KEPT_SECONDS),
    ) as app:
        gr.HTML(words.heading(folder, problems))
        for task in TASKS:
            name, fill = tabs[task]
            with gr.Tab(name):
                if task in models:
                    fill(models[task], *_examples(task, found))
                else:
                    gr.Markdown(words.missing(task, folder, pretrained), elem_classes="missing")
    return app


def launch(app: gr.Blocks, host: str, port: int) -> str:
    """Start serving, with the look and the limits of the project.

    Args:
        app: What `build` returns.
        host: Address to listen on.
        port: TCP port.

    Returns:
        Address of the page, which is served until `app.close()`.

    Raises:
        ValueError: Address or port cannot be used.
    """
    if not 1 <= port <= 65535:
        raise ValueError(f"the port must lie in 1 to 65535, got {port}")
    try:
        _, address, _ = app.queue(max_size=32).launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            share=False,
            ssr_mode=False,
            enable_monitoring=False,
            max_file_size=f"{MAX_MEGABYTES}mb",
            quiet=True,
            run_history=False,
            footer_links=[],
            theme=theme(),
            head=HEAD,
        )
    except OSError as error:
        raise ValueError(
            f"cannot serve at {host}, port {port}: {error}; choose another with --port"
        ) from error
    return address


def _load(run: Run) -> Reconstructor | Predictor:
    device = choose_device("auto")
    if run.task == "pretraining":
        return Reconstructor(run, device)
    return Predictor(run.checkpoint, run.config, device)


def _examples(task: str, found: dict[str, Run]) -> tuple[str, list[str]]:
    """A label and pictures to begin with.

    Pre-training holds nothing out: it gets those of a task that does, else its own.
    """
    for name in [task] if task != "pretraining" else TASKS[1:]:
        if name in found and (paths := held_out_images(found[name])):
            return f"Held out from the {name} run", [str(path) for path in paths]
    own = training_images(found[task])
    return f"From the {task} run's own images", [str(path) for path in own]


def _reconstruction_tab(model: Reconstructor, label: str, examples: Sequence[str]) -> None:
    scale = max(1, round(_SHOWN_SIDE / max(model.size_HW)))

    def draw(pixels_HWC: NDArray[np.uint8], mask_hw: NDArray[np.bool_]) -> tuple[Any, ...]:
        panels = [enlarge(panel, scale) for panel in model.reconstruct(pixels_HWC, mask_hw)]
        original, masked, prediction, composite = panels
        status = words.status(f"{describe(mask_hw)}. Click a cell to remove or show it.")
        masked = draw_cells(masked, model.grid_hw)
        return pixels_HWC, mask_hw, status, masked, prediction, composite, original

    def new_mask(percent: float, seed: int) -> NDArray[np.bool_]:
        return draw_mask(model.grid_hw, percent / 100, seed, model.cell_scale)

    def take(path: str | None, percent: float, seed: int) -> tuple[Any, ...]:
        if path is None:
            return None, None, words.status(_INVITATION), *[None] * 4
        try:
            pixels_HWC = fit(read_upload(path), model.size_HW)
        except ValueError as error:
            return None, None, words.problem(error), *[None] * 4
        return draw(pixels_HWC, new_mask(percent, seed))

    def contrast(path: str) -> float:
        return float(np.asarray(read_upload(path)).std())

    def mask_again(pixels_HWC: Any, percent: float, seed: int) -> tuple[Any, ...]:
        if pixels_HWC is None:
            return (gr.skip(),) * 7
        return draw(pixels_HWC, new_mask(percent, seed))

    def click(pixels_HWC: Any, mask_hw: Any, event: gr.SelectData) -> tuple[Any, ...]:
        height, width = (side * scale for side in model.size_HW)
        try:
            mask_hw = toggle(mask_hw, cell_at(event.index, (width, height), model.grid_hw))
        except ValueError as error:
            return gr.skip(), gr.skip(), words.problem(error), *[gr.skip()] * 4
        return draw(pixels_HWC, mask_hw)

    percent = round(100 * model.mask_ratio)
    # The page opens with the example of most contrast: a dark one shows little.
    start = take(max(examples, key=contrast, default=None), percent, 0)
    pixels, mask = (gr.State(value, time_to_live=_KEPT_SECONDS) for value in start[:2])
    seed = gr.State(0)
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            upload = _upload()
            ratio = gr.Slider(5, 95, percent, step=5, label="Mask ratio in percent")
            again = gr.Button("New random mask", variant="primary")
            status = gr.HTML(start[2])
            _offer(examples, label, upload)
        with gr.Column(scale=5, min_width=280):
            with gr.Row():
                masked = _picture("Masked", start[3], "masked", buttons=[])
                prediction = _picture("Prediction", start[4], "prediction")
            with gr.Row():
                composite = _picture("Composite", start[5], "composite")
                original = _picture("Original", start[6], "original")
    everything = [pixels, mask, status, masked, prediction, composite, original]
    upload.change(take, [upload, ratio, seed], everything, **_ONE_AT_A_TIME)
    ratio.input(
        mask_again, [pixels, ratio, seed], everything, trigger_mode="always_last", **_QUIETLY
    )
    again.click(lambda number: number + 1, seed, seed, api_visibility="private").then(
        mask_again, [pixels, ratio, seed], everything, **_QUIETLY
    )
    masked.select(click, [pixels, mask], everything, **_QUIETLY)


def _detection_tab(model: Predictor, label: str, examples: Sequence[str]) -> None:
    _prediction_tab(model, lambda made: words.found(made["objects"]), label, examples, 0.5)


def _segmentation_tab(model: Predictor, label: str, examples: Sequence[str]) -> None:
    def tell(made: Mapping[str, Any]) -> str:
        return words.legend(made["shares"], model.classes, model.palette)

    _prediction_tab(model, tell, label, examples, None)


def _prediction_tab(
    model: Predictor,
    tell: Callable[[Mapping[str, Any]], str],
    label: str,
    examples: Sequence[str],
    score: float | None,
) -> None:
    """Upload and examples on the left, picture and figures on the right; a slider for a score."""

    def draw(seen: Any, least: float) -> tuple[Any, Any]:
        if seen is None:
            return gr.skip(), gr.skip()
        picture, sample = seen
        return model.draw(picture, sample, least), tell(model.figures(sample, least))

    def take(path: str | None, least: float) -> tuple[Any, Any, str]:
        if path is None:
            return None, None, words.status(_INVITATION)
        try:
            picture = shrink(read_upload(path))
        except ValueError as error:
            return None, None, words.problem(error)
        seen = picture, model.find(picture)
        return seen, *draw(seen, least)

    def count(path: str) -> int:
        made = model.figures(model.find(shrink(read_upload(path))), score or 0)
        return sum(map(len, made.values()))

    # The page opens with the example in which most is found.
    start = take(max(examples, key=count, default=None), score or 0)
    seen = gr.State(start[0], time_to_live=_KEPT_SECONDS)
    with gr.Row():
        with gr.Column(scale=4, min_width=280):
            upload = _upload()
            least = gr.Slider(
                *(0.05, 0.95, score or 0.05),
                step=0.05,
                label="Least score to show",
                visible=score is not None,
                elem_id=f"{model.task}-score",
            )
            _offer(examples, label, upload)
        with gr.Column(scale=6, min_width=280):
            result = _picture("Result", start[1], f"{model.task}-result")
        with gr.Column(scale=3, min_width=200):
            details = gr.HTML(start[2], elem_id=f"{model.task}-details")
    upload.change(take, [upload, least], [seen, result, details], **_ONE_AT_A_TIME)
    least.input(draw, [seen, least], [result, details], trigger_mode="always_last", **_QUIETLY)


def _upload() -> gr.Image:
    upload = gr.Image(
        label="Your picture", type="filepath", sources=["upload", "clipboard"], height=200
    )
    # Gradio would decode the file, without limits and with messages of its own.
    upload.preprocess = lambda payload: None if payload is None else payload.path
    return upload


def _offer(examples: Sequence[str], label: str, upload: gr.Image) -> None:
    if examples:
        gr.Examples([[path] for path in examples], upload, label=label)


def _picture(
    label: str, value: Image.Image | None, name: str, buttons: Sequence[str] = ("download",)
) -> gr.Image:
    return gr.Image(
        value,
        label=label,
        format="png",
        interactive=False,
        buttons=list(buttons),
        min_width=140,
        elem_id=name,
        elem_classes="picture",
    )
