// Reads the curves out under the pointer. The page is whole without it.
"use strict";
const written = (y) => (y !== 0 && Math.abs(y) < 0.001 ? y.toExponential(2) : y.toLocaleString("en", { maximumSignificantDigits: 4 }));

for (const figure of document.querySelectorAll("figure[data-chart]")) {
  const chart = JSON.parse(figure.dataset.chart);
  const drawing = figure.querySelector("svg");
  const cross = figure.querySelector(".cross");
  const output = figure.querySelector("output");

  const nearest = (xs, x) => {
    let best = 0;
    xs.forEach((one, i) => { if (Math.abs(one - x) < Math.abs(xs[best] - x)) best = i; });
    return best;
  };
  const show = (event) => {
    const box = drawing.getBoundingClientRect();
    const x = chart.last * Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    const first = chart.series[0];
    const step = first.x[nearest(first.x, x)];
    const texts = chart.series.map((series) => {
      const i = nearest(series.x, step);
      const where = series.x[i] === step ? "" : ` (step ${series.x[i].toLocaleString("en")})`;
      return `${chart.series.length > 1 ? series.name + " " : ""}${written(series.y[i])}${where}`;
    });
    output.textContent = `step ${step.toLocaleString("en")}: ${texts.join(", ")}`;
    cross.setAttribute("d", `M${(1000 * step) / chart.last} 0V1000`);
  };
  drawing.addEventListener("pointermove", show);
  drawing.addEventListener("pointerdown", show);
  drawing.addEventListener("pointerleave", () => { output.textContent = ""; cross.setAttribute("d", ""); });
}
