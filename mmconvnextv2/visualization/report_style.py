"""The style sheet of reports: light and dark, phone and wide screen, paper."""

from __future__ import annotations

STYLE = """\
:root { color-scheme: light dark; --page: #f5f6f8; --card: #fff; --ink: #1d232b; --soft: #5b6570;
  --line: #e2e6eb; --main: #2764c5; --faint: #b5caec; --good: #3f8f5b; --bad: #b26a2b;
  --limit: #c2483f; --shade: 0 1px 2px rgb(20 30 45 / 6%); }
@media screen and (prefers-color-scheme: dark) {
  :root { --page: #0e1116; --card: #171b22; --ink: #e4e9ef; --soft: #98a2ae; --line: #2a3039;
    --main: #6fabff; --faint: #34527e; --good: #62c088; --bad: #e0a062; --limit: #f0817a;
    --shade: none; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { max-width: 64rem; margin: 0 auto; padding: 2.5rem 1.5rem 3rem; background: var(--page);
  color: var(--ink); font: 15px/1.55 -apple-system, "Segoe UI", Roboto, "Helvetica Neue",
  "Noto Sans", "Liberation Sans", Arial, sans-serif; overflow-wrap: break-word; }
header { margin-bottom: 1.75rem; }
h1 { font-size: 1.9rem; line-height: 1.2; letter-spacing: -.015em; font-weight: 650; margin: 0;
  text-wrap: balance; }
h2 { font-size: 1.15rem; line-height: 1.3; letter-spacing: -.005em; font-weight: 620; margin: 0; }
.kicker { margin: 0 0 .35rem; color: var(--main); font-size: .82rem; font-weight: 600; }
.subtitle { margin: .5rem 0 0; color: var(--soft); }
p { margin: 0; max-width: 46rem; }
section { margin-top: 1.25rem; padding: 1.4rem 1.5rem 1.5rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 12px; box-shadow: var(--shade); }
section > * + * { margin-top: 1rem; }
section > p { color: var(--soft); }
section > h2 + p { margin-top: .35rem; }
section > p + p { margin-top: .5rem; }

.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .75rem; }
.tile { padding: .9rem 1.1rem 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 12px; box-shadow: var(--shade); }
.tile span { display: block; }
.tile .label, .tile .hint { color: var(--soft); font-size: .82rem; }
.tile .number { margin: .1rem 0; font-size: 1.55rem; line-height: 1.25; font-weight: 620;
  letter-spacing: -.015em; font-variant-numeric: tabular-nums; }

dl { display: grid; grid-template-columns: repeat(2, 1fr); column-gap: 2.5rem; margin-bottom: 0; }
dl > div { display: grid; grid-template-columns: 9.5rem 1fr; gap: 1rem; padding: .45rem 0;
  border-bottom: 1px solid var(--line); align-items: baseline; }
dt { color: var(--soft); }
dd { margin: 0; min-width: 0; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; }
th, td { padding: .45rem 1.25rem .45rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: baseline; }
th:last-child, td:last-child { padding-right: 0; }
th { color: var(--soft); font-size: .82rem; font-weight: 550; }
td { font-variant-numeric: tabular-nums; }
th.number, td.number { text-align: right; white-space: nowrap; }

.charts { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 1.5rem 1.75rem; }
.chart { display: flex; flex-direction: column; min-width: 0; }
.chart.hero { grid-column: span 2; grid-row: span 2; }
.chart.wide { grid-column: 1 / -1; }
.chart-head { display: flex; justify-content: space-between; align-items: baseline; gap: .75rem;
  font-size: .87rem; }
.chart-title { font-weight: 550; }
.chart-value { color: var(--soft); font-variant-numeric: tabular-nums; white-space: nowrap; }
.plot { position: relative; flex: auto; min-height: 7rem; margin: .6rem .5rem 1.35rem 2.6rem; }
.wide > .plot { min-height: 15rem; }
.plot svg { position: absolute; width: 100%; height: 100%; overflow: visible; }
.plot span { position: absolute; color: var(--soft); font-size: .72rem; line-height: 1;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.plot .y { right: calc(100% + .5rem); transform: translateY(-50%); }
.plot .x { top: calc(100% + .45rem); transform: translateX(-50%); }
.plot path { fill: none; vector-effect: non-scaling-stroke; stroke-linecap: round;
  stroke-linejoin: round; stroke-width: 1.75px; }
.plot .grid { stroke: var(--line); stroke-width: 1px; }
.plot .main { stroke: var(--main); stroke-width: 2.25px; }
.plot .dots { stroke-width: 6px; }
.plot .faint { stroke: var(--faint); stroke-width: 1.25px; }
.plot .good { stroke: var(--good); stroke-width: 1.25px; }
.plot .bad { stroke: var(--bad); stroke-width: 1.25px; }
.plot .limit { stroke: var(--limit); stroke-width: 1.25px; stroke-dasharray: 5 5; }
.chart-foot { display: flex; justify-content: space-between; gap: 1rem; margin-left: 2.6rem;
  color: var(--soft); font-size: .75rem; }
.xlabel { margin-left: auto; white-space: nowrap; }
.key { display: inline-block; white-space: nowrap; margin-right: 1.1rem; }
.key::before { content: ""; display: inline-block; width: 1.1rem; margin-right: .4rem;
  vertical-align: middle; border-top: 2px solid; }
.key.main::before { border-color: var(--main); }
.key.faint::before { border-color: var(--faint); }
.key.good::before { border-color: var(--good); }
.key.bad::before { border-color: var(--bad); }
.key.limit::before { border-top: 2px dashed var(--limit); }

.gallery { display: grid; grid-template-columns: repeat(var(--wide), minmax(0, 1fr));
  gap: .75rem; align-items: start; }
.gallery figure { margin: 0; }
section > figure { margin: 1.1rem 0 0; }
figure img { display: block; max-width: 100%; height: auto; border-radius: 6px; }
.gallery img { width: 100%; }
figcaption { margin-top: .45rem; color: var(--soft); font-size: .85rem; }
figcaption:empty { display: none; }
.swatches { display: flex; flex-wrap: wrap; gap: .35rem 1.1rem; margin-bottom: 0; padding: 0;
  list-style: none; font-size: .85rem; }
.swatches i { display: inline-block; width: .8rem; height: .8rem; margin-right: .45rem;
  border-radius: 3px; vertical-align: -.08rem; }
summary { cursor: pointer; color: var(--main); font-weight: 550; }
pre { max-height: 32rem; margin: .9rem 0 0; padding: 1rem; overflow: auto; background: var(--page);
  border-radius: 8px; font: .78rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas,
  "Liberation Mono", monospace; overflow-wrap: normal; }
footer { margin-top: 1.5rem; color: var(--soft); font-size: .82rem; }

@media (max-width: 720px) {
  body { padding: 1.5rem 1rem 2rem; }
  h1 { font-size: 1.5rem; }
  section { padding: 1.1rem 1rem 1.2rem; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .6rem; }
  .tile { padding: .75rem .85rem .8rem; }
  .tile .number { font-size: 1.3rem; }
  dl { grid-template-columns: 1fr; }
  dl > div { grid-template-columns: 7.5rem 1fr; gap: .75rem; }
  .charts { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1.4rem 1rem; }
  .chart.hero { grid-column: 1 / -1; }
  .plot { min-height: 6rem; margin-left: 2.3rem; }
  .hero > .plot, .wide > .plot { min-height: 12rem; }
  .chart-foot { margin-left: 2.3rem; flex-wrap: wrap; row-gap: .35rem; }
  .xlabel { order: -1; flex: 0 0 100%; text-align: right; }
  .wide > .chart-head, .hero > .chart-head { flex-wrap: wrap; row-gap: 0; }
  .small > .chart-head { font-size: .8rem; }
  th, td { padding-right: .9rem; }
  td:last-child { overflow-wrap: anywhere; }
  th.number { white-space: normal; }
  .gallery { grid-template-columns: repeat(var(--narrow), minmax(0, 1fr)); gap: .6rem; }
}
@media print {
  :root { color-scheme: light; }
  body { max-width: none; padding: 0; background: none; font-size: 10pt; }
  section, .tile { border-color: #ccd2d9; box-shadow: none; }
  h2 { break-after: avoid; }
  figure, tr, .chart, .tile, dl > div { break-inside: avoid; }
  details { display: none; }
}"""
