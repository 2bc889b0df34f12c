/** Small charts of the last minutes: one area, its scale, and the figures as text for those who cannot see it. */

import {clockTime, duration} from "./format.js";

const WIDTH = 600, HEIGHT = 64, SVG = "http://www.w3.org/2000/svg";

const known = (value) => typeof value === "number";

function ceiling(value) {                       // the next of 1, 2, 5, 10, 20, ... or of smaller such steps
  if (value <= 0) return 1;
  const power = Math.pow(10, Math.floor(Math.log10(value)));
  return power * [1, 2, 5, 10].find((step) => step * power >= value * 0.999);
}

/** Path data of the runs of known values; `closed`: down to the axis, as an area. */
function path(values, top, closed) {
  const x = (i) => (values.length < 2 ? 0 : i * WIDTH / (values.length - 1)).toFixed(1);
  const y = (value) => (HEIGHT - 1 - value / top * (HEIGHT - 4)).toFixed(1);
  let d = "", first = -1;
  values.forEach((value, i) => {
    if (!known(value)) return;
    if (first < 0) first = i;
    d += (first === i ? "M" : "L") + x(i) + " " + y(value);
    if (i + 1 === values.length || !known(values[i + 1])) {
      const alone = first < i ? 0 : values.length < 2 ? WIDTH : 1;        // one would not be seen
      if (alone) d += "h" + alone;
      if (closed) d += "V" + HEIGHT + "H" + x(first) + "Z";
      first = -1;
    }
  });
  return d;
}

export class Chart {
  /** `figure`: a <figure> with a <figcaption>, .now, .most, .start and <svg>; `show(value)`: text of a value; `most`:
   *  end of the scale, if it is always the same. */
  constructor(figure, show, most) {
    this.figure = figure;
    this.show = show;
    this.most = most;
    this.svg = figure.querySelector("svg");
    this.output = figure.querySelector(".now");
    this.title = figure.querySelector("figcaption").textContent;
    this.svg.setAttribute("viewBox", "0 0 " + WIDTH + " " + HEIGHT);
    this.svg.setAttribute("preserveAspectRatio", "none");
    this.svg.setAttribute("role", "img");
    this.paths = ["area", "line", "cursor"].map((name) => {
      const element = document.createElementNS(SVG, "path");
      element.setAttribute("class", name);
      this.svg.append(element);
      return element;
    });
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.rest());
    this.draw([], 1, 0);
  }

  /** `values`: oldest first, null where nothing is known, `step` seconds apart; the last one is of the epoch `end`. */
  draw(values, step, end) {
    Object.assign(this, {values, step, end});
    const seen = values.filter(known), most = seen.length ? Math.max(...seen) : 0;
    const top = this.most || ceiling(most);
    this.paths[0].setAttribute("d", path(values, top, true));
    this.paths[1].setAttribute("d", path(values, top, false));
    const last = seen.length ? this.show(values[values.length - 1]) : "nothing yet";
    this.told = seen.length ? last + " now, at most " + this.show(most) : last;
    const text = this.title + ": " + this.told;
    this.svg.setAttribute("aria-label", text + ", in the last " + duration(values.length * step));
    this.figure.querySelector(".most").textContent = seen.length ? this.show(top) : "";
    this.figure.querySelector(".start").textContent = seen.length ? duration(values.length * step) + " ago" : "";
    this.rest();
  }

  point(event) {
    const box = this.svg.getBoundingClientRect(), last = this.values.length - 1;
    const i = Math.max(0, Math.min(last, Math.round((event.clientX - box.left) / box.width * last)));
    if (last < 0) return;
    this.paths[2].setAttribute("d", "M" + (last ? i * WIDTH / last : 0).toFixed(1) + " 0V" + HEIGHT);
    this.output.textContent = this.show(this.values[i]) + " at " + clockTime(this.end - (last - i) * this.step);
  }

  rest() {
    this.paths[2].setAttribute("d", "");
    if (this.output.textContent !== this.told) this.output.textContent = this.told;
  }
}
