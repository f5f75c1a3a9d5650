"""The style sheet of the pages: colours by name, set once for light, once for dark, and light again on paper."""

from __future__ import annotations

_LIGHT = (
    "--paper:#fff;--card:#f6f7f9;--ink:#1b1f24;--soft:#59636e;--line:#d5dae0;--good:#1a7f37;--bad:#c62828;--open:#946200;--mark:#0b66c3"
)
_DARK = (
    "--paper:#14171b;--card:#1e2329;--ink:#e8ebef;--soft:#a2adb8;--line:#39424c;--good:#57c26f;--bad:#ff7b72;--open:#e0a83a;--mark:#6cb2ff"
)

STYLE = (
    f":root{{color-scheme:light dark;{_LIGHT}}}"
    f"@media (prefers-color-scheme:dark){{:root{{{_DARK}}}}}"
    """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{font:16px/1.55 system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;color:var(--ink);background:var(--paper);
  max-width:66rem;margin:0 auto;padding:1.5rem 1.25rem 4rem}
h1{font-size:1.5rem;line-height:1.25;margin:0 0 .4rem}
h2{font-size:1.12rem;margin:2.2rem 0 .6rem}
h3{font-size:1rem;margin:1.2rem 0 .3rem}
p{margin:.4rem 0;max-width:46rem}
header .from{color:var(--soft);font-size:.92rem;overflow-wrap:anywhere}
.badge{display:inline-block;font-weight:700;font-size:.82rem;letter-spacing:.03em;padding:.12rem .6rem;border-radius:99px;
  border:1.5px solid currentColor;vertical-align:.15em;white-space:nowrap}
.PASS{color:var(--good)}.FAIL{color:var(--bad)}.INCONCLUSIVE{color:var(--open)}.NONE{color:var(--soft)}
.lead{font-size:1.08rem;max-width:50rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));gap:.75rem;margin:1.2rem 0 0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.7rem .9rem}
.tile b{display:block;font-size:1.5rem;line-height:1.25;font-variant-numeric:tabular-nums}
.tile span{display:block;color:var(--soft);font-size:.86rem;line-height:1.4}
.rules{list-style:none;margin:0;padding:0}
.rules li{display:grid;grid-template-columns:7.2rem minmax(0,1fr) minmax(0,22rem);gap:.3rem 1rem;align-items:center;
  padding:.55rem 0;border-bottom:1px solid var(--line);break-inside:avoid}
.rules .word{font-weight:700;font-size:.82rem}
.rules .why{overflow-wrap:anywhere}
.rules .why small{display:block;color:var(--soft)}
svg.span{width:100%;height:auto;display:block;overflow:visible}
svg.span text{fill:var(--soft);font-size:11px;font-family:inherit;font-variant-numeric:tabular-nums}
svg.span .axis{stroke:var(--line);stroke-width:1}
svg.span .bound{stroke:var(--ink);stroke-width:1.5}
svg.span .out{fill:var(--bad);opacity:.14}
svg.span .bar{stroke:currentColor;stroke-width:5;stroke-linecap:round;opacity:.55}
svg.span .dot{fill:currentColor}
.wide{overflow-x:auto;margin:.4rem -.25rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.92rem;width:100%}
th,td{padding:.38rem .6rem;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}
th{color:var(--soft);font-weight:600;font-size:.84rem;vertical-align:bottom}
.text{text-align:left}
th:first-child,td:first-child{position:sticky;left:0;background:var(--paper)}
tr.chosen td:first-child{background:var(--card)}
td small{display:block;white-space:nowrap}
tr.chosen td{background:var(--card);font-weight:600}
td .note{display:block;min-width:11rem;color:var(--soft);font-weight:400;font-size:.84rem}
td small,li small{color:var(--soft);font-weight:400}
pre{margin:.2rem 0 .8rem;padding:.7rem .9rem;background:var(--card);border:1px solid var(--line);border-radius:.5rem;
  white-space:pre-wrap;overflow-wrap:anywhere;font-size:.86rem;user-select:all}
code,pre{font-family:ui-monospace,'SF Mono',Menlo,Consolas,'DejaVu Sans Mono',monospace}
.does{margin:.8rem 0 0;color:var(--soft);font-size:.92rem}
figure{margin:.3rem 0 0}
figcaption{color:var(--soft);font-size:.9rem;max-width:46rem}
.chart .plot{min-height:200px}
.js-plotly-plot .plotly svg text{fill:var(--ink) !important}
.js-plotly-plot .plotly .gridlayer path,.js-plotly-plot .plotly path.ticks{stroke:var(--line) !important}
.js-plotly-plot .plotly .hoverlayer text{fill:#fff !important}
summary{cursor:pointer}
summary{margin:1.4rem 0 .4rem}
summary h2{display:inline}
ul.plain{padding-left:1.2rem;margin:.3rem 0}
ul.plain li{margin:.25rem 0}
a{color:var(--mark)}
@media (max-width:40rem){
  body{padding:1rem .9rem 3rem;font-size:15px}
  h1{font-size:1.25rem}
  .rules li{grid-template-columns:1fr}
  .tiles{grid-template-columns:repeat(2,minmax(0,1fr))}
  .tile b{font-size:1.2rem}
}
@media print{
"""
    f":root{{color-scheme:light;{_LIGHT}}}"
    """
  @page{margin:14mm}
  body{font-size:10.5pt;max-width:none;padding:0}
  h2{break-after:avoid}
  figure,tr,pre,.tile{break-inside:avoid}
  .wide{overflow:visible}
  .tiles{grid-template-columns:repeat(4,1fr)}
  table{font-size:8.5pt}
  th,td{padding:.25rem .35rem}
  details>summary{list-style:none}
}
"""
)
