// What a person sees of a page of ours. An expression: its value is what the tests ask about.
(() => {
  const root = document.documentElement;

  // Contrast as WCAG 2.2 has it (https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio)
  const colour = (text) => text.match(/[\d.]+/g).map(Number);
  const over = (above, below) => below.map((part, i) => part + (above[i] - part) * (above[3] ?? 1));
  const behind = (e) => (e ? over(colour(getComputedStyle(e).backgroundColor), behind(e.parentElement)) : [255, 255, 255]);
  const luminance = (parts) => {
    const [r, g, b] = parts.map((part) => (part <= 10 ? part / 3294.6 : ((part / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const tooPale = (e, style) => {
    const back = behind(e);
    const [low, high] = [luminance(over(colour(style.color), back)), luminance(back)].sort((a, b) => a - b);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    return (high + 0.05) / (low + 0.05) < (large ? 3 : 4.5);
  };

  const pale = [], spilled = [], broken = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const parent = node.parentElement;
    if (!node.data.trim() || !parent.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
    if (tooPale(parent, getComputedStyle(parent))) pale.push(node.data);
    const range = document.createRange();
    range.selectNodeContents(node);
    const text = range.getBoundingClientRect();
    const room = parent.closest("td, th, li, p, dt, dd, h1, h2, h3, nav").getBoundingClientRect();
    const fits = text.left >= room.left - 1 && text.right <= Math.min(room.right, root.clientWidth) + 1;
    if (!fits && !parent.closest("pre")) spilled.push(node.data); // what is in <pre> can be scrolled
    if (parent.matches(".state, time") && range.getClientRects().length > 1) broken.push(node.data);
  }
  for (const e of document.body.querySelectorAll("*")) {
    const before = getComputedStyle(e, "::before");
    if (!["none", "normal"].includes(before.content) && tooPale(e, before)) pale.push(before.content);
  }

  const shown = [...document.querySelectorAll("tbody")].filter((body) => body.checkVisibility());
  return {
    wide: root.scrollWidth - root.clientWidth,
    dark: luminance(behind(document.body)) < 0.2,
    states: Object.fromEntries(
      shown.map((body) => [body.querySelector("th").firstChild.data, body.querySelector(".state").innerText]),
    ),
    text: document.body.innerText,
    links: [...document.links].map((link) => link.href),
    pale, spilled, broken,
  };
})()
