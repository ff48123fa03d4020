"use strict";
// Lines are switched by their names; under the pointer their values are shown.
const tip = document.createElement("div");
tip.className = "tip";
document.body.append(tip);
for (const figure of document.querySelectorAll("figure")) {
  const svg = figure.querySelector(":scope > svg");
  const lines = [...svg.querySelectorAll("path[data-at]")].map((path) => ({
    path,
    name: path.dataset.name,
    at: path.dataset.at ? path.dataset.at.split("|").map((one) => one.split(";")) : [],
    values: path.dataset.values.split("|"),
  }));
  for (const button of figure.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(shown));
      lines[Number(button.dataset.line)].path.style.display = shown ? "" : "none";
    });
  }
  if (!lines.length) continue;
  const cursor = svg.querySelector(".cursor");
  const move = (x) => { cursor.setAttribute("x1", x); cursor.setAttribute("x2", x); };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    let best = null;
    const near = (line) => {
      let index = -1, least = 40;
      line.at.forEach(([left], i) => {
        const distance = Math.abs(left - x);
        if (distance < least) { least = distance; index = i; }
      });
      return index;
    };
    const rows = [];
    for (const line of lines) {
      if (line.path.style.display === "none") continue;
      const index = near(line);
      if (index < 0) continue;
      best ??= line.at[index];
      rows.push(`${line.name}: ${line.values[index]}`);
    }
    if (!best) { tip.style.display = "none"; move(-9); return; }
    move(best[0]);
    tip.textContent = `${best[1]} ${svg.dataset.x}\n${rows.slice(0, 24).join("\n")}`;
    tip.style.display = "block";
    const room = innerWidth - event.clientX < tip.offsetWidth + 30;
    tip.style.left = `${event.clientX + (room ? -tip.offsetWidth - 16 : 16)}px`;
    tip.style.top = `${Math.min(event.clientY + 12, innerHeight - tip.offsetHeight - 8)}px`;
  });
  svg.addEventListener("pointerleave", () => { tip.style.display = "none"; move(-9); });
}
document.querySelector(".keep")?.addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([document.getElementById("report").textContent], { type: "application/json" }));
  link.download = "report.json";
  link.click();
  URL.revokeObjectURL(link.href);
});
