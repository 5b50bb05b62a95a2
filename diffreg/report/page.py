"""The frame of a report: one HTML document, its style and the script of the slider.

The script only moves the edge between before and after; without it both halves are on the page.
"""

from __future__ import annotations

from string import Template

STYLE = """
:root {
  --ink: #14181f; --soft: #4a5260; --line: #dfe3e8; --wash: #f5f7f8; --good: #0b6e63;
  --bad: #c4006a; --amber: #8a5200; --amber-wash: #fff3d6; --black: #0b0d10;
}
* { box-sizing: border-box; }
body {
  margin: 0; background: #fff; color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  -webkit-print-color-adjust: exact; print-color-adjust: exact;
}
header, main, footer { max-width: 1240px; margin: 0 auto; padding: 0 28px; }
header { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 6px 28px;
  padding-top: 20px; padding-bottom: 16px; color: var(--soft); font-size: 14px; }
header nav { display: flex; flex-wrap: wrap; gap: 4px 22px; }
header a { color: inherit; text-decoration: none; }
header a:hover { color: var(--ink); text-decoration: underline; text-underline-offset: 4px; }
header b { color: var(--ink); font-size: 17px; letter-spacing: -.01em; }
h1, h2, h3 { line-height: 1.2; letter-spacing: -.015em; margin: 0; overflow-wrap: anywhere; }
h1, .sentence { text-wrap: balance; }
h1 { font-size: clamp(26px, 3.2vw, 38px); font-weight: 650; }
h1.long { font-size: 24px; }
h2 { font-size: 25px; font-weight: 650; margin: 64px 0 20px; padding-top: 20px;
  border-top: 2px solid var(--ink); }
h3 { font-size: 19px; font-weight: 600; }
img { display: block; width: 100%; border-radius: 6px; background: var(--black); }
figure { margin: 0; min-width: 0; }
figcaption { margin-top: 7px; font-size: 14px; line-height: 1.4; color: var(--soft);
  overflow-wrap: anywhere; }
.hint { max-width: 92ch; margin: -10px 0 26px; color: var(--soft); font-size: 15px; }
figcaption b { color: var(--ink); font-weight: 600; }
.hero { display: grid; grid-template-columns: 1.15fr 1fr; gap: 28px 52px; align-items: center;
  padding: 20px 0 8px; }
.hero.alone { grid-template-columns: 1fr; }
.warnings { display: flex; gap: 14px; margin: 8px 0 20px; padding: 14px 18px;
  border: 1px solid #e0a63a; border-left-width: 6px; border-radius: 8px;
  background: var(--amber-wash); color: var(--ink); }
.warnings > div { min-width: 0; }
.warnings svg { flex: none; width: 26px; height: 26px; color: var(--amber); }
.warnings b { color: var(--amber); font-size: 17px; }
.warnings ul { margin: 2px 0 0; padding-left: 20px; overflow-wrap: anywhere; }
.sentence { display: flex; gap: 12px; margin: 18px 0 0; font-size: 21px; line-height: 1.35;
  font-weight: 550; color: var(--good); }
.sentence + .sentence { margin-top: 10px; font-size: 17px; }
.sentence.bad, .badge.bad { color: var(--bad); }
.sentence.warned { color: var(--amber); }
.sentence span { min-width: 0; overflow-wrap: break-word; }
.sentence svg { flex: none; width: 28px; height: 28px; }
.sentence + .sentence svg { width: 22px; height: 22px; margin: 0 3px; }
/* Two to a line; what needs more room than half of one, such as a long word, gets its own. */
.verdict { display: flex; flex-wrap: wrap; gap: 0 32px; margin: 22px 0 0; }
.verdict div { flex: 1 1 calc(50% - 16px); max-width: 100%; display: flex;
  flex-direction: column; justify-content: space-between; border-top: 1px solid var(--line);
  padding: 11px 0 13px; }
.verdict dt { font-size: 15px; line-height: 1.35; color: var(--soft); }
.verdict dd { margin: 3px 0 0; font-size: 31px; line-height: 1.2; font-weight: 650;
  letter-spacing: -.02em; font-variant-numeric: tabular-nums; overflow-wrap: break-word; }
.verdict dd.long { font-size: 22px; }
.before { color: var(--soft); font-weight: 450; font-size: .74em; }
.arrow { color: var(--soft); font-weight: 400; padding: 0 .12em; font-size: .8em; }
.compare { --x: 50%; position: relative; border-radius: 10px; overflow: hidden; margin: 0 auto;
  background: var(--black); }
.compare img { border-radius: 0; height: 100%; }
.compare .over { position: absolute; inset: 0; clip-path: inset(0 calc(100% - var(--x)) 0 0); }
.compare .edge { position: absolute; inset: 0 auto 0 var(--x); width: 2px; margin-left: -1px;
  background: #fff; pointer-events: none; }
.compare .edge::after { content: "\\2194"; position: absolute; top: 50%; left: 50%; width: 38px;
  height: 38px; margin: -19px; border-radius: 50%; background: #fff; color: var(--ink);
  font: 600 20px/36px system-ui; text-align: center; box-shadow: 0 1px 6px rgb(0 0 0 / .4); }
.compare span { position: absolute; top: 12px; padding: 2px 10px; border-radius: 20px;
  background: rgb(0 0 0 / .62); color: #fff; font-size: 14px; pointer-events: none; }
.compare span:nth-of-type(1) { left: 12px; }
.compare span:nth-of-type(2) { right: 12px; }
.compare input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0;
  cursor: ew-resize; }
.compare input:focus-visible ~ .edge::after { outline: 3px solid #2c7be5; }
.hero figcaption { text-align: center; }
.key { white-space: nowrap; }
.key::before { content: ""; display: inline-block; width: .72em; height: .72em; margin-right: .32em;
  border-radius: 2px; background: var(--c); box-shadow: inset 0 0 0 1px rgb(0 0 0 / .18); }
.pair { margin-bottom: 52px; }
.pair > .top { display: flex; flex-wrap: wrap; gap: 4px 18px; align-items: baseline;
  margin-bottom: 4px; }
.badge { color: var(--good); font-size: 15px; font-weight: 600; }
.numbers { display: flex; flex-wrap: wrap; gap: 2px 26px; margin: 0 0 14px; font-size: 15px; }
.numbers div { display: flex; gap: 7px; }
.numbers dt { color: var(--soft); }
.numbers dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; }
.numbers .before, .numbers .arrow { font-size: 1em; }
.numbers .arrow { padding: 0 .3em; }
.panels { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 24px 18px; }
.row .panels { grid-template-columns: repeat(6, minmax(0, 1fr)); gap: 10px; }
.row { border-top: 1px solid var(--line); padding-top: 18px; margin-bottom: 26px; }
.row figcaption { font-size: 13px; margin-top: 4px; }
.scale { display: block; margin-top: 6px; height: 10px; border-radius: 3px; }
.ends { display: flex; justify-content: space-between; gap: 8px; font-size: 13px;
  line-height: 1.3; }
.ends span:last-child { text-align: right; }
.fold { display: block; margin-top: 4px; color: var(--ink); }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr));
  gap: 28px; }
.curves.one { max-width: 760px; }
.curves img { background: none; border-radius: 0; }
.scroll { overflow-x: auto; position: relative; }
table { border-collapse: collapse; width: 100%; font-size: 15px;
  font-variant-numeric: tabular-nums; }
th, td { padding: 7px 12px; text-align: right; white-space: nowrap; }
th:first-child { text-align: left; padding-left: 0; white-space: normal; min-width: 150px; }
thead th { vertical-align: bottom; border-bottom: 2px solid var(--ink); font-weight: 600;
  white-space: normal; }
thead small { display: block; color: var(--soft); font-weight: 400; }
tbody th { font-weight: 400; }
tbody tr { border-bottom: 1px solid var(--line); }
tbody .group th { padding-top: 22px; font-weight: 650; }
td.best { font-weight: 700; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.notes { max-width: 78ch; padding-left: 20px; }
.notes li { margin-bottom: 6px; }
.origin { max-width: 100ch; margin: 0; }
.origin div { display: grid; grid-template-columns: 120px minmax(0, 1fr); gap: 4px 20px;
  padding: 7px 0; border-bottom: 1px solid var(--line); }
.origin dt { color: var(--soft); }
.origin dd { margin: 0; overflow-wrap: anywhere; }
.origin .command { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, monospace; font-size: 14px;
  line-height: 1.6; }
footer { margin-top: 56px; padding-top: 18px; padding-bottom: 36px; color: var(--soft);
  font-size: 14px; }
footer p { margin: 0 0 6px; max-width: 100ch; }
@media (max-width: 900px) {
  .hero { grid-template-columns: 1fr; }
  .panels { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 18px 12px; }
  .row .panels { grid-template-columns: repeat(3, minmax(0, 1fr)); }
}
@media (max-width: 560px) {
  header, main, footer { padding-left: 18px; padding-right: 18px; }
  .verdict { gap: 0 20px; }
  .verdict div { flex-basis: calc(50% - 10px); }
  .verdict dd { font-size: 25px; }
  .verdict dd.long { font-size: 19px; }
  .sentence { font-size: 19px; }
  .warnings { padding: 12px 14px; gap: 10px; }
  .origin div { grid-template-columns: 1fr; }
}
@media print {
  @page { margin: 14mm; }
  body { font-size: 11pt; }
  header, main, footer { padding-left: 0; padding-right: 0; }
  header nav { display: none; }
  h2, .top, .numbers, .hint, thead { break-after: avoid; }
  .group { break-after: avoid; }
  figure, .top, .row, tr, .hero, .warnings, .origin div, .numbers, .hint { break-inside: avoid; }
  .ends { font-size: 8pt; }
  .hero { grid-template-columns: 1.15fr 1fr; column-gap: 30px; }
  .verdict dd { font-size: 17pt; }
  .verdict dd.long { font-size: 13pt; }
  .curves { grid-template-columns: 1fr 1fr; }
  .panels { grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 12px; }
  .row .panels { grid-template-columns: repeat(6, minmax(0, 1fr)); }
  .scroll { overflow: visible; }
  table { font-size: 8.5pt; }
  th, td { padding: 4px 5px; }
  th:first-child { min-width: 0; }
  .compare .edge::after { display: none; }
}
"""

SCRIPT = """
for (const input of document.querySelectorAll(".compare input"))
  input.addEventListener("input", () =>
    input.parentNode.style.setProperty("--x", input.value + "%"));
"""

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>$title</title>
<style>$style</style>
</head>
<body>
<header><b>diffreg</b><nav aria-label="Sections">$links</nav></header>
<main>
$body
</main>
<footer>
$credits
<p>Written by diffreg $version.</p>
</footer>
<script>$script</script>
</body>
</html>
""")

HINT = (
    "Warped is the moving image registered onto the fixed one. In the overlays, fixed is green and "
    "the other image magenta, so that what agrees is grey. The mesh is the fixed grid, drawn where "
    "the registration takes it, over the moving image. The local change of size (Jacobian "
    "determinant) is the smallest of the four corners of a cell: below 1, blue, a cell shrinks on "
    "its way to the moving image, above 1, amber, it grows, and at 0 or below it folds."
)

ROWS_HINT = (
    "Three planes of each pair, before and after registration: fixed is green and the moving "
    "image magenta, so that what agrees is grey. The patient's left is on the left; where cells "
    "fold, the planes cross in the worst one."
)

VOLUME_HINT = (
    "The local change of size (Jacobian determinant) is the smallest of the eight corners of a "
    "cell, the box between eight voxel centres: below 1, blue, a cell shrinks on its way to the "
    "moving image, above 1, amber, it grows, and at 0 or below it folds. All cells are counted; "
    "both scales are logarithmic."
)

TICK = (
    '<svg viewBox="0 0 24 24" aria-hidden="true"><circle cx="12" cy="12" r="12" '
    'fill="currentColor"/><path d="M6.5 12.5l3.8 3.8 7.4-8" fill="none" stroke="#fff" '
    'stroke-width="2.4"/></svg>'
)
WARNING = (
    '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M12 1L24 23H0z" fill="currentColor"/>'
    '<path d="M12 9v6.5M12 17.5v2.5" stroke="#fff" stroke-width="2.4"/></svg>'
)
