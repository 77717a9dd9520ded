"""How a page looks, and its only script. In the dark where the reader's system is; on paper when it is printed."""

CSS = """
:root { color-scheme: light dark; --paper: #ffffff; --card: #ffffff; --ink: #1c2330; --muted: #586273; --rule: #e1e5ea;
  --track: #eff1f4; --edge: #d9dee5; --good: #14713f; --bad: #b3261e; --link: #2456b8; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #12161d; --card: #181d26; --ink: #e6e9ee; --muted: #a0aab8; --rule: #2c3440; --track: #232a35;
    --edge: #2c3440; --good: #5fc98d; --bad: #ff8a80; --link: #8ab4ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1200px; padding: 28px 32px 64px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 40px 0 6px; padding-top: 14px; border-top: 1px solid var(--rule); }
p { margin: 4px 0 10px; max-width: 78ch; }
.muted, p.note { color: var(--muted); }
p.note { max-width: none; }
h3 { font-size: 15px; margin: 16px 0 2px; }
.good { color: var(--good); } .bad { color: var(--bad); font-weight: 600; }
.lead { font-size: 17px; margin: 14px 0 4px; max-width: none; }
code { font: 13px/1.5 ui-monospace, Menlo, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
pre { background: var(--track); border-radius: 6px; padding: 10px 14px; margin: 10px 0; white-space: pre-wrap; }
nav { margin: 14px 0 0; display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 14px; }
a { color: var(--link); text-decoration: none; } a:hover { text-decoration: underline; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 12px 5px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule); }
th { color: var(--muted); font-weight: 600; vertical-align: bottom; line-height: 1.25; }
td.number, th.number { text-align: right; white-space: nowrap; }
th.run, td.run { white-space: nowrap; position: sticky; left: 0; background: var(--paper); color: var(--ink); }
tr:hover td { background: var(--track); }
.dot { display: inline-block; width: 10px; height: 10px; border-radius: 50%; margin-right: 8px; }
svg { display: block; max-width: 100%; height: auto; font-family: inherit; }
svg.chart { font-size: 12.5px; }
svg text { dominant-baseline: central; }
.chart text { fill: var(--ink); } .chart text.muted { fill: var(--muted); }
.chart text.on-light { fill: #16202e; } .chart text.on-dark { fill: #ffffff; }
.chart .rule { stroke: var(--rule); fill: none; }
.chart .lead { stroke: var(--muted); stroke-width: 0.8; fill: none; }
.chart .best { stroke: var(--muted); stroke-dasharray: 3 4; fill: none; }
.chart circle { stroke: var(--paper); stroke-width: 1.5; }
.curve { fill: none; stroke-linejoin: round; }
.curve.off { display: none; }
.switches { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13.5px; margin: 8px 0; }
.switches label { display: inline-flex; align-items: center; gap: 7px; cursor: pointer; }
.switches input { margin: 0; }
details { border: 1px solid var(--edge); border-radius: 8px; padding: 4px 14px; margin: 5px 0;
  background: var(--card); }
summary { cursor: pointer; font-weight: 600; font-size: 14px; }
/* Pictures that are files elsewhere, in ink on white paper. */
.drawn > svg { fill: var(--ink); }
.drawn > svg > rect[fill="#ffffff"] { fill: transparent; stroke: none; }
.drawn > svg > path[stroke="#e4e4e4"] { stroke: var(--rule); }
.drawn > svg > rect[fill="#f2f2f2"] { fill: var(--track); }
/* A schedule's numbers stand on its colours, but for the ranks' own. */
.schedule > svg { fill: #202020; max-width: none; }
.schedule > svg > rect[fill="#ffffff"] { fill: transparent; stroke: none; }
.schedule > svg > rect[fill="#ffffff"] + text { fill: var(--ink); }
.schedule > svg > rect[fill="#ececec"] { fill: var(--track); }
.schedule > svg > rect[stroke="#ffffff"] { stroke: var(--paper); }
@media print { :root { color-scheme: light; } nav, .switches input { display: none; } h2 { break-after: avoid; } }
"""

SCRIPT = """
document.querySelectorAll("input[data-run]").forEach(function (box) {
  box.addEventListener("change", function () {
    document.querySelectorAll(".run-" + box.dataset.run).forEach(function (curve) {
      curve.classList.toggle("off", !box.checked);
    });
  });
});
"""
