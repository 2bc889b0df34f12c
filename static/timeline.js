/** Tasks over time: a lane for each server, a bar for each task, as wide as it took. The table below it has the same in
 *  words; what is under the pointer is told in a line of text. */

import {clockTime, now, plural, took} from "./format.js";

const COLOURS = {running: "--calm", done: "--main", failed: "--bad", terminated: "--wait", abandoned: "--wait"};
const HEIGHT = 260, LANE_MIN = 4, LANE_MAX = 18, AXIS = 20, TICK = 130, LABELS = 130, NARROW = 600;    // pixels
const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 43200, 86400];

export class Timeline {
  /** `canvas`: where to draw; `told`: an element for the task under the pointer. */
  constructor(canvas, told) {
    this.canvas = canvas;
    this.told = told;
    this.tasks = [];
    this.bars = [];                 // [x, y, width, height, task] of what is drawn
    this.pointer = null;            // the last event of the pointer
    for (const kind of ["pointermove", "pointerleave"]) canvas.addEventListener(kind, (event) => this.point(event));
    addEventListener("resize", () => this.draw(this.tasks));
    const dark = matchMedia("(prefers-color-scheme: dark)");
    if (dark.addEventListener) dark.addEventListener("change", () => this.draw(this.tasks));
  }

  draw(tasks) {
    this.tasks = tasks;
    const lanes = [...new Set(tasks.map((task) => task.location))].sort();
    const lane = Math.max(LANE_MIN, Math.min(LANE_MAX, Math.floor(HEIGHT / Math.max(1, lanes.length))));
    const end = now(), start = Math.min(...tasks.map((task) => task.start_time), end - 1);
    this.layOut(lanes.length * lane + AXIS);
    const left = this.width > NARROW && lane >= 12 ? LABELS : 0, scale = (this.width - left) / (end - start);
    const x = (time) => left + (Math.min(Math.max(time, start), end) - start) * scale;
    this.drawAxis(x, start, end, scale);
    if (left) lanes.forEach((name, i) => this.text(name, 0, i * lane + lane / 2, LABELS - 10));
    this.bars = tasks.map((task) => {
      const from = x(task.start_time), width = Math.max(1.5, x(task.end_time || end) - from);
      return [from, lanes.indexOf(task.location) * lane + 1, width, lane - 2, task];
    });
    for (const bar of this.bars) this.drawBar(bar);
    if (this.pointer) this.point(this.pointer);
    const told = plural(tasks.length, "task") + " on " + plural(lanes.length, "server") + " since " + clockTime(start);
    this.canvas.setAttribute("aria-label", "Timeline of " + told + "; the table lists them");
  }

  /** Fit the canvas into the page, in the pixels of the screen. */
  layOut(height) {
    const ratio = devicePixelRatio || 1;
    this.canvas.style.height = height + "px";
    this.width = this.canvas.clientWidth;
    this.height = height;
    this.canvas.width = Math.round(this.width * ratio);
    this.canvas.height = Math.round(height * ratio);
    this.pen = this.canvas.getContext("2d");
    this.pen.scale(ratio, ratio);
    this.pen.textBaseline = "middle";
    this.style = getComputedStyle(this.canvas);
    this.pen.font = "12px " + this.style.fontFamily;
  }

  colour(name) {
    return this.style.getPropertyValue(name).trim();
  }

  text(text, x, y, width) {
    this.pen.fillStyle = this.colour("--faint");
    this.pen.fillText(text, x, y, width);
  }

  drawAxis(x, start, end, scale) {
    const step = STEPS.find((seconds) => seconds * scale >= TICK) || (end - start) / 4;
    for (let time = Math.ceil(start / step) * step; time <= end; time += step) {
      this.pen.fillStyle = this.colour("--line");
      this.pen.fillRect(x(time), 0, 1, this.height - AXIS + 4);
      if (x(time) + 60 < this.width) this.text(clockTime(time), x(time) + 3, this.height - AXIS / 2 + 2);
    }
  }

  drawBar([x, y, width, height, task]) {
    this.pen.fillStyle = this.colour(COLOURS[task.state]);
    this.pen.globalAlpha = task.state === "running" ? 0.6 : 0.85;
    this.pen.fillRect(x, y, width, height);
    this.pen.globalAlpha = 1;
    if (task.state === "failed" && height >= 8) {       // not by its colour alone
      this.pen.fillStyle = this.colour("--panel");
      this.pen.fillRect(x, y + height / 2 - 1, width, 2);
    }
  }

  /** Tell which task is at the pointer, after it or what is drawn has moved. */
  point(event) {
    this.pointer = event;
    const box = this.canvas.getBoundingClientRect(), px = event.clientX - box.left, py = event.clientY - box.top;
    const found = this.bars.find(
      ([x, y, width, height]) => px >= x - 2 && px <= x + width + 2 && py >= y && py <= y + height);
    const task = found && found[4];
    this.told.textContent = task ? [task.name, task.state, "on " + task.location, "at " + clockTime(task.start_time),
                                    took((task.end_time || now()) - task.start_time)].join(", ") : "";
  }
}
