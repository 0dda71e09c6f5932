// Sliders of the comparisons, and the video.
for (const view of document.querySelectorAll(".view")) {
  const compare = view.querySelector(".compare"), range = compare.querySelector("input"), over = compare.querySelector(".over");
  const tag = compare.querySelector(".tag.right"), render = { src: over.src, name: tag.textContent };
  const move = () => compare.style.setProperty("--cut", range.value + "%");
  range.addEventListener("input", move);
  move();  // a browser may bring back an earlier value
  const tiles = view.querySelectorAll(".tiles button");
  for (const tile of tiles)
    tile.addEventListener("click", () => {
      const chosen = tile.getAttribute("aria-pressed") !== "true";
      tiles.forEach((other) => other.setAttribute("aria-pressed", String(chosen && other === tile)));
      over.src = chosen ? tile.querySelector("img").src : render.src;
      tag.textContent = chosen ? tile.textContent : render.name;
    });
}
for (const video of document.querySelectorAll("video[src^='data:']")) {  // some phones play a blob, but no data address
  const [kind, text] = video.src.slice(5).split(";base64,");
  video.src = URL.createObjectURL(new Blob([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))], { type: kind }));
}
