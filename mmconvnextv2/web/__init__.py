"""The web demo: what trained runs make of a picture, in a browser, without a network.

Needs gradio (`pip install -r requirements/web.txt`), which only `build_app` and `serve` import.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import gradio

__all__ = ["build_app", "serve"]


def build_app(runs: str | os.PathLike[str]) -> gradio.Blocks:
    """Build the page: reconstruction, detection and segmentation, one tab each.

    A task without a run gets a tab that says which command makes one.

    Args:
        runs: A run's folder, or a folder of runs such as ``work_dirs/demo``.

    Returns:
        The app. `serve` starts it with its theme and its limits.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: gradio is not installed.
    """
    _check_gradio()
    from mmconvnextv2.web.app import build

    return build(runs)


def serve(runs: str | os.PathLike[str], host: str = "127.0.0.1", port: int = 7860) -> None:
    """Build the page and serve it until interrupted.

    Nothing is asked of any other machine: no fonts, no scripts, no statistics.

    Args:
        runs: As of `build_app`.
        host: Address to listen on. Only this machine reaches the default; "0.0.0.0" opens the
            page to everyone who reaches the machine, without a password.
        port: TCP port, 1 to 65535.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: gradio is not installed, or the address or port cannot be used.
    """
    _check_gradio()
    from mmconvnextv2.web.app import build, launch

    app = build(runs)
    print(f"The page is at {launch(app, host, port)} (Ctrl-C stops it)", flush=True)
    app.block_thread()


def _check_gradio() -> None:
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError(
            "the web demo needs gradio, which is not installed: "
            "pip install -r requirements/web.txt, or pip install 'mmconvnextv2[web]'"
        ) from None
