"""How the page looks: a theme of system fonts, and a few rules for both colour schemes."""

from __future__ import annotations

import gradio as gr


def theme() -> gr.themes.Base:
    """Gradio's default theme in blue, with fonts that every machine has."""
    sans = ("system-ui", "Segoe UI", "Liberation Sans", "sans-serif")
    mono = ("ui-monospace", "Liberation Mono", "monospace")
    return gr.themes.Default(
        primary_hue="blue",
        neutral_hue="slate",
        font=[gr.themes.Font(name) for name in sans],
        font_mono=[gr.themes.Font(name) for name in mono],
    )


# In the page's head: what Gradio takes as `css` applies to the inside of its container alone.
HEAD = """<style>
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; }
h1 { font-size: 1.5rem; margin: .4rem 0; }
.status, .problem, .nothing { margin: 0; overflow-wrap: anywhere; }
.problem { padding: .6rem .8rem; border-left: 4px solid #dc2626; border-radius: 4px;
           background: color-mix(in srgb, #dc2626 12%, transparent); }
/* Captions stand above the pictures: over them they would hide what can be clicked. */
.picture > label { position: static !important; width: 100%; border: 0 !important;
                   box-shadow: none !important; border-radius: 0 !important; }
.picture img { max-height: 75vh; }
[id$="-result"] .image-frame { width: 100% !important; }
[id$="-result"] img { width: 100% !important; object-fit: contain !important; }
#masked img { cursor: pointer; }
.legend { list-style: none !important; margin: 0 !important; padding: 0 !important;
          max-height: 75vh; overflow-y: auto; }
.legend li { display: flex; align-items: center; gap: .6rem; padding: .3rem 0;
             border-bottom: 1px solid var(--border-color-primary); }
.legend .name { flex: 1; overflow-wrap: anywhere; }
.legend .figure { font-variant-numeric: tabular-nums; }
.legend meter { width: 4rem; }
.swatch { width: 1rem; height: 1rem; border-radius: 3px; flex: none; }
.untinted { border: 1px dashed var(--body-text-color-subdued); }
.left-out li { overflow-wrap: anywhere; }
.missing pre { white-space: pre-wrap; overflow-wrap: anywhere; }
@media (max-width: 480px) {
  .gradio-container, .gradio-container .app { padding: .5rem !important; }
  .tab-container button { padding: 0 .4rem !important; font-size: .85rem !important; }
  .gallery-item .container, .gallery-item img { width: 3rem !important; height: 3rem !important; }
  .gallery:has(> .gallery-item) { gap: .4rem; }
}
</style>"""
