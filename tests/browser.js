// What a reader would call broken, in words: text over text, text out of its box, a page too wide.
const MARGIN = 1; // pixels that rounding may cost
const GAP = 3; // pixels that keep texts of different boxes apart on a line

function visible(element) {
  return !element.closest(".hidden") &&
    element.checkVisibility({ opacityProperty: true, visibilityProperty: true });
}

// The boxes of a text's lines, less the room that a font keeps above and below its letters,
// cut to what scrolling and clipping ancestors show of them.
function boxes(node) {
  const range = document.createRange();
  range.selectNodeContents(node);
  return [...range.getClientRects()].map((line) => {
    const box = {
      left: line.left, right: line.right, text: node.textContent.trim().slice(0, 40),
      top: line.top + 0.2 * line.height, bottom: line.bottom - 0.2 * line.height,
    };
    for (let parent = node.parentElement; parent; parent = parent.parentElement) {
      if (parent === document.body || parent === document.documentElement) break;
      if (getComputedStyle(parent).overflowX === "visible") continue;
      const frame = parent.getBoundingClientRect();
      box.left = Math.max(box.left, frame.left);
      box.right = Math.min(box.right, frame.right);
    }
    return box;
  }).filter((box) => box.right > box.left);
}

function texts() {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const node = walker.currentNode;
    if (!node.textContent.trim() || node.parentElement.closest("script, style")) continue;
    if (visible(node.parentElement)) found.push(node);
  }
  return found;
}

// The box of the page that a text is laid out in.
function block(node) {
  let parent = node.parentElement;
  while (getComputedStyle(parent).display === "inline") parent = parent.parentElement;
  return parent;
}

function overlaps(nodes) {
  const all = nodes.flatMap((node, k) =>
    boxes(node).map((box) => ({ ...box, k, block: block(node) })));
  const found = [];
  all.forEach((a, n) => all.slice(n + 1).forEach((b) => {
    const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (a.k === b.k || down <= MARGIN) return;
    if (across > MARGIN)
      found.push(`"${a.text}" and "${b.text}" overlap by ${across.toFixed(0)} pixels`);
    else if (across > -GAP && a.block !== b.block)
      found.push(`"${a.text}" and "${b.text}" touch`);
  }));
  return found;
}

function outOfTheirBoxes(nodes) {
  const parents = new Set();
  for (const node of nodes)
    for (let e = node.parentElement; e !== document.body; e = e.parentElement) parents.add(e);
  return [...parents].filter((e) => {
    const style = getComputedStyle(e);
    return style.display !== "inline" && style.overflowX === "visible" &&
      e.scrollWidth > e.clientWidth + MARGIN;
  }).map((e) => `<${e.localName} class="${e.className}"> is ${e.clientWidth} pixels wide, its ` +
    `content ${e.scrollWidth}: "${e.textContent.trim().slice(0, 40)}"`);
}

function tooWide() {
  const page = document.documentElement;
  return page.scrollWidth > page.clientWidth
    ? [`the page is ${page.scrollWidth} pixels wide, the window ${page.clientWidth}`] : [];
}

const nodes = texts();
return nodes.length ? [...overlaps(nodes), ...outOfTheirBoxes(nodes), ...tooWide()] : ["no text"];
