// Draws curves as an SVG image: two logarithmic axes a panel, lines with their names at their ends, in
// colours that can be read on white and on black. Knows nothing of what the numbers mean.

const PANEL = { width: 420, height: 260, left: 64, top: 40, right: 130, bottom: 48 };
const NAME_HEIGHT = 15;
const STYLE = `
  text { font: 12px system-ui, sans-serif; fill: #57606a; }
  .title { font-weight: 600; fill: #1f2328; }
  .grid { stroke: #8c959f; stroke-opacity: 0.3; }
  .c0 { color: #0969da; } .c1 { color: #1a7f37; } .c2 { color: #bc4c00; } .c3 { color: #8250df; }
  .line { fill: none; stroke: currentColor; stroke-width: 2; }
  .dot { fill: currentColor; }
  .name { fill: currentColor; }
  @media (prefers-color-scheme: dark) {
    text { fill: #9198a1; }
    .title { fill: #f0f6fc; }
    .c0 { color: #4493f8; } .c1 { color: #3fb950; } .c2 { color: #f0883e; } .c3 { color: #ab7df8; }
  }`;

function escape(text) {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
}

/** The powers of ten that enclose all values. */
function decades(values) {
  const low = Math.floor(Math.log10(Math.min(...values)));
  const high = Math.max(low + 1, Math.ceil(Math.log10(Math.max(...values))));
  return Array.from({ length: high - low + 1 }, (_, n) => 10 ** (low + n));
}

/** Maps a value to a place between two ends, by its logarithm. */
function logScale(ticks, from, to) {
  const [low, high] = [Math.log10(ticks[0]), Math.log10(ticks.at(-1))];
  return (value) => from + ((Math.log10(value) - low) / (high - low)) * (to - from);
}

function text(x, y, content, attributes = '') {
  return `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" ${attributes}>${escape(content)}</text>`;
}

function rule(x1, y1, x2, y2) {
  return `<line class="grid" x1="${x1.toFixed(1)}" y1="${y1.toFixed(1)}" x2="${x2.toFixed(1)}" y2="${y2.toFixed(1)}"/>`;
}

function drawLine({ points }, n, x, y) {
  const places = points.map(([a, b]) => [x(a).toFixed(1), y(b).toFixed(1)]);
  const path = places.map(([across, down], i) => `${i === 0 ? 'M' : 'L'}${across} ${down}`).join(' ');
  const dots = places.map(([across, down]) => `<circle class="dot c${n}" cx="${across}" cy="${down}" r="3"/>`);
  return [`<path class="line c${n}" d="${path}"/>`, ...dots];
}

/** Where the names of the lines go: at their ends, but never one over another. */
function placeNames(lines, y) {
  const names = lines.map(({ name, points }, n) => ({ name, n, at: y(points.at(-1)[1]) }));
  names.sort((a, b) => a.at - b.at);
  names.forEach((one, i) => (one.at = Math.max(one.at, (names[i - 1]?.at ?? -Infinity) + NAME_HEIGHT)));
  return names;
}

function drawPanel({ title, xLabel, formatX, formatY, lines }) {
  const { width, height, left, top, right, bottom } = PANEL;
  const points = lines.flatMap((line) => line.points);
  const xTicks = decades(points.map(([a]) => a));
  const yTicks = decades(points.map(([, b]) => b));
  const x = logScale(xTicks, left, left + width);
  const y = logScale(yTicks, top + height, top);
  const xLast = Math.max(...points.map(([a]) => a));
  return [
    text(left, top - 16, title, 'class="title"'),
    ...xTicks.flatMap((tick) => [
      rule(x(tick), top, x(tick), top + height),
      text(x(tick), top + height + 18, formatX(tick), 'text-anchor="middle"'),
    ]),
    ...yTicks.flatMap((tick) => [
      rule(left, y(tick), left + width, y(tick)),
      text(left - 8, y(tick) + 4, formatY(tick), 'text-anchor="end"'),
    ]),
    text(left + width / 2, top + height + bottom - 10, xLabel, 'text-anchor="middle"'),
    ...lines.flatMap((line, n) => drawLine(line, n, x, y)),
    ...placeNames(lines, y).map(({ name, n, at }) => text(x(xLast) + 8, at + 4, name, `class="name c${n}"`)),
  ].join('\n');
}

/** Panels one below the other: [{title, xLabel, formatX, formatY, lines: [{name, points: [[x, y], …]}]}]. */
export function plot(panels) {
  const panelHeight = PANEL.top + PANEL.height + PANEL.bottom;
  const width = PANEL.left + PANEL.width + PANEL.right;
  const height = panelHeight * panels.length;
  const drawn = panels.map((panel, n) => `<g transform="translate(0 ${n * panelHeight})">\n${drawPanel(panel)}\n</g>`);
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" role="img">
<style>${STYLE}
</style>
${drawn.join('\n')}
</svg>
`;
}
