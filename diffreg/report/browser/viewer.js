// Three planes through one point of a registered volume, with the controls that they share.
class Viewer {
  constructor(root, data, channels) {
    Object.assign(this, { root, data, channels });
    this.cursor = [...data.start];
    this.strides = [1, data.shape[0], data.shape[0] * data.shape[1]];
    this.tile = Math.max(...data.shape.map((n, k) => n * data.spacing[k])) / 8;
    this.fader = root.querySelector(".fader input");
    this.painters = painters(channels, this);
    this.listen();
    root.classList.add("live");
    this.planes = [...root.querySelectorAll(".plane")].map((figure) => new Plane(this, figure));
    this.choose();
  }

  listen() {
    const { root } = this;
    for (const input of root.querySelectorAll(".modes input, .shown input, .fader input"))
      input.addEventListener("input", () => this.choose());
    root.querySelector(".worst")?.addEventListener("click", () => this.move(this.data.worst));
  }

  // What the controls say.
  choose() {
    const { root, fader } = this;
    const chosen = root.querySelector(".modes input:checked");
    this.mode = chosen.value;
    this.after = Number(fader.value) / 100;
    fader.disabled = chosen.dataset.fades === "no";
    for (const legend of root.querySelectorAll("[data-mode]"))
      legend.hidden = legend.dataset.mode !== this.mode;
    this.refresh();
  }

  // axis -> index, of one or more axes; what lies outside is taken to the edge.
  move(there) {
    for (const [axis, index] of Object.entries(there))
      this.cursor[axis] = Math.min(Math.max(index, 0), this.data.shape[axis] - 1);
    this.refresh();
  }

  // Draws once before the next frame, however many events there were.
  refresh() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      this.planes.forEach((plane) => plane.draw());
      this.root.querySelector(".place").textContent = this.words();
    });
  }

  outlines() {
    const wanted = (name) => this.root.querySelector(`.shown [value=${name}]`)?.checked;
    const { channels, data: { colours } } = this;
    const found = [];
    if (wanted("mask")) found.push([channels.mask, colours.mask]);
    if (wanted("labels"))
      for (const [name, colour] of [
        [this.movingLabels(), colours.movingOutline], ["fixed_labels", colours.fixedOutline]])
        if (channels[name]) found.push([channels[name], colour]);
    return found;
  }

  // The outlines of the moving image, before or after as most of what is shown.
  movingLabels() {
    return this.after < 0.5 ? "moving_labels" : "warped_labels";
  }

  // (i, j) -> where a node of the plane's mesh goes, in voxels; linear between nodes across it.
  displaced(plane) {
    const { nodes, meshScale } = this.data;
    const counts = nodes.map((axis) => axis.length);
    const strides = [1, counts[0], counts[0] * counts[1]];
    const through = nodes[plane.through];
    const index = this.cursor[plane.through];
    const found = through.findIndex((node) => node >= index);
    const above = found < 0 ? through.length - 1 : found;
    const below = Math.max(above - 1, 0);
    const share = above > below ? (index - through[below]) / (through[above] - through[below]) : 0;
    const u = (axis, at) => this.after * meshScale[axis] *
      this.channels.mesh[at + axis * strides[2] * counts[2]];
    return (i, j) => [[plane.across, i], [plane.up, j]].map(([axis, k]) => {
      const at = i * strides[plane.across] + j * strides[plane.up];
      const [a, b] = [below, above].map((layer) => u(axis, at + layer * strides[plane.through]));
      return nodes[axis][k] + a + share * (b - a);
    });
  }

  // Where the point is, and what the page knows there.
  words() {
    const { data, channels, cursor, strides } = this;
    const full = cursor.map((i, k) => Math.floor((i + 0.5) * data.full[k] / data.shape[k]));
    const times = (matrix) => matrix.slice(0, 3).map(
      (row) => row[3] + row[0] * full[0] + row[1] * full[1] + row[2] * full[2]);
    const at = cursor.reduce((sum, i, k) => sum + i * strides[k], 0);
    const said = [`voxel ${times(data.stored).join(", ")}`];
    if (data.world)
      said.unshift(times(data.world).map((mm, k) =>
        `${(mm < 0 ? "LPI" : "RAS")[k]} ${Math.abs(mm).toFixed(1)}`).join(", ") + " mm");
    const code = channels.determinant[at];
    const size = 2 ** ((code - 128) * data.octaves / 127);
    said.push(code === 0 ? "folded here" : `determinant about ${size.toPrecision(2)}`);
    for (const name of ["fixed_labels", this.movingLabels()])
      if (channels[name] && data.labels)
        said.push(`${name.replace("_labels", "")} label ${data.labels[channels[name][at]]}`);
    return said.join(" \u00b7 ");
  }
}

for (const root of document.querySelectorAll(".viewer"))
  if (window.DecompressionStream) {
    const data = JSON.parse(root.querySelector("script").textContent);
    decoded(data).then((channels) => new Viewer(root, data, channels));
  }
