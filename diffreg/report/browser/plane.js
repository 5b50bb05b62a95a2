// One plane of the volume: its axis `across` runs to the right, its axis `up` upwards.
class Plane {
  constructor(viewer, figure) {
    Object.assign(this, { viewer, figure });
    [this.across, this.up, this.through] = figure.dataset.axes.split(" ").map(Number);
    [this.columns, this.rows] = [this.across, this.up].map((axis) => viewer.data.shape[axis]);
    this.slice = figure.querySelector(".slice");
    this.lines = figure.querySelector(".lines");
    this.slider = figure.querySelector("input");
    [this.slice.width, this.slice.height] = [this.columns, this.rows];
    this.pixels = new ImageData(this.columns, this.rows);
    this.listen();
  }

  listen() {
    this.slider.addEventListener("input", () => this.go(Number(this.slider.value)));
    this.lines.addEventListener("keydown", (event) => this.key(event));
    this.lines.addEventListener("pointerdown", (event) => {
      this.lines.setPointerCapture(event.pointerId);
      if (event.pointerType !== "touch") this.point(event); // a finger may want to scroll the page
    });
    for (const name of ["pointermove", "pointerup"])
      this.lines.addEventListener(name, (event) => {
        if (this.lines.hasPointerCapture(event.pointerId)) this.point(event);
      });
    new ResizeObserver(() => this.viewer.refresh()).observe(this.lines);
  }

  go(index) {
    this.viewer.move({ [this.through]: index });
  }

  key(event) {
    const here = this.viewer.cursor[this.through];
    const last = this.viewer.data.shape[this.through] - 1;
    const there = {
      ArrowUp: here + 1, ArrowRight: here + 1, ArrowDown: here - 1, ArrowLeft: here - 1,
      PageUp: here + 10, PageDown: here - 10, Home: 0, End: last,
    }[event.key];
    if (there === undefined) return;
    event.preventDefault();
    this.go(there);
  }

  // The voxel under a mouse or a finger becomes the point of all planes.
  point(event) {
    const box = this.lines.getBoundingClientRect();
    const column = (event.clientX - box.left) / box.width * this.columns;
    const row = (event.clientY - box.top) / box.height * this.rows;
    this.viewer.move({
      [this.across]: Math.floor(column), [this.up]: this.rows - 1 - Math.floor(row),
    });
  }

  draw() {
    const { data, cursor, mode } = this.viewer;
    this.drawSlice();
    this.drawLines();
    const words = `slice ${cursor[this.through] + 1} of ${data.shape[this.through]}`;
    this.figure.querySelector("output").textContent = words;
    this.slider.value = cursor[this.through];
    this.lines.setAttribute("aria-valuenow", cursor[this.through] + 1);
    this.lines.setAttribute("aria-valuetext", words);
    // A cell lies between voxel centres: half a voxel to the right and up.
    const half = (axis, count) => mode === "determinant" ? 100 * data.half[axis] / count : 0;
    this.slice.style.translate =
      `${half(this.across, this.columns)}% ${-half(this.up, this.rows)}%`;
    this.slice.classList.toggle("cells", mode === "determinant");
  }

  // The voxel at the left end of a row, and the step to the next one in it.
  row(row) {
    const { strides, cursor } = this.viewer;
    const start = cursor[this.through] * strides[this.through] +
      (this.rows - 1 - row) * strides[this.up];
    return [start, strides[this.across]];
  }

  drawSlice() {
    const { data, tile } = this.viewer;
    const paint = this.viewer.painters[this.viewer.mode];
    const out = this.pixels.data;
    const colour = new Float64Array(3);
    for (let row = 0, to = 0; row < this.rows; row++) {
      const [start, step] = this.row(row);
      const down = Math.floor((row + 0.5) * data.spacing[this.up] / tile);
      for (let column = 0; column < this.columns; column++, to += 4) {
        const right = Math.floor((column + 0.5) * data.spacing[this.across] / tile);
        paint(colour, start + column * step, (down + right) % 2);
        out.set(colour, to);
        out[to + 3] = 255;
      }
    }
    this.slice.getContext("2d").putImageData(this.pixels, 0, 0);
  }

  drawLines() {
    const ratio = window.devicePixelRatio || 1;
    const { clientWidth, clientHeight } = this.lines;
    [this.lines.width, this.lines.height] = [clientWidth * ratio, clientHeight * ratio];
    this.scale = [clientWidth / this.columns, clientHeight / this.rows]; // pixels of a voxel
    const context = this.lines.getContext("2d");
    context.scale(ratio, ratio);
    if (this.viewer.mode === "mesh") this.drawMesh(context);
    for (const [channel, colour] of this.viewer.outlines()) this.outline(context, channel, colour);
    this.drawCross(context);
    this.drawWorst(context);
  }

  // Where a point of the plane, in voxels, lies in the picture.
  place(across, up) {
    return [(across + 0.5) * this.scale[0], (this.rows - 0.5 - up) * this.scale[1]];
  }

  outline(context, labels, colour) {
    const [wide, high] = this.scale;
    context.beginPath();
    for (let row = 0; row < this.rows; row++) {
      const [start, step] = this.row(row);
      const below = row + 1 < this.rows ? this.row(row + 1)[0] : start;
      for (let column = 0; column < this.columns; column++) {
        const at = start + column * step;
        const [x, y] = [(column + 1) * wide, (row + 1) * high];
        if (column + 1 < this.columns && labels[at] !== labels[at + step]) {
          context.moveTo(x, y - high);
          context.lineTo(x, y);
        }
        if (labels[at] !== labels[below + column * step]) {
          context.moveTo(x - wide, y);
          context.lineTo(x, y);
        }
      }
    }
    Object.assign(context, { strokeStyle: colour, lineWidth: 1.25 });
    context.stroke();
  }

  drawMesh(context) {
    const [right, upwards] = [this.across, this.up].map((axis) => this.viewer.data.nodes[axis]);
    const at = this.viewer.displaced(this);
    const every = (n) => [...Array(n).keys()].filter((k) => k % 2 === 0 || k === n - 1);
    context.beginPath();
    const strand = (points) =>
      points.forEach((point, k) => context[k ? "lineTo" : "moveTo"](...this.place(...point)));
    for (const j of every(upwards.length)) strand(right.map((_, i) => at(i, j)));
    for (const i of every(right.length)) strand(upwards.map((_, j) => at(i, j)));
    Object.assign(context, { strokeStyle: this.viewer.data.colours.mesh, lineWidth: 1 });
    context.stroke();
  }

  drawCross(context) {
    const { cursor } = this.viewer;
    const [x, y] = this.place(cursor[this.across], cursor[this.up]);
    const { clientWidth: width, clientHeight: height } = this.lines;
    context.beginPath();
    for (const [a, b, c, d] of [
      [0, y, x - 9, y], [x + 9, y, width, y], [x, 0, x, y - 9], [x, y + 9, x, height]]) {
      context.moveTo(a, b);
      context.lineTo(c, d);
    }
    for (const [colour, lineWidth] of [["#0006", 2.5], ["#fffc", 1]]) {
      Object.assign(context, { strokeStyle: colour, lineWidth });
      context.stroke();
    }
  }

  // A ring round the worst cell, in the slice that it is in.
  drawWorst(context) {
    const { worst, half, folded, colours } = this.viewer.data;
    if (!worst || worst[this.through] !== this.viewer.cursor[this.through]) return;
    const [across, up] = [this.across, this.up].map((axis) => worst[axis] + half[axis]);
    context.beginPath();
    context.arc(...this.place(across, up), 8, 0, 2 * Math.PI);
    const colour = folded ? colours.folded : "#fff";
    for (const [strokeStyle, lineWidth] of [["#000a", 4.5], [colour, 2.5]]) {
      Object.assign(context, { strokeStyle, lineWidth });
      context.stroke();
    }
  }
}
