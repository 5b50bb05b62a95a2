// The 8-bit volumes of the page, and the colours of their voxels.
//
// Volumes are (X, Y, Z) with x fastest; x runs to the patient's right, y to the front, z to the head.
async function inflate(text) {
  const deflated = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([deflated]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Adds up what the page has as differences from what the neighbours before a voxel let expect: the
// mean of the planes through them.
function addUp(v, [X, Y, Z]) {
  const XY = X * Y;
  let at = 0;
  for (let z = 0; z < Z; z++)
    for (let y = 0; y < Y; y++)
      for (let x = 0; x < X; x++, at++) {
        const one = (x && v[at - 1]) + (y && v[at - X]) + (z && v[at - XY]);
        const two = (x && y && v[at - 1 - X]) + (x && z && v[at - 1 - XY]) +
          (y && z && v[at - X - XY]);
        v[at] += Math.min(Math.max(2 * one - two, 0), 765) / 3; // whole numbers modulo 256
      }
  return v;
}

async function decoded(data) {
  const channels = {};
  for (const [name, text] of Object.entries(data.channels))
    channels[name] = await inflate(text);
  for (const name of ["moving", "fixed", "warped", "determinant"])
    addUp(channels[name], data.shape);
  channels.mesh = new Int8Array(channels.mesh.buffer);
  return channels;
}

// mode -> (voxel, whether its tile is the fixed image's) -> red, green, blue, written to `out`.
function painters(channels, state) {
  const { moving, fixed, warped, determinant, palette } = channels;
  const image = (at) => moving[at] + state.after * (warped[at] - moving[at]);
  const grey = (out, value) => { out[0] = out[1] = out[2] = value; };
  return {
    overlay(out, at) { out[0] = out[2] = image(at); out[1] = fixed[at]; },
    image(out, at) { grey(out, image(at)); },
    fixed(out, at) { grey(out, fixed[at]); },
    checkerboard(out, at, tile) { grey(out, tile ? fixed[at] : image(at)); },
    difference(out, at) { grey(out, 127.5 + (image(at) - fixed[at]) / 2); },
    mesh(out, at) { grey(out, moving[at] / 2); },
    determinant(out, at) {
      for (let k = 0; k < 3; k++) out[k] = palette[3 * determinant[at] + k];
    },
  };
}
